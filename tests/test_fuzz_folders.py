"""Whole run folders, damaged: every command ends in a result or in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_folders import Fuzzer, make_run

from nsr.report import report


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    folder = tmp_path_factory.mktemp("fuzz")
    return Fuzzer(make_run(folder / "base"), folder)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and are drawn from what the rest has read."""
    monkeypatch.setattr(report, "MOST_SECTIONS_DRAWN", 0)


def wrong(fuzzer: Fuzzer, first: int, count: int, *commands: str) -> list[str]:
    return [line for seed in range(first, first + count) for line in fuzzer.case(seed, commands)]


def test_the_undamaged_run_is_fine(fuzzer: Fuzzer) -> None:
    for command in ("watch", "report", "from_samples"):
        code, text = fuzzer.main_of(command, fuzzer.base)
        assert code == 0, text
        assert "run" in text


@pytest.mark.usefixtures("without_figures")
def test_damaged_folders_are_read_or_told(fuzzer: Fuzzer) -> None:
    assert wrong(fuzzer, 0, 250, "watch", "from_samples", "report") == []


def test_damaged_folders_are_taken_up_or_told(fuzzer: Fuzzer) -> None:
    assert wrong(fuzzer, 10_000, 25, "resume") == []


@pytest.mark.slow
def test_many_damaged_folders(fuzzer: Fuzzer) -> None:
    assert wrong(fuzzer, 20_000, 2_000, "watch", "from_samples", "report", "resume") == []


def test_the_fuzzer_finds_what_it_looks_for(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Were model text not escaped in what a problem says, or a bare error let out, it would be seen."""
    from nsr.report import watch

    monkeypatch.setattr(watch, "printable", lambda text: __import__("rich.text", fromlist=["Text"]).Text(text))
    monkeypatch.setattr(watch, "read_status", lambda path, name: 1 / 0)
    assert wrong(fuzzer, 0, 3, "watch")
