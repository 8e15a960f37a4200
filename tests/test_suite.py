from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nsr import suite
from nsr.cli import main
from nsr.cli.arguments import parse_run
from nsr.config import BaselineConfig, RunConfig, SuiteConfig, TrainConfig
from nsr.runs.folder import RunFolder
from nsr.suite import SUITES, build_suite, to_words

ROOT = Path(__file__).resolve().parents[1]


def names(name: str, seeds: int = 1) -> list[str]:
    return [run.run_name for run in build_suite(SuiteConfig(name=name, seeds=seeds))]


def test_the_study() -> None:
    assert names("study") == [
        "baseline_256_seed42",
        "baseline_512_seed42",
        "baseline_1024_seed42",
        "NSR_256_seed42",
        "NSR_512_seed42",
        "NSR_1024_seed42",
        "PSR_256_seed42",
        "PSR_512_seed42",
        "PSR_1024_seed42",
        "W_REINFORCE_lambda0.1_256_seed42",
        "W_REINFORCE_lambda0.1_512_seed42",
        "W_REINFORCE_lambda0.1_1024_seed42",
        "W_REINFORCE_lambda0.3_256_seed42",
        "W_REINFORCE_lambda0.3_512_seed42",
        "RLVR_256_seed42",
        "RLVR_512_seed42",
        "RLVR_1024_seed42",
    ]
    assert {run.model_id for run in build_suite(SuiteConfig(name="study"))} == {"Qwen/Qwen3-1.7B"}


def test_tiny_with_paired_seeds() -> None:
    kinds = ["baseline", "RLVR", "PSR", "NSR", "W_REINFORCE_lambda0.1", "W_REINFORCE_lambda0.3", "SHUFFLED"]
    assert names("tiny", seeds=2) == [f"{kind}_96_seed{seed}" for seed in (42, 43) for kind in kinds]
    runs = build_suite(SuiteConfig(name="tiny", seed=7, output_dir="out"))
    assert {(run.model_id, run.device, run.seed, run.output_dir) for run in runs} == {("tiny", "cpu", 7, "out/tiny")}


def test_the_sweep_over_lambda() -> None:
    weights = [run.lambda_psr for run in build_suite(SuiteConfig(name="lambda")) if isinstance(run, TrainConfig)]
    assert weights == [0.0, 0.05, 0.1, 0.3, 1.0]
    assert len(set(names("lambda"))) == 5


@pytest.mark.parametrize("name", SUITES)
def test_the_command_line_of_each_run_gives_its_settings(name: str) -> None:
    for run in build_suite(SuiteConfig(name=name, seeds=2)):
        command, *flags = to_words(run)
        config_type = TrainConfig if command == "train" else BaselineConfig
        assert parse_run(config_type, flags) == run
        assert run.resume


def test_an_unknown_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "stdy"]) == 2
    assert capsys.readouterr().err.startswith("error: the suite is 'stdy' but must be one of study, tiny, lambda")


def test_a_dry_run_prints_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "tiny", "--dry_run", "--output_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    words = shlex.split(lines[3])
    assert words[:2] == ["nsr", "train"]
    assert parse_run(TrainConfig, words[2:]).run_path == tmp_path / "tiny" / "NSR_96_seed42"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite of three runs on the CPU."""

    def runs() -> list[RunConfig]:
        return [TrainConfig(objective=objective, device="cpu", n_train_steps=3) for objective in ("PSR", "NSR", "RLVR")]

    monkeypatch.setitem(SUITES, "three", runs)


def run_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: dict[str, int]) -> tuple[int, list[str]]:
    """Run the suite with processes that make a complete run, or end with the code of their objective."""
    started: list[str] = []

    def process(command: Sequence[str]) -> int:
        assert command[:4] == [sys.executable, "-m", "nsr", "train"]
        config = parse_run(TrainConfig, command[4:])
        started.append(config.objective)
        code = codes.get(config.objective, 0)
        if code == 0:
            with RunFolder.open(config, environment={}) as folder:
                folder.mark_complete(3)
        return code

    monkeypatch.setattr(suite, "run_process", process)
    return main(["suite", "three", "--output_dir", str(tmp_path)]), started


@pytest.mark.usefixtures("three")
def test_a_suite_goes_on_after_a_failure_and_skips_what_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_three(tmp_path, monkeypatch, {"NSR": 2}) == (1, ["PSR", "NSR", "RLVR"])
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split("min  ")[1] for line in table[:3]] == ["complete", "failed (exit code 2)", "complete"]
    assert [line.split()[0] for line in table[:3]] == ["PSR_256_seed42", "NSR_256_seed42", "RLVR_256_seed42"]
    assert table[3] == "2 of 3 runs are complete."

    assert run_three(tmp_path, monkeypatch, {}) == (0, ["NSR"])
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split("min  ")[1] for line in table[:3]] == ["complete already", "complete", "complete already"]
    assert table[3] == "3 of 3 runs are complete."


@pytest.mark.usefixtures("three")
def test_a_suite_stops_where_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_three(tmp_path, monkeypatch, {"NSR": 130}) == (130, ["PSR", "NSR"])
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 3 runs are complete."


def test_a_process_may_finish_at_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite.run_process([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    waits: list[str] = []

    class Process:
        def __init__(self, command: Sequence[str]) -> None:
            waits.append(command[0])

        def wait(self) -> int:
            waits.append("wait")
            if waits.count("wait") == 1:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert suite.run_process(["train"]) == 130
    assert waits == ["train", "wait", "wait"]


FAKE_PYTHON = """#!/usr/bin/env bash
shift
echo "$*" >> "{log}"
case "$*" in
    *PSR*512*) exit 3 ;;
    *W_REINFORCE*256*) [ -e "{stop}" ] && exit 130 ;;
esac
exit 0
"""


def run_experiments(tmp_path: Path, *flags: str) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of output, and the command lines that experiment.py got from run_experiments.sh."""
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(log=log, stop=tmp_path / "stop"))
    python.chmod(0o755)
    command = ["bash", str(ROOT / "run_experiments.sh"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert result.stderr == ""
    return result.returncode, result.stdout.splitlines(), log.read_text().splitlines()


def test_the_nine_experiments(tmp_path: Path) -> None:
    code, lines, started = run_experiments(tmp_path, "--seed", "43", "--data", "a b.parquet")
    assert code == 1
    assert started == [
        f"--objective {objective} --max_tokens {max_tokens} --resume --seed 43 --data a b.parquet"
        for objective in ("NSR", "PSR", "W_REINFORCE")
        for max_tokens in (256, 512, 1024)
    ]
    assert lines[-1] == "1 of 9 runs failed."
    summary = lines[lines.index("== Summary") + 1 : -1]
    assert len(summary) == 9
    assert [line.split()[0] + line.split()[1] for line in summary if "failed" in line] == ["PSR,512"]
    assert summary[4].endswith("failed (exit code 3)")
    assert sum(line.endswith("complete") for line in summary) == 8


def test_the_nine_experiments_stop_at_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    code, lines, started = run_experiments(tmp_path)
    assert code == 130
    assert len(started) == 7
    assert lines[-2].split() == ["W_REINFORCE,", "256", "tokens", "0", "min", "interrupted"]
    assert lines[-1] == "Interrupted: start it again to go on."


def test_the_nine_command_lines_are_good(tmp_path: Path) -> None:
    _, _, started = run_experiments(tmp_path, "--preset", "tiny")
    paths = {parse_run(TrainConfig, line.split()).run_path.name for line in started}
    assert len(paths) == 9
    assert {"NSR_256", "PSR_1024", "W_REINFORCE_lambda0.1_512"} <= paths
