from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nsr.cli.arguments import parse_run
from nsr.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]

FAKE_PYTHON = """#!/usr/bin/env bash
shift
echo "$*" >> "{log}"
case "$*" in
    *PSR*512*) exit 3 ;;
    *W_REINFORCE*256*) [ -e "{stop}" ] && exit "$(cat "{stop}")" ;;
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


@pytest.mark.parametrize("stopped", [130, 143])
def test_the_nine_experiments_stop_at_ctrl_c(stopped: int, tmp_path: Path) -> None:
    (tmp_path / "stop").write_text(str(stopped))
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
