from __future__ import annotations

import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import baseline, make, training

from nsr.cli import main
from nsr.report.watch import view


def look(*folders: Path) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(view([str(folder) for folder in folders]))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_runs_below_a_folder_with_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(baseline(tmp_path / "suite"), evaluations=(0,), complete=True).close()
    with make(training(tmp_path / "suite"), 23, evaluations=(0, 20)):
        before = files(tmp_path)
        assert main(["watch", str(tmp_path), "--once"]) == 0
        assert files(tmp_path) == before  # nothing is written
    lines = look(tmp_path)
    assert lines[1].split()[:4] == ["suite/NSR", "interrupted", "23/40", "25.0%"]
    assert lines[1].split()[-4:] == ["3.0", "-0.630", "0.500", "60"]
    assert "[20.0, 31.0] at 20" in lines[1]
    assert lines[2].split() == ["suite/base", "complete", "25.0%", "[20.0,", "31.0]"]
    assert lines[4:] == ["2 runs: 1 interrupted, 1 complete"]
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:4] == ["suite/NSR", "running", "23/40", "25.0%"]
    assert "2 runs: 1 running, 1 complete" in [line.strip() for line in out]


def test_a_broken_folder_is_told_in_one_sentence_and_the_rest_is_shown(tmp_path: Path) -> None:
    for name in ("cut", "half", "whole"):
        make(training(tmp_path, name), 5).close()
    (tmp_path / "cut" / "config.json").write_text('{"command": "tr\x1b[2J')
    (tmp_path / "half" / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    lines = look(tmp_path, tmp_path / "nowhere")
    shown = [line.split()[0] for line in lines if line.startswith(str(tmp_path))]
    assert shown == [str(tmp_path / "whole")]  # by its whole name, since several folders are looked at
    wrong = [line for line in lines if line.startswith("! ")]
    assert len(wrong) == 3
    assert f"{tmp_path / 'cut' / 'config.json'} is not JSON" in wrong[0]
    assert f"{tmp_path / 'half' / 'metrics.jsonl'}, near its end, is not JSON" in wrong[1]
    assert wrong[2] == f"! {tmp_path / 'nowhere'} is not a folder, or not there yet."
    assert "\x1b" not in "".join(lines)


def test_the_folder_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(training(tmp_path), 12).close()
    monkeypatch.chdir(tmp_path)
    lines = look(Path("NSR"))
    assert lines[1].split()[:4] == ["NSR", "interrupted", "12/40", "~7.5%"]
    assert lines[-1].startswith("~ mean of the last steps")


def test_a_run_that_vanishes_while_it_is_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nsr.report import watch

    for name in ("a", "b"):
        make(training(tmp_path, name), 5).close()
    read = watch.read_status

    def read_late(path: Path, name: str) -> object:
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return read(path, name)

    monkeypatch.setattr(watch, "read_status", read_late)
    lines = look(tmp_path)
    assert [line.split()[0] for line in lines[1:2]] == ["b"]
    assert "1 run: 1 interrupted" in lines


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 0  # no terminal: once
    assert "no runs" in capsys.readouterr().out


def test_in_a_terminal_it_goes_on_until_ctrl_c(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30"}
    # ctrl-C does what it does in a terminal, also where the tests are run in the background.
    code = (
        "import signal, sys; signal.signal(2, signal.default_int_handler); from nsr.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "watch", str(tmp_path)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    seen = b""

    def read_until(words: str) -> str:
        nonlocal seen
        end = time.monotonic() + 300
        while words not in seen.decode(errors="replace"):
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        return seen.decode(errors="replace")

    try:
        read_until("no runs")
        with make(training(tmp_path), 3):  # one appears
            read_until("3/40")
        text = read_until("1 interrupted")
        assert "\x1b[?1049l" not in text
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0
        # What it showed last stays.
        read_until("\x1b[?1049l")
        end = time.monotonic() + 60
        while "1 interrupted" not in seen.decode().split("\x1b[?1049l")[1] and time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        assert "3/40" in seen.decode().split("\x1b[?1049l")[1]
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
