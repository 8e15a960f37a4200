"""The collapse watch: is a run worse than it was, by more than the noise of its batches and by enough to matter?

The last 4 steps, and the last 8, are compared with that earlier stretch in which the accuracy was highest. Every
metric that is looked at has a standard error beside it (`correct_ratio_se`), from the differences between the groups of
the step: so the noise is known from the first step on, and need not be guessed from a history that may be falling
already.

What it says follows from the lines of metrics.jsonl alone: a run that is taken up, or read later, gets the same words.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsr.runs.errors import StoppedRun

STRETCHES = (4, 8)
"""Steps that are looked at together: few see a collapse at once, more of them one that little is known of a step."""
STANDARD_ERRORS = 5.0
"""How far apart two stretches must be, in standard errors of their difference. docs/reliability.md has the odds."""
FEWEST_GROUPS = 8
"""Puzzles a step below which the standard errors of two stretches are too uncertain themselves: then it is silent."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A metric that is looked at, and how much of a change matters."""

    kind: str
    name: str
    """In metrics.jsonl; its standard error is `name` + "_se"."""
    text: str
    form: str
    low: float
    """Below this part of what it was it has collapsed."""
    high: float | None = None
    """Above this multiple of what it was it has collapsed."""
    is_fault: bool = False
    """It is a share of faults: compared is what it leaves of 1."""


QUANTITIES = (
    Quantity(kind="accuracy", name="correct_ratio", text="accuracy", form=".1%", low=2 / 3),
    Quantity(kind="entropy", name="entropy", text="entropy", form=".3f", low=1 / 2, high=3 / 2),
    Quantity(kind="length", name="response_length", text="response length", form=".1f", low=1 / 2, high=3 / 2),
    Quantity(
        kind="truncation", name="truncation", text="share of responses that end", form=".1%", low=2 / 3, is_fault=True
    ),
)


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One thing that collapsed, at the step where it was first seen."""

    step: int
    kind: str
    reason: str
    """One clause: what it was, what it is, and how certain that is."""

    def to_event(self) -> dict[str, object]:
        """The line of events.jsonl."""
        return {"step": self.step, "event": "collapse", "kind": self.kind, "reason": self.reason}


class CollapsedRun(StoppedRun):
    """`--stop_on_collapse` has ended the run."""

    status = 3


@dataclass(frozen=True)
class _Stretch:
    """Mean and standard error of each quantity over some steps; None where a step lacks one of them."""

    first: int
    last: int
    values: tuple[tuple[float, float] | None, ...]

    @property
    def accuracy(self) -> float:
        return self.values[0][0] if self.values[0] is not None else -math.inf


class CollapseWatch:
    """Looks at each step's metrics as they come, and tells each kind of collapse once."""

    def __init__(self, groups: int) -> None:
        """Watch a run with that many puzzles a step."""
        self.alarms: list[Alarm] = []
        self._looks = [_Look(size) for size in STRETCHES] if groups >= FEWEST_GROUPS else []

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Look at the steps that an earlier start of the run made."""
        for record in records:
            self.look(record)

    def look(self, record: Mapping[str, Any]) -> list[Alarm]:
        """Look at the next step's metrics; gives what has collapsed now and had not before."""
        new: list[Alarm] = []
        for alarm in [alarm for look in self._looks for alarm in look.at(record)]:
            if alarm.kind not in {known.kind for known in self.alarms}:
                self.alarms.append(alarm)
                new.append(alarm)
        return new


class _Look:
    """The latest stretch of some size beside the best one before it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._latest: deque[Mapping[str, Any]] = deque(maxlen=2 * size)
        self._best: _Stretch | None = None

    def at(self, record: Mapping[str, Any]) -> list[Alarm]:
        self._seen += 1
        self._latest.append(record)
        if self._seen < 2 * self._size:
            return []
        latest = list(self._latest)
        if self._seen % self._size == 0:
            before = _stretch(latest[: self._size])
            if self._best is None or before.accuracy > self._best.accuracy:
                self._best = before
        assert self._best is not None
        return list(_compare(self._best, _stretch(latest[self._size :])))


def _stretch(records: Sequence[Mapping[str, Any]]) -> _Stretch:
    return _Stretch(
        first=records[0]["step"],
        last=records[-1]["step"],
        values=tuple(_mean(records, quantity) for quantity in QUANTITIES),
    )


def _mean(records: Sequence[Mapping[str, Any]], quantity: Quantity) -> tuple[float, float] | None:
    values: list[Any] = [record.get(quantity.name) for record in records]
    errors: list[Any] = [record.get(f"{quantity.name}_se") for record in records]
    if not all(is_number(value) for value in (*values, *errors)):
        return None
    mean = math.fsum(values) / len(values)
    return 1.0 - mean if quantity.is_fault else mean, math.hypot(*errors) / len(errors)


def is_number(value: object) -> bool:
    """Whether a value of metrics.jsonl can be calculated with."""
    return isinstance(value, float) and math.isfinite(value)


def _compare(best: _Stretch, now: _Stretch) -> Iterator[Alarm]:
    for quantity, before, after in zip(QUANTITIES, best.values, now.values, strict=True):
        if before is None or after is None:
            continue
        (old, old_error), (new, new_error) = before, after
        matters = new < quantity.low * old or (quantity.high is not None and new > quantity.high * old)
        # Where little is right, the error of how much seems small too: that of the better stretch is the least.
        error = math.hypot(old_error, max(old_error, new_error))
        if not matters or abs(new - old) < STANDARD_ERRORS * error:
            continue
        certain = f"{abs(new - old) / error:.1f} standard errors away" if error > 0 else "with no spread at all"
        yield Alarm(
            step=now.last,
            kind=quantity.kind,
            reason=(
                f"{quantity.text} {new:{quantity.form}} in steps {now.first} to {now.last}, against "
                f"{old:{quantity.form}} in steps {best.first} to {best.last}, where accuracy was best: {certain}"
            ),
        )
