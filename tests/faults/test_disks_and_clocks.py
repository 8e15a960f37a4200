"""Real training processes on a disk that is full, damaged or read-only, and with a clock that goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from forked import Trainer
from killing import assert_same, contents

from nsr.runs.checkpoints import checkpoints, fault, newest_checkpoint
from nsr.runs.folder import read_metrics

TEN_YEARS = 10 * 365 * 86400


def is_one_sentence(log: Path, *words: str) -> bool:
    """Whether the log ends in an error of one line that holds the words, and nothing in it is a traceback."""
    text = log.read_text()
    last = text.strip().splitlines()[-1]
    assert "Traceback" not in text, text
    return last.startswith("error: ") and all(word in last for word in words)


def cut_after(trainer: Trainer, folder: Path, step: int) -> Path:
    """A run whose process was killed when it had saved `step`."""
    log = folder / "log"
    assert trainer.run(trainer.words(folder), log, die_after=step) == -signal.SIGKILL, log.read_text()
    return folder / "run"


def resume(trainer: Trainer, folder: Path, code: int = 0, **world: object) -> str:
    """Resume it; returns what was printed."""
    log = folder / "log"
    before = log.stat().st_size if log.exists() else 0
    assert trainer.run([*trainer.words(folder), "--resume"], log, **world) == code, log.read_text()
    return log.read_text()[before:]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MB. Skipped where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here; the tests with a limit on the size of files are the same")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Fill a disk until so many bytes are free."""
    (disk / "filler").unlink(missing_ok=True)
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(disk).free) > leave:
            file.write(b"x" * min(free - leave, 65536))


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_when_there_is_room(
    trainer: Trainer, whole: Path, small_disk: Path
) -> None:
    log = small_disk.parent / "log"
    path = small_disk / "run"
    words = [*trainer.words(small_disk), "--resume"]
    trainer.start(words, log)
    deadline = time.monotonic() + 120
    while newest_checkpoint(path / "checkpoints") is None and time.monotonic() < deadline:
        assert not trainer.ended(0.01), log.read_text()
    fill(small_disk, 0)
    assert trainer.code() == 1, log.read_text()
    assert is_one_sentence(log, "could not be written", "make room", "--resume")
    assert not list((path / "checkpoints").glob("*.unfinished"))
    kept = newest_checkpoint(path / "checkpoints")
    assert kept is not None
    assert all(fault(checkpoint) is None for checkpoint in checkpoints(path / "checkpoints"))
    # What is left is too little for another checkpoint: said before anything is done.
    fill(small_disk, 100_000)
    assert trainer.run(words, log) == 2
    assert is_one_sentence(log, "of disk space", "are free: make room")
    assert newest_checkpoint(path / "checkpoints") == kept
    (small_disk / "filler").unlink()
    assert trainer.run(words, log) == 0, log.read_text()
    assert_same(path, whole)


@pytest.mark.parametrize("limit", [0, 60, 1_000, 5_000, 20_000, 60_000, 90_000])
def test_whatever_the_disk_does_not_take_ends_in_a_sentence(trainer: Trainer, tmp_path: Path, limit: int) -> None:
    # Files of more bytes are refused: settings, metrics, samples, tokenizer, weights, optimizer, one after the other.
    log = tmp_path / "log.txt"
    log.touch()
    output = tmp_path / "output"
    read, write = os.pipe()  # what it prints goes to no file
    assert trainer.run(trainer.words(output), Path(f"/proc/{os.getpid()}/fd/{write}"), file_limit=limit) == 1
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        log.write_bytes(stream.read())
    assert is_one_sentence(log, "could not be written", "--resume")
    left = [file for file in output.rglob("*") if file.name.endswith((".tmp", ".unfinished"))]
    assert left == []
    assert all(fault(path) is None for path in checkpoints(output / "run" / "checkpoints"))


def test_a_checkpoint_that_is_damaged_is_named_and_passed_over(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    path = cut_after(trainer, tmp_path, 8)
    newest, before = (path / "checkpoints" / name for name in ("step_000008", "step_000006"))
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    said = resume(trainer, tmp_path)
    reason = "model.safetensors has changed since it was written"
    assert f"checkpoint {newest} is passed over: {reason}." in " ".join(said.split())
    assert f"going on after step 6, from {before}" in said
    assert_same(path, whole)


def test_of_damaged_checkpoints_alone_the_run_starts_over(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    path = cut_after(trainer, tmp_path, 4)
    for checkpoint in checkpoints(path / "checkpoints"):
        os.truncate(checkpoint / "optimizer.pt", 1000)
    said = resume(trainer, tmp_path)
    assert said.count("is passed over: optimizer.pt has 1000 bytes, not") == 2
    assert "holds no whole checkpoint: the run starts over, from step 0." in said
    assert_same(path, whole)


def test_no_clock_is_asked_what_is_new(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    # Made ten years ahead by a clock that was wrong, and taken up when it was set right; and the other way round.
    path = cut_after(trainer, tmp_path, 4)
    for file in path.rglob("*"):
        os.utime(file, (time.time() + TEN_YEARS, time.time() + TEN_YEARS))
    os.utime(path / "checkpoints" / "step_000002", (time.time() + 2 * TEN_YEARS,) * 2)
    said = resume(trainer, tmp_path, clock=-TEN_YEARS)
    assert "going on after step 4" in said
    assert_same(path, whole)


def test_lines_that_cannot_be_written(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    path = cut_after(trainer, tmp_path, 4)
    metrics = path / "metrics.jsonl"
    lines = metrics.read_bytes()
    frozen = os.geteuid() == 0 and not subprocess.run(["chattr", "+i", str(metrics)], capture_output=True).returncode
    if not frozen:  # a folder in its place is as little a file to write to
        metrics.unlink()
        metrics.mkdir()
    try:
        resume(trainer, tmp_path, code=1)
        assert is_one_sentence(tmp_path / "log", f"{metrics} could not be written", "see to it")
        assert newest_checkpoint(path / "checkpoints") == (4, path / "checkpoints" / "step_000004")
    finally:
        if frozen:
            subprocess.run(["chattr", "-i", str(metrics)], check=True)
        else:
            metrics.rmdir()
            metrics.write_bytes(lines)
    assert metrics.read_bytes() == lines
    resume(trainer, tmp_path)
    assert_same(path, whole)


def test_lines_that_were_lost_are_told(trainer: Trainer, tmp_path: Path) -> None:
    path = cut_after(trainer, tmp_path, 4)
    metrics = path / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], lines[3]]))
    assert "has no line of step 2, 3, which this run made before." in resume(trainer, tmp_path)
    assert len(read_metrics(path)) == 14


def test_another_version_goes_on_and_says_so(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    path = cut_after(trainer, tmp_path, 4)
    said = resume(trainer, tmp_path, version="9.9.9")
    assert re.search(r"since the last start: .*packages nsr [\d.]+ -> 9\.9\.9", said)
    assert_same(path, whole)
    assert '"earlier"' in (path / "environment.json").read_text()


def test_puzzles_that_changed_are_refused(trainer: Trainer, tmp_path: Path) -> None:
    for split, start in (("train", 1), ("evaluation", 50)):
        rows = [f'{{"nums": [{n}, {n + 1}, {n + 2}], "target": {3 * n + 3}}}\n' for n in range(start, start + 40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    data = f"{tmp_path / 'train.jsonl'},{tmp_path / 'evaluation.jsonl'}"
    log = tmp_path / "log"
    words = [*trainer.words(tmp_path, data=data, n_train_steps=4), "--resume"]
    assert trainer.run(words, log) == 0, log.read_text()
    more = [*trainer.words(tmp_path, data=data, n_train_steps=6), "--resume"]
    before = contents(tmp_path / "run")
    kept = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text("".join(kept.splitlines(keepends=True)[10:]))
    assert trainer.run(more, log) == 2
    assert is_one_sentence(log, "no longer gives the training puzzles that", "step_000004", "restore it")
    assert contents(tmp_path / "run") == before
    (tmp_path / "train.jsonl").write_text(kept)
    assert trainer.run(more, log) == 0, log.read_text()


def test_fewer_steps_than_were_made_are_refused(trainer: Trainer, tmp_path: Path) -> None:
    cut_after(trainer, tmp_path, 4)
    words = [*trainer.words(tmp_path, n_train_steps=3), "--resume"]
    assert trainer.run(words, tmp_path / "log") == 2
    assert is_one_sentence(tmp_path / "log", "--n_train_steps is 3 but must be at least 4 here")


def test_a_second_process_is_refused(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [*trainer.words(tmp_path), "--resume"]
    pid = trainer.start(words, log)
    assert trainer.wait_for("sampling")
    os.kill(pid, signal.SIGSTOP)
    second = subprocess.run([sys.executable, "-m", "nsr", *words], capture_output=True, text=True)
    os.kill(pid, signal.SIGCONT)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: {tmp_path / 'run'} is in use by process {pid}: wait for its end")
    assert trainer.code() == 0, log.read_text()
    assert_same(tmp_path / "run", whole)
