"""What is kept of the study, and what became of the hypotheses of docs/results/plan.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsr.evaluation.compare import Interval
from nsr.runs.files import read_json
from study import numbers
from study.keep import KeptSet, KeptTraining, read_answers, read_kept, read_sets, read_trainings
from study.numbers import LARGE_K, NUM_RIGHT, Call, models_of, passed
from study.runs import METHODS, SEEDS
from study.sets import BIG, DEV, FAR, FIVE, REAL, REAL_DEV_LONG, REAL_LONG, WIDE

VOCABULARY = 103
"""Of the embedded model: what its tokens' entropies are divided by to be shares."""

_ENDS: dict[Call, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "open": ("stays open", "stay open"),
}


class Outcome:
    """The data, and the plan's comparisons on them."""

    def __init__(self, data: Path) -> None:
        """Read the files. Raises ValueError where one is damaged, or the test sets were not measured yet."""
        self.sets: Mapping[str, KeptSet] = read_sets(data)
        self.dev, self.big, self.wide = (read_kept(data, one) for one in (DEV, BIG, WIDE))
        self.others = {one: read_kept(data, one) for one in (REAL, FIVE, FAR)}
        self.trainings: Mapping[str, KeptTraining] = read_trainings(data)
        self.answers = read_answers(data)
        overlap = data / "overlap.json"
        self.overlap: dict[str, Any] | None = read_json(overlap) if overlap.exists() else None
        self.rates: dict[str, float] = read_json(data / "rates.json")["chosen"]
        self.tries: list[dict[str, Any]] = read_json(data / "rates.json")["tries"]
        for one, measured in ((BIG, self.big), (WIDE, self.wide)):
            needed = {"base", *(f"{method.name}_seed{seed}" for method in METHODS for seed in SEEDS)}
            needed |= {model.model for model in self.big.values() if model.method == "base"}
            if missing := sorted(needed - measured.keys()):
                raise ValueError(
                    f"{data} holds no measurement of {missing[0]} on {one.name} ({len(missing)} are missing): "
                    "`make study` makes them."
                )
        self.best = {one.title: read_kept(data / "best", one) for one in (REAL_DEV_LONG, REAL_LONG)}
        self.methods = [method.name for method in METHODS]
        self.base = models_of(self.big, "base")

    # The hypotheses of the plan.

    def primary(self, method: str) -> tuple[Interval, Interval]:
        """A method's difference from base at k = 1 (512 puzzles) and at the largest k (128 puzzles)."""
        return self.against(method, "base")

    def against(self, method: str, other: str) -> tuple[Interval, Interval]:
        """As `primary`, the difference from another method, paired by seed."""
        ends = ((self.wide, 1), (self.big, LARGE_K))
        one, large = (
            numbers.difference(models_of(measured, other), models_of(measured, method), passed(k)).interval
            for measured, k in ends
        )
        return one, large

    def entropy_difference(self, before: str = "NSR", after: str = "PSR") -> Interval:
        """After - before in entropy of a token, in nats: mean over puzzles."""
        old, new = (models_of(self.wide, name) for name in (before, after))
        found = numbers.difference(old, new, numbers.entropy_share(VOCABULARY))
        return _scaled(found.interval, math.log(VOCABULARY))

    def distinct(self, method: str, puzzles: Sequence[int] | None = None) -> Interval:
        """Distinct equations among 8 right samples, over `rich_puzzles` or some of them."""
        chosen = self.rich_puzzles() if puzzles is None else puzzles
        return _scaled(numbers.level(models_of(self.big, method), numbers.rarefied(chosen)), NUM_RIGHT)

    def distinct_difference(
        self, before: str = "NSR", after: str = "PSR", puzzles: Sequence[int] | None = None
    ) -> Interval:
        """After - before in distinct equations among 8 right samples."""
        old, new = (models_of(self.big, name) for name in (before, after))
        chosen = self.rich_puzzles() if puzzles is None else puzzles
        return _scaled(numbers.difference(old, new, numbers.rarefied(chosen)).interval, NUM_RIGHT)

    def rich_puzzles(self) -> list[int]:
        """Puzzles of the large set with 8 right samples or more from every model of the comparison."""
        return numbers.with_enough([*self.base, *(one for name in self.methods for one in models_of(self.big, name))])

    def many_solutions(self) -> list[int]:
        """Those of `rich_puzzles` with more than one solution: only there can diversity be lost."""
        solutions = self.sets[BIG.name].solutions
        return [index for index in self.rich_puzzles() if solutions[index] > 1]

    def call_h1(self) -> Call:
        """NSR is not below base, and above it at k = 1."""
        one, large = self.primary("NSR")
        return numbers.together([numbers.not_below(one), numbers.not_below(large), numbers.above(one)])

    def call_h2(self) -> Call:
        """PSR is above base at k = 1 and below it at the largest k."""
        one, large = self.primary("PSR")
        return numbers.together([numbers.above(one), numbers.opposite(numbers.above(large))])

    def call_h3(self) -> Call:
        """PSR has less entropy and diversity than NSR."""
        both = (self.entropy_difference(), self.distinct_difference())
        return numbers.together([numbers.opposite(numbers.above(one)) for one in both])

    def call_h4(self) -> Call:
        """W-REINFORCE at 0.1 is below none of the others."""
        pairs = [self.against("W_REINFORCE_0.1", other) for other in ("RLVR", "PSR", "NSR")]
        return numbers.together([numbers.not_below(one) for pair in pairs for one in pair])

    def in_words(self) -> str:
        """What became of the hypotheses, those with the same end together."""
        calls = {"H1": self.call_h1(), "H2": self.call_h2(), "H3": self.call_h3(), "H4": self.call_h4()}
        found: list[str] = []
        for call, (one, several) in _ENDS.items():
            names = [name for name, of in calls.items() if of == call]
            if names:
                found.append(f"{' and '.join(names)} {one if len(names) == 1 else several}")
        return ", ".join(found)


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(*(factor * value for value in interval))
