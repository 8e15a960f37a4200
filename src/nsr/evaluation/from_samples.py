"""Measure again from kept samples: every number of an evaluation, without the model that made them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from nsr.errors import UserError
from nsr.evaluation.diversity import canonical_equation
from nsr.evaluation.evaluate import Tally
from nsr.evaluation.record import Evaluation
from nsr.evaluation.samples import SampleRow
from nsr.evaluation.tables import comparison_tables, evaluation_table
from nsr.runs.files import Record, iterate_gzip_lines, read_json
from nsr.runs.folder import evaluation_paths, read_config, samples_path
from nsr.runs.progress import printable
from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.puzzle import Puzzle

_SAMPLES = ".samples.jsonl.gz"
_SHOWN = 6
_ROUNDING = 1e-9  # other processors add in another order


@dataclass(frozen=True, kw_only=True)
class Remeasured:
    """An evaluation that was made again."""

    path: Path
    """Its samples."""
    evaluation: Evaluation
    compared: bool
    """Whether there is a record to compare with."""
    differences: tuple[str, ...]
    """Where it differs from the record, or what is graded from the row."""


def run_from_samples(sources: Sequence[str], console: Console | None = None) -> bool:
    """Measure again what `sources` hold, show it, and say whether it agrees with the records beside the samples.

    Args:
        sources: folders of runs, folders of such folders, or files of samples.
        console: where to.

    Returns:
        True if nothing disagrees.

    Raises:
        ValueError: no such samples, or rows that make no evaluation.
    """
    console = console or Console(highlight=False)
    try:
        again = [remeasure(path) for source in sources for path in find_samples(source)]
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
        raise UserError(f"a record or settings hold what no run writes ({type(error).__name__}: {error}).") from error
    first = again[0].evaluation
    labels = [f"{one.path.parent.parent.name} {_when(one.evaluation)}" for one in again]
    if len(again) == 1:
        console.print(evaluation_table(first, title=labels[0]))
    elif all(
        (e.puzzles, e.num_samples) == (first.puzzles, first.num_samples) for e in (one.evaluation for one in again)
    ):
        console.print(comparison_tables(labels, [one.evaluation for one in again]))
    else:
        for label, one in zip(labels, again, strict=True):
            console.print(evaluation_table(one.evaluation, title=label))
    for one in again:
        console.print(printable(_agreement(one)), soft_wrap=True)
    return not any(one.differences for one in again)


def find_samples(source: str) -> list[Path]:
    """The files of samples that a file, a run's folder, or a folder of such folders means, in order."""
    path = Path(source)
    if path.is_file():
        if not path.name.endswith(_SAMPLES):
            raise UserError(f"--from_samples {source!r} is no {_SAMPLES} file: name one, or the folder of a run.")
        return [path]
    runs = [path] if (path / "evaluations").is_dir() else sorted(path.glob("*/")) if path.is_dir() else []
    found = [samples_path(record) for run in runs for record in evaluation_paths(run).values()]
    found = [file for file in found if file.exists()]
    if not found:
        raise UserError(f"--from_samples {source!r} holds no samples: name the folder of a run that was evaluated.")
    return found


def remeasure(path: Path) -> Remeasured:
    """Make the evaluation of a file of samples again and compare it with the record beside it, if there is one.

    Each text is graded again: of a row are taken the puzzle, the text, and what only the model could tell (tokens,
    entropy, whether it was cut off).

    Raises:
        ValueError: the file is broken, or its rows are not the samples of an evaluation.
    """
    record_path = path.with_name(path.name.removesuffix(_SAMPLES) + ".json")
    record = read_json(record_path) if record_path.exists() else None
    greedy_path = samples_path(record_path, greedy=True)
    regraded: list[str] = []
    tally = _tally(path, regraded)
    settings = _settings(path, record)
    if not all(type(value) in (int, float) and 0 <= value < 10**12 for value in settings.values()):
        raise UserError(
            f"{path}: the record or the settings beside it hold {settings!r:.200}: restore them, or evaluate again."
        )
    evaluation = Evaluation(
        **settings,
        greedy_accuracy=_tally(greedy_path, regraded).accuracy() if greedy_path.exists() else None,
        **tally.measures(with_coverage=record is None or record.get("coverage") is not None),
    )
    differences = [] if record is None else _differences(record, evaluation.to_json())
    if regraded:
        differences.append(f"{len(regraded)} rows are graded otherwise than they say, the first is {regraded[0]}")
    return Remeasured(path=path, evaluation=evaluation, compared=record is not None, differences=tuple(differences))


def _tally(path: Path, regraded: list[str]) -> Tally:
    """Count the rows of a file, graded again; adds to `regraded` the rows that say something else."""
    counts = Counter(_text(path, row, "puzzle") for row in iterate_gzip_lines(path))
    if len(set(counts.values())) != 1:
        given = f"between {min(counts.values())} and {max(counts.values())} samples" if counts else "no samples"
        raise UserError(f"{path} holds {given} of a puzzle: an evaluation has as many of each; restore the file.")
    puzzles = {key: Puzzle.from_key(key) for key in counts}
    tally = Tally(list(puzzles.values()), next(iter(counts.values())))
    for row in _rows(path):
        puzzle = puzzles[row["puzzle"]]
        verdict = grade(puzzle, row["text"])
        equation = canonical_equation(row["text"]) if verdict is Verdict.CORRECT else None
        if (verdict.value, equation) != (row["verdict"], row["equation"]):
            regraded.append(f"sample {row['sample']} of {row['puzzle']}: {verdict.value}, not {row['verdict']}")
        tally.add({**row, "verdict": verdict.value, "equation": equation})
    return tally


def _rows(path: Path) -> Iterator[SampleRow]:
    """The rows of a file, each with everything that a row has. Raises ValueError where one does not."""
    seen: Counter[str] = Counter()
    for row in iterate_gzip_lines(path):
        key = _text(path, row, "puzzle")
        _text(path, row, "text")
        missing = SampleRow.__required_keys__ - row.keys()
        if missing:
            raise UserError(f"{path} has a row without {', '.join(sorted(missing))}: evaluate again.")
        if not _is_row(row):
            raise UserError(f"{path} has a row of {key} with a value that is none of a sample: restore it.")
        if row["sample"] != seen[key]:
            raise UserError(f"{path} has sample {row['sample']} of {key} where {seen[key]} should be: restore it.")
        seen[key] += 1
        yield cast(SampleRow, row)


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether the values that are counted have their types and are within their ranges."""
    tokens, entropy, equation = row["tokens"], row["entropy"], row["equation"]
    return (
        type(row["sample"]) is int
        and type(tokens) is int
        and 0 <= tokens < 10**9
        and isinstance(row["truncated"], bool)
        and isinstance(row["verdict"], str)
        and (equation is None or isinstance(equation, str))
        and (entropy is None or (isinstance(entropy, (int, float)) and 0 <= entropy < 10**6))
    )


def _text(path: Path, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(f"{path} has a row without {name}: evaluate again.")
    return value


def _settings(path: Path, record: Record | None) -> dict[str, Any]:
    """What the rows cannot tell, from the record or else from the run: temperature, max_tokens, seed, step."""
    names = ("step", "temperature", "max_tokens", "seed")
    if record is not None and all(name in record for name in names):
        return {name: record[name] for name in names}
    run = path.absolute().parent.parent
    if not (run / "config.json").exists():
        raise UserError(f"{path} has neither a record beside it nor a run's config.json: keep them together.")
    config = read_config(run)
    step = int(path.name.removesuffix(_SAMPLES).removeprefix("step_"))
    return {"step": step, "temperature": config["eval_temperature"]} | {name: config[name] for name in names[2:]}


def _differences(record: Any, again: Any, where: str = "") -> list[str]:
    """The places at which two JSON values differ by more than rounding, with both values."""
    if isinstance(record, dict) and isinstance(again, dict):
        names = [*again, *(name for name in record if name not in again)]
        pairs = [(str(name), record.get(name, "missing"), again.get(name, "missing")) for name in names]
    elif isinstance(record, list) and isinstance(again, list) and len(record) == len(again):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(record, again, strict=True))]
    else:
        return [] if _equal(record, again) else [f"{where} is {_short(record)}, from the samples {_short(again)}"]
    return [text for name, *pair in pairs for text in _differences(*pair, where=f"{where}.{name}" if where else name)]


def _equal(record: object, again: object) -> bool:
    if isinstance(record, float) and isinstance(again, float):
        return math.isclose(record, again, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    return record == again


def _short(value: object) -> str:
    return "something else" if isinstance(value, dict | list) else str(value)


def _when(evaluation: Evaluation) -> str:
    return f"step {evaluation.step}" if evaluation.step else f"at {evaluation.temperature:g}"


def _agreement(one: Remeasured) -> str:
    if one.differences:
        shown = "; ".join(one.differences[:_SHOWN])
        more = len(one.differences) - _SHOWN
        return f"{one.path} does not agree with its record: {shown}{f' and {more} more' if more > 0 else ''}."
    if not one.compared:
        return f"{one.path} has no record beside it to compare with."
    return f"{one.path} agrees with its record in every number."
