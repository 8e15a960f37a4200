"""Run folders -> records, whatever state the folders are in.

A file that is missing, cut off or not what it should be costs what it held and one sentence; all else is read.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nsr.errors import UserError
from nsr.evaluation.evaluate import Evaluation
from nsr.report.run import RunRecord
from nsr.runs.files import Record, read_bytes, read_json
from nsr.runs.folder import evaluation_path, evaluation_paths, samples_path
from nsr.runs.progress import printable

COMMANDS = ("train", "baseline", "eval")
"""Commands that leave a run's folder."""
PUZZLE_KEY = re.compile(r"\d{1,9}(?:,\d{1,9}){0,9}=-?\d{1,9}", re.ASCII)
"""A puzzle's canonical key, such as "19,35,44=98"."""
_MARKS = ("metrics.jsonl", "timings.jsonl", "mechanism.jsonl", "environment.json", "evaluations")
_DEEPEST = 6  # folders below a given one that are looked into
_SHOWN_LINES = 3
_SHOWN_LETTERS = 300


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The runs of a report, and what is not as it should be."""

    runs: tuple[RunRecord, ...]
    """In the order of their names."""
    problems: tuple[str, ...]
    """One sentence each."""


@dataclass
class _Reader:
    """Reads one run's folder and notes what is wrong with it."""

    path: Path
    name: str
    puzzle_sets: dict[tuple[str, ...], tuple[str, ...]]
    """Each set of puzzles once, so that thousands of evaluations share it and are quick to compare."""
    problems: list[str] = field(default_factory=list)

    def tell(self, sentence: str) -> None:
        self.problems.append(f"{self.name}: {sentence}")

    def object(self, file: str, consequence: str) -> Record | None:
        """The JSON object in a file; where there is none this is told, with what follows from it."""
        path = self.path / file
        try:
            return read_json(path)
        except FileNotFoundError:
            self.tell(f"{file} is missing, so {consequence}.")
        except (OSError, ValueError, RecursionError):
            self.tell(f"{file} is no JSON object, so {consequence}.")
        return None

    def lines(self, file: str) -> list[Record]:
        """The records of a file of lines that can be read, the last of each step; those that cannot are told."""
        return _last_of_each_step(self.all_lines(file))

    def all_lines(self, file: str) -> list[Record]:
        """`lines`, where a step may have several."""
        try:
            data = read_bytes(self.path / file)
        except OSError:
            return []
        except ValueError:
            self.tell(f"{file} is no ordinary file, so it is left out.")
            return []
        *lines, rest = data.split(b"\n")
        if rest:
            self.tell(f"{file} ends in the middle of a line, which is left out.")
        records: list[Record] = []
        bad: list[int] = []
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is None:
                bad.append(number)
            else:
                records.append(record)
        if not (records or bad or rest):
            self.tell(f"{file} is empty.")
        if bad:
            shown = ", ".join(str(number) for number in bad[:_SHOWN_LINES]) + (
                ", ..." if len(bad) > _SHOWN_LINES else ""
            )
            self.tell(f"{file} has no record of a step in line {shown}, which is left out.")
        return records


def collect(folders: Sequence[Path]) -> Collection:
    """Read the runs that lie in `folders`: each is a run's folder or holds some, at any depth.

    Raises:
        ValueError: a folder is not there, or none of them holds a run.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give the folder of a run, or one that holds some.")
    paths = sorted({path.resolve(): path for folder in folders for path in _find(folder)})
    if not paths:
        given = ", ".join(str(folder) for folder in folders)
        raise UserError(f"{given} holds no run: give the folder of a run, or one that holds some.")
    top = common_folder(paths)
    runs: list[RunRecord] = []
    problems: list[str] = []
    puzzle_sets: dict[tuple[str, ...], tuple[str, ...]] = {}
    for path in paths:
        reader = _Reader(path, _name(path, top), puzzle_sets)
        run = _read(reader)
        problems += reader.problems
        if run is not None:
            runs.append(run)
    return Collection(runs=tuple(runs), problems=tuple(problems))


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that all of them lie in; that of a single one is its parent."""
    resolved = [path.resolve() for path in paths]
    return resolved[0].parent if len(resolved) == 1 else Path(os.path.commonpath(resolved))


def _name(path: Path, top: Path) -> str:
    return str(path.relative_to(top)) if path != top else path.name


def _find(folder: Path, depth: int = 0) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif depth < _DEEPEST:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _find(child, depth + 1)


def _is_run(folder: Path) -> bool:
    """Whether there is a run: also one that lost a file. A model's folder has a config.json too."""
    if any((folder / mark).exists() for mark in _MARKS):
        return True
    try:
        return "command" in read_json(folder / "config.json")
    except (OSError, ValueError, RecursionError):
        return False


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_count(record.get("step")) else None


def _last_of_each_step(records: Sequence[Record]) -> list[Record]:
    """By step; where one was written twice, the later."""
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _read(reader: _Reader) -> RunRecord | None:
    config = reader.object("config.json", "the run is left out, since its settings are not known")
    if config is None:
        return None
    fault = _config_fault(config)
    if fault:
        reader.tell(f"config.json {fault}, so the run is left out.")
        return None
    trained = config["command"] == "train"
    evaluations = _evaluations(reader)
    metrics = reader.lines("metrics.jsonl")
    run = RunRecord(
        path=reader.path,
        name=reader.name,
        config=config,
        metrics=metrics,
        evaluations=evaluations,
        mechanism=reader.lines("mechanism.jsonl"),
        timings=reader.lines("timings.jsonl"),
        events=reader.all_lines("events.jsonl"),
        environment=reader.object("environment.json", "what it ran on is not known"),
        complete=(reader.path / "done.json").exists(),
    )
    if trained:
        _tell_what_it_met(reader, run)
        _tell_what_is_missing(reader, run)
    elif not evaluations:
        reader.tell("there is no evaluation yet.")
    return run


_CONFIG_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "model_id": lambda value: isinstance(value, str),
    "data": lambda value: isinstance(value, str),
    "max_tokens": _is_count,
    "seed": _is_count,
}


def _config_fault(config: Record) -> str | None:
    if config.get("command") not in COMMANDS:
        return f"is of no command that leaves a run ({', '.join(COMMANDS)})"
    checks = dict(_CONFIG_CHECKS)
    if config["command"] == "train":
        checks |= {"objective": lambda value: isinstance(value, str), "n_train_steps": _is_count}
    bad = [name for name, check in checks.items() if not check(config.get(name))]
    return f"has no usable {' and no usable '.join(bad)}" if bad else None


def _evaluations(reader: _Reader) -> list[Evaluation]:
    found: list[Evaluation] = []
    for step, path in evaluation_paths(reader.path).items():
        file = f"evaluations/{path.name}"
        record = reader.object(file, f"the evaluation at step {step} is left out")
        if record is None:
            continue
        try:
            evaluation = Evaluation.from_json(record)
        except (ValueError, RecursionError):
            reader.tell(f"{file} is no evaluation of this version of nsr, so it is left out.")
            continue
        if evaluation.step != step or not _is_sound(evaluation):
            reader.tell(f"{file} does not hold together as an evaluation at step {step}, so it is left out.")
            continue
        if not samples_path(path).exists():
            reader.tell(f"the samples of the evaluation at step {step} are missing, so none of them is shown.")
        found.append(replace(evaluation, puzzles=reader.puzzle_sets.setdefault(evaluation.puzzles, evaluation.puzzles)))
    for path in sorted((reader.path / "evaluations").glob("step_*.samples.jsonl.gz")):
        digits = path.name.removeprefix("step_").partition(".")[0]
        if digits.isdecimal() and not evaluation_path(reader.path, int(digits)).exists():
            reader.tell(f"the evaluation at step {int(digits)} is missing; its samples alone are left out.")
    return found


def _is_sound(evaluation: Evaluation) -> bool:
    """Whether the values that a report works with have their types and are within their ranges."""
    n = evaluation.num_samples
    return (
        _is_count(n)
        and n >= 1
        and _is_count(evaluation.seed)
        and _is_count(evaluation.max_tokens)
        and bool(evaluation.puzzles)
        and all(PUZZLE_KEY.fullmatch(key) for key in evaluation.puzzles)
        and all(_is_count(count) and count <= n for count in evaluation.num_correct)
        and _are_shares(evaluation.verdicts)
        and all(
            number(value) is not None
            for value in (evaluation.temperature, evaluation.response_length, evaluation.truncated)
        )
        and all(
            value is None or number(value) is not None
            for value in (
                evaluation.entropy,
                evaluation.coverage,
                evaluation.well_formed_accuracy,
                evaluation.distinct_correct.mean,
            )
        )
    )


def _are_shares(values: object) -> bool:
    return isinstance(values, Mapping) and all(number(share) is not None for share in values.values())


def _tell_what_it_met(reader: _Reader, run: RunRecord) -> None:
    """Say where the run collapsed, what ended it, and how many of its updates had no signal."""
    for event in run.events:
        kind, reason = event.get("event"), event.get("reason")
        if kind == "collapse" and isinstance(reason, str):
            shown = printable(reason[:_SHOWN_LETTERS].replace("\n", " ")).plain
            reader.tell(f"collapse at step {event['step']}: {shown}.")
        elif kind == "stopped":
            reader.tell(f"--stop_on_collapse ended it after step {event['step']}.")
    told = no_signal(run.metrics)
    if told:
        reader.tell(told)


def no_signal(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence on steps in which nothing could be learned; None where there are none."""
    counts = [number(record.get("updates_without_signal")) or 0.0 for record in metrics]
    steps = sum(count > 0 for count in counts)
    if not steps:
        return None
    return (
        f"{steps} of {len(metrics)} steps had updates without signal, {sum(counts):.0f} in all: no sample had a weight."
    )


def _tell_what_is_missing(reader: _Reader, run: RunRecord) -> None:
    """Say which files a training run should have and has not."""
    config = run.config
    steps = run.metrics[-1]["step"] if run.metrics else 0
    if not (reader.path / "metrics.jsonl").exists() and (run.complete or any(e.step for e in run.evaluations)):
        reader.tell("metrics.jsonl is missing, so its training curves are left out.")
    if run.metrics:
        last = max(steps, config["n_train_steps"]) if run.complete else steps
        for file, records in (("metrics.jsonl", run.metrics), ("timings.jsonl", run.timings)):
            num_known = len([record for record in records if record["step"] >= 1])
            if num_known < last:
                reader.tell(f"{file} has no record of {last - num_known} of {last} steps.")
    measured = {record["step"] for record in run.mechanism}
    unmeasured = [str(evaluation.step) for evaluation in run.evaluations if evaluation.step not in measured]
    if measured and unmeasured:
        reader.tell(f"mechanism.jsonl has no record of the evaluation at step {', '.join(unmeasured)}.")
    missing = sorted(_due(run, steps) - _there(reader, run))
    if missing:
        shown = ", ".join(str(step) for step in missing[:_SHOWN_LINES]) + (
            ", ..." if len(missing) > _SHOWN_LINES else ""
        )
        reader.tell(f"there is no evaluation at step {shown}.")
    if not run.complete:
        reader.tell(f"it is not complete, with {steps} of {config['n_train_steps']} steps so far.")


def _due(run: RunRecord, steps: int) -> set[int]:
    """Steps whose evaluation should be there: that of the last one may still be under way."""
    every = run.config.get("eval_every")
    last = run.config["n_train_steps"] if run.complete else steps
    due = set(range(0, last, every)) if _is_count(every) and every else set[int]()
    return due | {0, last} if run.complete else due


def _there(reader: _Reader, run: RunRecord) -> set[int]:
    """Steps whose evaluation was read, or is there and was told to be no good, or has at least its samples."""
    samples = (reader.path / "evaluations").glob("step_[0-9]*.samples.jsonl.gz")
    digits = [path.name.removeprefix("step_").partition(".")[0] for path in samples]
    of_samples = {int(text) for text in digits if text.isdecimal()}
    return of_samples | {evaluation.step for evaluation in run.evaluations} | set(evaluation_paths(reader.path))
