"""The samples of a report: some of them to look at, and what all of them together found.

The files are read line by line, so memory does not grow with their number. What the models wrote is untrusted: control
characters become visible escapes, a long text keeps its start and its end, and the page shows it as text alone.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from nsr.evaluation.evaluate import Evaluation
from nsr.report.collect import PUZZLE_KEY, number
from nsr.report.methods import Arm, Section
from nsr.report.panels import mark
from nsr.report.run import RunRecord
from nsr.runs.files import gzip_lines, to_json
from nsr.runs.folder import evaluation_path, samples_path
from nsr.runs.progress import printable
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tasks.countdown.solver import solve

MOST_SAMPLES = 4000
"""Samples that are embedded in a page."""
MOST_PUZZLES = 32
"""Puzzles of a section whose samples are embedded."""
SAMPLES_A_PUZZLE = 4
"""Samples of a puzzle that are embedded for a method: one of each verdict first."""
SHOWN_START, SHOWN_END = 1000, 500
"""Characters of a long text that are shown."""
MOST_SOLVED = 6000
"""Puzzles that are solved for the share of solutions found; with more of them it is left out."""

MOST_NUMBERS = 4
"""Numbers of a puzzle that is solved for it: one of five takes twenty times as long as one of four."""

_VERDICTS = tuple(verdict.value for verdict in Verdict)
_NO_EQUATION = b'"equation": null'  # a model's own quotes are escaped in a line, so this is the field


@dataclass
class SampleBook:
    """The samples of a report."""

    methods: list[dict[str, str]] = field(default_factory=list)
    """A label, a mark and where they come from, for each method of each section that has samples."""
    puzzles: list[str] = field(default_factory=list)
    samples: list[tuple[int, int, int, int, str, str]] = field(default_factory=list)
    """Method, puzzle, verdict (places in the lists), tokens, text, canonical equation or nothing."""
    coverage: dict[int, float] = field(default_factory=dict)
    """Share of all solutions that the samples of an evaluation found, by the `id` of the evaluation."""
    num_read: int = 0
    """Rows in all files that were read."""
    problems: list[str] = field(default_factory=list)

    def embedded(self) -> Markup:
        """The samples as JSON for a script element: no character in it can end the element or begin another."""
        data = {
            "methods": self.methods,
            "puzzles": self.puzzles,
            "verdicts": [name.replace("_", " ") for name in _VERDICTS],
            "samples": self.samples,
        }
        text = to_json(data)
        for char in "<>&\u2028\u2029":
            text = text.replace(char, f"\\u{ord(char):04x}")
        return Markup(text)  # noqa: S704


def read_samples(sections: Sequence[Section]) -> SampleBook:
    """Read the sample files of the evaluations that stand for the methods, and of their bases.

    All of them count for the share of solutions found; to look at, there are some of the first seed of each method.
    """
    book = SampleBook()
    num_arms = sum(len(section.arms) for section in sections)
    count = max(2, min(MOST_PUZZLES, MOST_SAMPLES // (SAMPLES_A_PUZZLE * max(1, num_arms))))
    solver = _Solver([member.evaluation for s in sections for arm in s.arms for member in arm.members], book.problems)
    places: dict[str, int] = {}
    for section in sections:
        for arm in section.arms:
            for place, member in enumerate(arm.members):
                wanted = _spread(member.evaluation.puzzles, count) if place == 0 else ()
                found = _measure(member.run, member.evaluation, wanted, book, solver)
                if member.base is not None:
                    _measure(member.run, member.base, (), book, solver)
                if found.kept:
                    _add(book, places, section, arm, member.run, member.evaluation, found)
    return book


def _measure(
    run: RunRecord, evaluation: Evaluation, wanted: Sequence[str], book: SampleBook, solver: _Solver
) -> _Found:
    """Read the samples of an evaluation for what is wanted of them and for the share of solutions found."""
    share = solver.known(evaluation)
    found = _Found() if share is not None and not wanted else _read_file(run, evaluation, set(wanted), book)
    if share is None and found.is_whole:
        share = solver.coverage(evaluation, found.equations)
    if share is not None:
        book.coverage[id(evaluation)] = share
    return found


@dataclass
class _Found:
    """What a file of samples holds."""

    num_rows: int = 0
    is_whole: bool = False
    """Whether the file was there and could be read to its end."""
    equations: dict[str, set[str]] = field(default_factory=dict)
    """Distinct right equations by puzzle."""
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows to look at by puzzle."""


def _read_file(run: RunRecord, evaluation: Evaluation, wanted: Collection[str], book: SampleBook) -> _Found:
    found = _Found()
    bad = 0
    lines = gzip_lines(samples_path(evaluation_path(run.path, evaluation.step)))
    try:
        for line in lines:
            found.num_rows += 1
            if not wanted and _NO_EQUATION in line:
                continue  # nine of ten rows, when many files are read
            row = _row(line)
            if row is None:
                bad += 1
                continue
            if row["equation"]:
                found.equations.setdefault(row["puzzle"], set()).add(row["equation"])
            if row["puzzle"] in wanted:
                _keep(found.kept.setdefault(row["puzzle"], []), row)
        expected = evaluation.num_samples * len(evaluation.puzzles)
        found.is_whole = not bad and found.num_rows == expected
        if found.num_rows != expected:
            book.problems.append(
                f"{run.name}: there are {found.num_rows} samples of the evaluation at step {evaluation.step}, not "
                f"{expected} as there should be."
            )
    except FileNotFoundError:
        return found
    except (OSError, EOFError, ValueError, zlib.error):
        book.problems.append(
            f"{run.name}: the samples of the evaluation at step {evaluation.step} cannot be read beyond the first "
            f"{found.num_rows}."
        )
    if bad:
        book.problems.append(
            f"{run.name}: {bad} of {found.num_rows} samples of the evaluation at step {evaluation.step} are no "
            "samples of this version of nsr, so they are left out."
        )
    book.num_read += found.num_rows
    return found


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    equation = row.get("equation")
    sound = (
        isinstance(row.get("puzzle"), str)
        and PUZZLE_KEY.fullmatch(row["puzzle"]) is not None
        and isinstance(row.get("text"), str)
        and row.get("verdict") in _VERDICTS
        and isinstance(row.get("tokens"), int)
        and (equation is None or isinstance(equation, str))
    )
    return {**row, "equation": equation} if sound else None


def _keep(kept: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Keep a row, in place of one whose verdict is there twice if all places are taken and its own is new."""
    if len(kept) < SAMPLES_A_PUZZLE:
        kept.append(row)
        return
    counts = Counter(other["verdict"] for other in kept)
    if row["verdict"] not in counts:
        twice = [index for index, other in enumerate(kept) if counts[other["verdict"]] > 1]
        if twice:
            kept[twice[-1]] = row


def _add(
    book: SampleBook,
    places: dict[str, int],
    section: Section,
    arm: Arm,
    run: RunRecord,
    evaluation: Evaluation,
    found: _Found,
) -> None:
    label = f"{arm.method.label} ({section.title})" if section.title else arm.method.label
    source = f"{run.name}, step {evaluation.step}"
    book.methods.append({"label": label, "mark": mark(arm.method), "source": source})
    for key in found.kept:
        if key not in places:
            places[key] = len(book.puzzles)
            book.puzzles.append(_shown_puzzle(key))
        for row in found.kept[key]:
            verdict = _VERDICTS.index(row["verdict"])
            equation = shown_text(row["equation"] or "")
            book.samples.append(
                (len(book.methods) - 1, places[key], verdict, row["tokens"], shown_text(row["text"]), equation)
            )


def shown_text(text: str) -> str:
    """What a page shows of a model's text: controls as escapes, and of a long one the start and the end."""
    visible = printable(_shortened(text, SHOWN_START, SHOWN_END)).plain
    return _shortened(visible, 2 * SHOWN_START, 2 * SHOWN_END)  # escapes make it longer


def _shortened(text: str, start: int, end: int) -> str:
    left_out = len(text) - start - end
    if left_out <= 0:
        return text
    return f"{text[:start]}\n[... {left_out:,} characters left out ...]\n{text[-end:]}"


def _shown_puzzle(key: str) -> str:
    numbers, _, target = key.partition("=")
    return f"{numbers.replace(',', ' ')} → {target}"


def _spread(keys: Sequence[str], count: int) -> list[str]:
    """`count` of the keys, evenly over all of them; no chance in it."""
    if len(keys) <= count:
        return list(keys)
    return [keys[index * len(keys) // count] for index in range(count)]


class _Solver:
    """Share of the solutions that were found; each puzzle is solved once, and equal evaluations are measured once."""

    def __init__(self, evaluations: Sequence[Evaluation], problems: list[str]) -> None:
        keys = {key for puzzles in {evaluation.puzzles for evaluation in evaluations} for key in puzzles}
        largest = max((key.count(",") + 1 for key in keys), default=0)
        self._possible = len(keys) <= MOST_SOLVED and largest <= MOST_NUMBERS
        self._solutions: dict[str, frozenset[str]] = {}
        self._known: dict[Hashable, float] = {}
        if not self._possible and any(evaluation.coverage is None for evaluation in evaluations):
            why = f"there are {len(keys)} puzzles" if len(keys) > MOST_SOLVED else f"some have {largest} numbers"
            problems.append(f"The share of solutions found is left out where no evaluation holds it, since {why}.")

    def known(self, evaluation: Evaluation) -> float | None:
        """What the evaluation itself says, or what was found for one with the same samples."""
        return number(evaluation.coverage) if evaluation.coverage is not None else self._known.get(_luck(evaluation))

    def coverage(self, evaluation: Evaluation, equations: Mapping[str, Collection[str]]) -> float | None:
        """Mean over puzzles of the share of solutions among `equations`."""
        if not self._possible:
            return None
        shares = [
            len(solutions.intersection(equations.get(key, ()))) / len(solutions)
            for key in evaluation.puzzles
            if (solutions := self._solve(key))
        ]
        if not shares:
            return None
        self._known[_luck(evaluation)] = math.fsum(shares) / len(shares)
        return self._known[_luck(evaluation)]

    def _solve(self, key: str) -> frozenset[str]:
        if key not in self._solutions:
            try:
                self._solutions[key] = frozenset(solve(Puzzle.from_key(key)))
            except ValueError:  # a key that is none
                self._solutions[key] = frozenset()
        return self._solutions[key]


def _luck(evaluation: Evaluation) -> Hashable:
    """Equal for evaluations with the same samples: those of one model with the same random streams."""
    settings = (evaluation.seed, evaluation.temperature, evaluation.max_tokens, evaluation.num_samples)
    return (*settings, evaluation.puzzles, evaluation.num_correct, evaluation.response_length, evaluation.entropy)
