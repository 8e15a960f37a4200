"""A signal to end: the step is finished and saved, and the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest
from forked import Trainer
from killing import assert_same

from nsr.runs.checkpoints import newest_checkpoint
from nsr.runs.folder import evaluation_path, read_metrics


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_step_is_finished_and_saved(number: signal.Signals, trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = trainer.words(tmp_path, save_every=0)  # nothing is saved on the way
    pid = trainer.start(words, log, slow="update")
    assert trainer.wait_for("learning")
    os.kill(pid, number)
    assert trainer.code() == 128 + number
    text = log.read_text()
    assert "Traceback" not in text
    assert f"{number.name}: the step under way is finished and saved" in text
    step = len(read_metrics(tmp_path / "run"))
    assert step == 1
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") == (step, path_of(tmp_path, step))
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"Interrupted. Step {step} is finished and saved, in {path_of(tmp_path, step)}.")
    # The command that it names goes on.
    command = shlex.split(last.partition("Go on with: ")[2])
    assert command == ["nsr", *words, "--resume"]
    assert trainer.run([*trainer.words(tmp_path), "--resume"], log) == 0, log.read_text()
    assert_same(tmp_path / "run", whole)


def path_of(folder: Path, step: int) -> Path:
    return folder / "run" / "checkpoints" / f"step_{step:06d}"


def test_an_evaluation_is_broken_off_and_made_when_the_run_goes_on(
    trainer: Trainer, whole: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    words = [*trainer.words(tmp_path), "--resume"]
    pid = trainer.start(words, log, slow="evaluate")
    for phase in ("evaluating", "learning", "evaluating"):  # before the first step, and after the fourth
        assert trainer.wait_for(phase)
    os.kill(pid, signal.SIGTERM)
    assert trainer.code() == 143, log.read_text()
    assert "Step 4 is finished and saved" in log.read_text()
    assert not evaluation_path(tmp_path / "run", 4).exists()
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") == (4, path_of(tmp_path, 4))
    assert trainer.run(words, log) == 0, log.read_text()
    assert_same(tmp_path / "run", whole)


def test_before_the_first_step_it_ends_at_once(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [*trainer.words(tmp_path), "--resume"]
    pid = trainer.start(words, log, slow="draw_probe")
    assert trainer.wait_for("drawing the probe")
    os.kill(pid, signal.SIGINT)
    assert trainer.code() == 130
    assert log.read_text().strip().splitlines()[-1].startswith("Interrupted. Go on with: nsr train ")
    assert trainer.run(words, log) == 0, log.read_text()
    assert "the run starts over, from step 0" in log.read_text()
    assert_same(tmp_path / "run", whole)


def test_a_second_signal_ends_it_at_once(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [*trainer.words(tmp_path), "--resume"]
    pid = trainer.start(words, log, slow="update")
    assert trainer.wait_for("learning")
    os.kill(pid, signal.SIGINT)
    assert not trainer.ended(0.3)
    os.kill(pid, signal.SIGINT)
    assert trainer.code() == -signal.SIGINT
    assert read_metrics(tmp_path / "run") == []
    assert trainer.run(words, log) == 0, log.read_text()
    assert_same(tmp_path / "run", whole)
