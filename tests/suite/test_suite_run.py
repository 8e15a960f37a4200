"""Suites of real processes: what is skipped, what fails, what is interrupted, and what is shown of it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsr.cli import main
from nsr.config import RunConfig, TrainConfig
from nsr.runs.folder import RunFolder, is_held, read_config, read_evaluation, read_metrics
from nsr.suite import SUITES, run
from nsr.suite.jobs import STOPPED

PRETEND = Path(__file__).with_name("pretend.py")
PATIENCE = 300.0  # a bound for a machine that has much else to do


def start(folder: Path, *flags: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(PRETEND), "suite", "three", "--output_dir", str(folder), *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
    return subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]


def finish(folder: Path, *flags: str) -> tuple[int, list[str]]:
    process = start(folder, *flags)
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out.splitlines()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def path_of(folder: Path, name: str) -> Path:
    return folder / "three" / f"{name}_256_seed42"


def at_step(folder: Path, name: str, step: int) -> bool:
    return len(read_metrics(path_of(folder, name))) >= step


def table(lines: list[str]) -> dict[str, list[str]]:
    """The last table that was printed: what it says of each run."""
    heads = [index for index, line in enumerate(lines) if line.startswith("run ")]
    rows = [line.split() for line in lines[heads[-1] + 1 :]]
    return {row[0].removesuffix("_256_seed42"): row[1:] for row in rows[: rows.index([])]}


def test_a_failure_does_not_stop_the_others_and_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "PSR.fail").touch()
    code, lines = finish(tmp_path)
    assert code == 1
    found = table(lines)
    assert {name: row[0] for name, row in found.items()} == {"PSR": "failed", "NSR": "complete", "RLVR": "complete"}
    # Made of the last four steps' 0.1, 0.2, 0.3 and 0.4; there is no evaluation.
    assert found["NSR"][1:3] == ["4/4", "~25.0%"]
    text = "\n".join(lines)
    assert "2 of 3 runs are complete, 1 failed; this took 0:00:" in text
    # The error is shown, and what it holds does nothing to the terminal.
    assert "PSR_256_seed42 failed: exit code 3\n" in text
    assert "    a run that only pretends\n    \\x1b[31mthe data is \\u202egone\n" in text
    assert "\x1b" not in text
    assert lines[-1] == f"The report: nsr report {tmp_path / 'three'}"
    log = tmp_path / "three" / "logs" / "PSR_256_seed42.log"
    assert str(log) in text
    assert log.read_text().startswith("$ nsr train --model_id=")

    (tmp_path / "PSR.fail").unlink()
    before = {name: read_metrics(path_of(tmp_path, name)) for name in ("NSR", "RLVR")}
    code, lines = finish(tmp_path)
    assert code == 0
    assert {row[0] for row in table(lines).values()} == {"complete"}
    assert {name: read_metrics(path_of(tmp_path, name)) for name in ("NSR", "RLVR")} == before
    assert log.read_text().count("$ nsr train") == 2
    assert (tmp_path / "three" / "logs" / "NSR_256_seed42.log").read_text().count("$ nsr train") == 1


def test_a_run_that_collapsed_has_ended_and_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "NSR.collapse").touch()
    for starts in (1, 1):
        code, lines = finish(tmp_path, "--", "--stop_on_collapse")
        assert code == 1
        found = table(lines)
        assert {name: row[0] for name, row in found.items()} == {
            "PSR": "complete",
            "NSR": "collapsed",
            "RLVR": "complete",
        }
        assert "NSR_256_seed42: collapse at step 3: it \\x1b[2Jfell" in lines
        assert "The same command goes on where this stopped." not in lines
        log = tmp_path / "three" / "logs" / "NSR_256_seed42.log"
        assert log.read_text().count("$ nsr train") == starts
    # Without the flag there is something left to do.
    code, lines = finish(tmp_path)
    assert code == 0
    assert table(lines)["NSR"][0] == "complete"


def test_where_there_is_no_terminal_there_are_lines(tmp_path: Path) -> None:
    _, lines = finish(tmp_path)
    shown = lines[: next(index for index, line in enumerate(lines) if line.startswith("run "))]
    for number, name in enumerate(("PSR", "NSR", "RLVR"), start=1):
        own = [line for line in shown if line.startswith(f"[{number}/3] {name}_256_seed42  ")]
        assert own[0].split("  ")[1] == "running"
        assert own[-1].split("  ")[1:3] == ["complete", "4/4"]
        assert len(own) == 2
    assert len(shown) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_goes_on_where_it_stopped(number: signal.Signals, tmp_path: Path) -> None:
    hold = tmp_path / "NSR.hold"
    hold.touch()
    process = start(tmp_path)
    wait_for(lambda: at_step(tmp_path, "NSR", 2))
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    found = table(out.splitlines())
    assert {name: row[:2] for name, row in found.items()} == {
        "PSR": ["complete", "4/4"],
        "NSR": ["interrupted", "2/4"],
        "RLVR": ["waiting", "0/4"],
    }
    assert "\nInterrupted: the same command goes on where this stopped.\n" in out
    # The run was told, ended in its own way, and let go of its folder.
    assert "told to end" in (tmp_path / "three" / "logs" / "NSR_256_seed42.log").read_text()
    assert not is_held(path_of(tmp_path, "NSR"))
    assert not path_of(tmp_path, "RLVR").exists()

    hold.unlink()
    code, lines = finish(tmp_path)
    assert code == 0
    assert {row[0] for row in table(lines).values()} == {"complete"}
    steps = read_metrics(path_of(tmp_path, "NSR"))
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert len({step["pid"] for step in steps}) == 2  # the first two by the process that was interrupted
    assert len({step["pid"] for step in read_metrics(path_of(tmp_path, "PSR"))}) == 1


def test_interrupted_again_it_does_not_wait(tmp_path: Path) -> None:
    for name in ("PSR.hold", "PSR.deaf"):
        (tmp_path / name).touch()
    process = start(tmp_path)
    wait_for(lambda: at_step(tmp_path, "PSR", 2))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the run does not hear it
    assert is_held(path_of(tmp_path, "PSR"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert table(out.splitlines())["PSR"][0] == "interrupted"
    assert not is_held(path_of(tmp_path, "PSR"))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """ctrl-C does here what it does in a terminal: a process in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_that_does_not_hear_is_ended_when_patience_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", (0.2, 0.2))
    monkeypatch.setattr(run, "POLL_SECONDS", 0.05)
    deaf = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
open("here", "w")
time.sleep(120)
open("slept well", "w")
"""
    monkeypatch.setattr("nsr.suite.jobs.command", lambda run: [sys.executable, "-c", deaf])
    monkeypatch.setitem(SUITES, "one", lambda: [TrainConfig(device="cpu")])
    monkeypatch.chdir(tmp_path)
    code = f"""
import os, signal, sys, time
while not os.path.exists("here"):
    time.sleep(0.02)
os.kill({os.getpid()}, signal.SIGINT)
"""
    with subprocess.Popen([sys.executable, "-c", code]):
        assert main(["suite", "one", "--output_dir", str(tmp_path)]) == 130
    assert not Path("slept well").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it is put back


def test_two_at_once_share_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    for name in ("PSR", "NSR"):
        (tmp_path / f"{name}.hold").touch()
    process = start(tmp_path, "--jobs", "2")
    wait_for(lambda: at_step(tmp_path, "PSR", 2) and at_step(tmp_path, "NSR", 2))
    time.sleep(0.3)
    assert is_held(path_of(tmp_path, "PSR"))
    assert is_held(path_of(tmp_path, "NSR"))
    assert not path_of(tmp_path, "RLVR").exists()
    (tmp_path / "PSR.hold").unlink()
    wait_for(lambda: at_step(tmp_path, "RLVR", 4))  # the next takes the place that is free
    assert is_held(path_of(tmp_path, "NSR"))
    (tmp_path / "NSR.hold").unlink()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out
    for name in ("PSR", "NSR", "RLVR"):
        given = json.loads((path_of(tmp_path, name) / "environment.json").read_text())
        assert (given["OMP_NUM_THREADS"], given["MKL_NUM_THREADS"]) == ("4", "4")


def test_a_run_that_is_told_to_end_from_outside_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "PSR.hold").touch()
    process = start(tmp_path)
    wait_for(lambda: at_step(tmp_path, "PSR", 2))
    os.kill(read_metrics(path_of(tmp_path, "PSR"))[0]["pid"], signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    states = {name: row[0] for name, row in table(out.splitlines()).items()}
    assert states == {"PSR": "interrupted", "NSR": "complete", "RLVR": "complete"}
    assert {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)} == set(STOPPED)


def test_a_run_that_is_killed_from_outside_has_failed(tmp_path: Path) -> None:
    (tmp_path / "PSR.hold").touch()
    process = start(tmp_path)
    wait_for(lambda: at_step(tmp_path, "PSR", 2))
    os.kill(read_metrics(path_of(tmp_path, "PSR"))[0]["pid"], signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert {name: row[0] for name, row in table(out.splitlines()).items()}["PSR"] == "failed"
    assert "PSR_256_seed42 failed: ended by SIGKILL\n" in out
    assert "2 of 3 runs are complete" in out


def test_a_run_that_another_process_is_at_fails_with_its_sentence(tmp_path: Path) -> None:
    other = TrainConfig(objective="NSR", device="cpu", output_dir=str(tmp_path / "three"), exp_name="NSR_256_seed42")
    with RunFolder.open(other, environment={}):
        code, lines = finish(tmp_path)
    assert code == 1
    assert any(f"NSR_256_seed42 is in use by process {os.getpid()}: wait" in line for line in lines)
    assert table(lines)["RLVR"][0] == "complete"


def test_a_run_with_other_settings_in_its_folder_fails_before_it_starts(tmp_path: Path) -> None:
    assert finish(tmp_path)[0] == 0
    code, lines = finish(tmp_path, "--only", "NSR", "--", "--lr", "1e-4")
    assert code == 1
    assert "holds another run (lr 3e-06 -> 0.0001)" in "\n".join(lines)
    assert read_config(path_of(tmp_path, "NSR"))["lr"] == 3e-6


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "three").touch()
    code, lines = finish(tmp_path)
    assert code == 1
    assert sum("three is a file, not a folder" in line for line in lines) == 3


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_in_a_terminal_one_table_is_kept_up_to_date(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    (tmp_path / "NSR.hold").touch()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = start(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    seen = b""

    def read_until(condition: Callable[[str], bool]) -> str:
        nonlocal seen
        end = time.monotonic() + PATIENCE
        while not condition(shown := seen.decode(errors="replace")):
            assert time.monotonic() < end, shown[-2000:]
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        return shown

    def row(name: str, *words: str) -> Callable[[str], bool]:
        colour = r"(?:\x1b\[[0-9;]*m|\s)+"
        pattern = re.compile(rf"{name}_256_seed42{colour}" + colour.join(re.escape(word) for word in words))
        return lambda text: pattern.search(text) is not None

    read_until(row("NSR", "running", "2/4", "~15.0%"))
    text = read_until(row("RLVR", "waiting"))
    assert "\x1b[?1049h" in text  # a screen of its own
    assert "\x1b[?1049l" not in text
    assert "a run that only pretends" not in text  # what the runs say goes to their logs
    (tmp_path / "NSR.hold").unlink()
    text = read_until(lambda text: "The report: nsr report" in text)
    after = text.split("\x1b[?1049l")[1]
    assert row("NSR", "complete", "4/4")(after)
    assert process.wait(timeout=PATIENCE) == 0


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of the suite `tiny`."""
    monkeypatch.setitem(SUITES, "real", lambda: [run for run in SUITES["tiny"]() if is_wanted(run)])


def is_wanted(run: RunConfig) -> bool:
    return isinstance(run, TrainConfig) and run.objective in ("NSR", "PSR")


@pytest.mark.usefixtures("real")
def test_real_runs_of_one_seed_are_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = (
        "--n_train_steps 2 --rollout_batch_size 8 --group_size 4 --eval_puzzles 3 --eval_samples 2 --max_tokens 24"
    )
    words = ["suite", "real", "--output_dir", str(tmp_path), "--jobs", "2", "--", *changes.split(), "--log_to", "none"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 of 2 runs are complete" in out
    folder = tmp_path / "real"
    nsr, psr = (read_evaluation(folder / f"{name}_24_seed42", 0) for name in ("NSR", "PSR"))
    assert nsr == psr  # before the first step they are the same model, with the same random streams
    steps = [read_metrics(folder / f"{name}_24_seed42") for name in ("NSR", "PSR")]
    assert [len(records) for records in steps] == [2, 2]
    # So are the first rollouts; what is learned from them is not.
    same = ("reward_mean", "response_length", "entropy", "groups_mixed")
    assert [steps[0][0][name] for name in same] == [steps[1][0][name] for name in same]
    assert steps[0][0]["samples_kept"] + steps[1][0]["samples_kept"] == 8
    assert main(words) == 0  # nothing is left to do
    assert "2 of 2 runs are complete; this took 0:00:00." in capsys.readouterr().out
