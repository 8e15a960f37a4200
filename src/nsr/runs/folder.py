"""A run's folder: made once, by one process, and the only place where a run leaves something.

config.json        the settings; under "resolved" what the run chose where a setting left the choice
environment.json   versions, commit, hardware
metrics.jsonl      one line a step; nothing in it depends on the clock
timings.jsonl      one line a step: times, tokens a second, memory
events.jsonl       one line for what a run met: collapse, its end by it; nothing in it depends on the clock
mechanism.jsonl    one line an evaluation: what became of the probe's tokens
probe.jsonl.gz     the probe: samples of the base policy, made at step 0
evaluations/       step_000010.json, its samples in step_000010.samples.jsonl.gz (greedy ones in .greedy.jsonl.gz)
checkpoints/       step_000010/
tensorboard/       event files
faults/            step_000010.safetensors: the batch of a step that was refused
done.json          the last step and a summary: there when the run is complete
lock               held by the process that writes
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal

from nsr.config import RunConfig, TrainConfig, settings_diff, to_record
from nsr.errors import UserError
from nsr.runs.files import (
    Record,
    append_line,
    complete_lines,
    gzip_lines_writer,
    read_bytes,
    read_gzip_lines,
    read_json,
    read_lines,
    write_atomic,
    write_gzip_lines,
    write_json,
    writing,
)

State = Literal["new", "interrupted", "complete"]
_SHOWN_DIFFERENCES = 4
_LINES = ("metrics.jsonl", "timings.jsonl", "mechanism.jsonl", "events.jsonl")
_OF_STEP = re.compile(r"step_(\d{6,})\.(json|samples\.jsonl\.gz|greedy\.jsonl\.gz)", re.ASCII)
_LOCK_ATTEMPTS, _LOCK_PAUSE = 5, 0.02


def run_state(config: RunConfig) -> State:
    """Whether the folder of these settings holds no run, an interrupted one (or one that goes on), or a complete one.

    A run that went fewer steps than are asked for now counts as interrupted. Writes nothing.
    Raises ValueError where the folder holds another run, or anything else, or could not be written.
    """
    path = config.run_path
    advice = "choose another --exp_name or --output_dir"
    _refuse_outside(path, advice)
    blocker = next((parent for parent in (path, *path.parents) if os.path.lexists(parent)), Path())
    if not blocker.is_dir():
        raise UserError(f"--output_dir: {blocker} is a file, not a folder: {advice}.")
    if not os.access(blocker, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir: {blocker} cannot be written to: {advice}.")
    if blocker != path or _is_empty(path):
        return "new"
    if not (path / "config.json").exists():
        raise UserError(f"{path} holds files but no run: {advice}.")
    differences = settings_diff(read_json(path / "config.json"), to_record(config))
    if differences:
        more = len(differences) - _SHOWN_DIFFERENCES
        shown = ", ".join(differences[:_SHOWN_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
        raise UserError(f"{path} holds another run ({shown}): {advice}.")
    steps = config.n_train_steps if isinstance(config, TrainConfig) else 0
    return "complete" if is_complete(path, steps) else "interrupted"


def check_folder(config: RunConfig) -> State:
    """`run_state`, with a ValueError where another process is at it, or where there is a run and no --resume."""
    _refuse_if_held(config.run_path)
    _refuse_links(config.run_path)
    return _state_to_start_from(config)


def _state_to_start_from(config: RunConfig) -> State:
    state = run_state(config)
    if state != "new" and not config.resume:
        advice = "add --resume to go on with it" if state == "interrupted" else "add --resume to leave it as it is"
        article = "an" if state == "interrupted" else "a"
        found = f"{config.run_path} holds {article} {state} run with these settings"
        raise UserError(f"{found}: {advice}, or choose another --exp_name.")
    return state


def _refuse_outside(path: Path, advice: str) -> None:
    """Raise ValueError where the run's folder is a link out of the folder of runs, or cannot be a folder at all."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:  # such as a name that is too long
        raise UserError(f"--output_dir: {path} cannot be used ({error.strerror}): {advice}.") from error
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(f"--output_dir: {path} is a link to {path.resolve()}, out of the folder of runs: {advice}.")


def is_complete(path: Path, steps: int = 0) -> bool:
    """Whether the run in a folder went to its end, `steps` steps or more."""
    done = path / "done.json"
    return done.exists() and _step(read_json(done), str(done)) >= steps


def is_held(path: Path) -> bool:
    """Whether a process is at the run in a folder now: it holds the lock. Writes nothing."""
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class RunFolder:
    """The folder of a run, open for writing by this process alone. A context manager: at its end the lock is free."""

    def __init__(self, path: Path, lock: int) -> None:
        """Use `RunFolder.open`: `lock` is the descriptor of the locked file."""
        self.path = path
        self._lock = lock

    @classmethod
    def open(
        cls,
        config: RunConfig,
        *,
        environment: Mapping[str, object],
        resolved: Mapping[str, object] | None = None,
    ) -> RunFolder:
        """Make the folder of a run, or take up an interrupted one, and write settings and environment into it.

        Call it after every other check: before it, nothing is written.

        Args:
            config: the settings as they were given.
            environment: what `nsr.runs.environment.describe` gives.
            resolved: what the run chose where a setting left the choice (optimizer, engine, ...), for the record.

        Raises:
            ValueError: where `check_folder` does, and where the run is complete.
        """
        check_folder(config)
        path = config.run_path
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, _lock(path))
        try:
            # Another process may have made or completed the run since the first look.
            if _state_to_start_from(config) == "complete":
                raise UserError(f"{path} holds a complete run: choose another --exp_name, or more --n_train_steps.")
            folder._describe(config, environment, resolved or {})
        except BaseException:
            folder.close()
            raise
        return folder

    def __enter__(self) -> RunFolder:
        """The folder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        self.close()

    def close(self) -> None:
        """Let go of the lock. The lock's file stays: to delete it would let two processes lock two files."""
        if self._lock >= 0:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; made by whoever writes the first."""
        return self.path / "checkpoints"

    @property
    def faults(self) -> Path:
        """Folder of the batches whose steps were refused."""
        return self.path / "faults"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Append the metrics of a step: a record with the key "step" and nothing that depends on the clock."""
        append_line(self.path / "metrics.jsonl", record)

    def append_timings(self, record: Mapping[str, object]) -> None:
        """Append the timings of a step: a record with the key "step"; times in seconds, memory in bytes."""
        append_line(self.path / "timings.jsonl", record)

    def append_event(self, record: Mapping[str, object]) -> None:
        """Append something that the run met: a record with the keys "step" and "event"."""
        append_line(self.path / "events.jsonl", record)

    def write_probe(self, samples: Iterable[Mapping[str, object]]) -> None:
        """Write the samples that every evaluation measures the mechanism on. What was measured on others is dropped."""
        (self.path / "mechanism.jsonl").unlink(missing_ok=True)
        write_gzip_lines(self.path / "probe.jsonl.gz", samples)

    def append_mechanism(self, record: Mapping[str, object]) -> None:
        """Append what an evaluation found on the probe: a record with the key "step"."""
        append_line(self.path / "mechanism.jsonl", record)

    @contextmanager
    def keep_samples(
        self, step: int, *, greedy: bool = False
    ) -> Generator[Callable[[Mapping[str, object]], None], None, None]:
        """Keep the samples of the evaluation after `step` steps, before its record is written.

        Gives a function that takes them one by one, each on its way to the disk. The file is there, whole, when the
        context ends. An earlier record of that step gives way first: where a record is, its samples are.

        Args:
            step: training steps behind the evaluation.
            greedy: these are the samples at temperature 0, one a puzzle, which have a file of their own.
        """
        path = evaluation_path(self.path, step)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        with gzip_lines_writer(samples_path(path, greedy=greedy)) as keep:
            yield keep

    def write_evaluation(
        self, step: int, record: Mapping[str, object], samples: Iterable[Mapping[str, object]] | None = None
    ) -> None:
        """Write the evaluation after `step` steps, whose samples `keep_samples` took, or here are `samples`."""
        path = evaluation_path(self.path, step)
        path.parent.mkdir(exist_ok=True)
        if samples is not None:
            write_gzip_lines(samples_path(path), samples)
        write_json(path, record)

    def truncate_after(self, step: int) -> None:
        """Drop what lies after `step`, before the run goes on from there: later or half lines, later evaluations.

        And what a process left that was ended while it wrote a file.
        """
        for name in _LINES:
            path = self.path / name
            if path.exists():
                with writing(path):
                    pairs = zip(complete_lines(path), read_lines(path), strict=True)
                    kept = [line + b"\n" for line, record in pairs if _step(record, f"a line of {path}") <= step]
                    write_atomic(path, b"".join(kept))
        # Records before their samples: where a record is, its samples are.
        files = sorted((self.path / "evaluations").glob("step_*"))
        for file in sorted(files, key=lambda file: file.suffix != ".json"):
            found = _OF_STEP.fullmatch(file.name)
            if found and int(found[1]) > step:
                file.unlink()
        for folder in (self.path, self.path / "evaluations"):
            for file in folder.glob(".*.tmp"):
                file.unlink()

    def missing_steps(self, step: int) -> list[int]:
        """Steps up to `step` of which metrics.jsonl has no line: somebody, or the disk, took it away."""
        there = {_step(record, f"a line of {self.path / 'metrics.jsonl'}") for record in read_metrics(self.path)}
        return [number for number in range(1, step + 1) if number not in there]

    def accuracies(self) -> dict[int, float]:
        """Accuracy of each evaluation that the run made, by step. A record that was damaged counts for none."""
        found: dict[int, float] = {}
        for step, path in evaluation_paths(self.path).items():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found[step] = float(read_json(path)["accuracy"]["estimate"])
        return {step: accuracy for step, accuracy in found.items() if math.isfinite(accuracy)}

    def mark_complete(self, step: int, summary: Mapping[str, object] | None = None) -> None:
        """Say that the run went to its end, `step` steps, with some numbers for a summary."""
        write_json(self.path / "done.json", {"step": step, **(summary or {})})

    def _describe(self, config: RunConfig, environment: Mapping[str, object], resolved: Mapping[str, object]) -> None:
        (self.path / "done.json").unlink(missing_ok=True)
        # First, since a folder with settings is a run, which can be taken up again.
        write_json(self.path / "config.json", {**to_record(config), "resolved": dict(resolved)})
        path = self.path / "environment.json"
        now = dict(environment)
        if path.exists():
            before = read_json(path)
            earlier = before.pop("earlier", [])
            earlier = earlier if isinstance(earlier, list) else []
            if before != now:
                earlier = [*earlier, before]
            if earlier:
                now["earlier"] = earlier
        write_json(path, now)


def read_config(path: Path) -> Record:
    """The settings of the run in a folder."""
    return read_json(path / "config.json")


def read_resolved(path: Path) -> Record:
    """What the run in a folder chose where a setting left the choice."""
    resolved = read_config(path).get("resolved")
    return resolved if isinstance(resolved, dict) else {}


def read_metrics(path: Path) -> list[Record]:
    """The metrics of the run in a folder, one record a step, half a last line left out."""
    return read_lines(path / "metrics.jsonl")


def read_timings(path: Path) -> list[Record]:
    """The timings of the run in a folder, one record a step, half a last line left out."""
    return read_lines(path / "timings.jsonl")


def read_mechanism(path: Path) -> list[Record]:
    """What each evaluation of the run in a folder found on the probe. None for a run without a probe."""
    return read_lines(path / "mechanism.jsonl")


def read_events(path: Path) -> list[Record]:
    """What the run in a folder met, one record each. None where nothing was worth a line."""
    return read_lines(path / "events.jsonl")


def read_probe(path: Path) -> list[Record] | None:
    """The samples of the probe of the run in a folder; None where it has no probe, as runs of older versions.

    Raises ValueError that names the file where it cannot be read.
    """
    file = path / "probe.jsonl.gz"
    if not file.exists():
        return None
    try:
        return read_gzip_lines(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or delete it to go on without it.") from error


def evaluation_path(path: Path, step: int) -> Path:
    """Where the evaluation after `step` steps lies in a run's folder."""
    return path / "evaluations" / f"step_{step:06d}.json"


def evaluation_paths(path: Path) -> dict[int, Path]:
    """The evaluations in a run's folder by step, in order. Files with any other name are not of the run."""
    found = [(_OF_STEP.fullmatch(file.name), file) for file in sorted((path / "evaluations").glob("step_*.json"))]
    return {int(match[1]): file for match, file in found if match}


def read_evaluation(path: Path, step: int) -> Record:
    """The record of the evaluation after `step` steps."""
    return read_json(evaluation_path(path, step))


def read_samples(path: Path, step: int) -> list[Record]:
    """The samples of the evaluation after `step` steps."""
    return read_gzip_lines(samples_path(evaluation_path(path, step)))


def samples_path(evaluation: Path, *, greedy: bool = False) -> Path:
    """Where the samples of the evaluation in a file lie, or its greedy samples, one a puzzle."""
    return evaluation.with_suffix(".greedy.jsonl.gz" if greedy else ".samples.jsonl.gz")


def _is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what a process leaves that was ended before it wrote its settings."""
    return all(entry.name == "lock" or entry.suffix == ".tmp" for entry in path.iterdir())


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"{path / 'lock'} cannot be used as a lock ({error.strerror}): delete it.") from error
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)  # whoever asks whether it is held, as `is_held` does, has it for a moment
    else:
        os.close(descriptor)
        raise _in_use(path)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _refuse_if_held(path: Path) -> None:
    """Raise ValueError where another process holds the folder now. Writes nothing; `_lock` is what decides."""
    if is_held(path):
        raise _in_use(path)


def _refuse_links(path: Path) -> None:
    """Raise ValueError where something that a run writes to leads out of its folder."""
    for folder in (path, path / "evaluations", path / "checkpoints"):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.is_symlink():
                raise UserError(
                    f"{entry} is a link, and a run writes into its own folder alone: put there what it leads to, or "
                    "delete it."
                )


def _step(record: Record, where: str) -> int:
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise UserError(f"{where} has {step!r:.60} for a step: restore it, or delete it.")
    return step


def _in_use(path: Path) -> UserError:
    holder = read_bytes(path / "lock")[:20].decode(errors="replace").strip() or "unknown"
    return UserError(f"{path} is in use by process {holder}: wait for its end, or choose another --exp_name.")
