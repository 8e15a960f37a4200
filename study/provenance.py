"""How the results came about: runs, rates, commits, hours, and what the model had met before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nsr.evaluation.compare import Interval
from nsr.evaluation.probe import NUM_PUZZLES
from study import numbers
from study.choice import score
from study.figures import label
from study.hypotheses import Outcome
from study.keep import Kept, KeptTraining
from study.numbers import LARGE_K, models_of, passed
from study.runs import METHODS, RATES
from study.sets import BIG, WIDE


class Provenance(Outcome):
    """What the write-up says of the runs themselves."""

    def seeds(self) -> int:
        """How many trainings each method of the comparison has."""
        return len(models_of(self.wide, self.methods[0]))

    def of_part(self, part: str) -> list[KeptTraining]:
        """The trainings of a part."""
        return [one for one in self.trainings.values() if one.part == part]

    def tested(self) -> list[Kept]:
        """Every measurement on a test set."""
        return [one for measured in (self.big, self.wide, *self.others.values()) for one in measured.values()]

    def commits(self, made: Sequence[Kept | KeptTraining]) -> str:
        """The commits that made them, shortened, and how many of them each; with a + where files were changed."""
        counts = Counter(f"{one.commit[:7]}{'+' if one.commit.endswith('+') else ''}" for one in made)
        return ", ".join(f"`{name}` ({count})" for name, count in counts.items())

    def probe_size(self) -> int:
        """Puzzles of the probe that the divergence from base is taken on."""
        return NUM_PUZZLES

    def single_solution(self) -> int:
        """Puzzles of the large set with one solution."""
        return self.sets[BIG.name].solutions.count(1)

    def met(self) -> list[dict[str, Any]]:
        """Of every test set that was measured, how many puzzles the model had met in its warm start and in training."""
        places = self.overlap["sets"] if self.overlap else {}
        known = {BIG: self.big, WIDE: self.wide, **self.others}
        return [
            {
                "title": one.title,
                "count": one.num_puzzles,
                "warm_start": len(places[one.name]["warm_start"]),
                "training": len(places[one.name]["training"]),
            }
            for one, measured in known.items()
            if one.name in places and measured
        ]

    def unmet(self, method: str) -> tuple[Interval, Interval]:
        """As `primary`, over the puzzles that the model had not met before."""
        assert self.overlap is not None
        found: list[Interval] = []
        for one, measured, k in ((WIDE, self.wide, 1), (BIG, self.big, LARGE_K)):
            chosen_P = np.ones(len(measured["base"].correct), dtype=bool)
            for places in self.overlap["sets"][one.name].values():
                chosen_P[places] = False
            pair = models_of(measured, "base"), models_of(measured, method)
            found.append(numbers.difference(*pair, numbers.of_puzzles(chosen_P, passed(k))).interval)
        return found[0], found[1]

    def num_steps(self) -> int:
        """Of a training."""
        return len(next(iter(self.trainings.values())).metrics["correct_ratio"])

    def base_truncated(self) -> float:
        """Share of base's samples that are cut off."""
        return numbers.truncated(models_of(self.wide, "base"))

    def unsolved(self) -> int:
        """Puzzles of the large set that base never solves."""
        return self.base[0].correct.count(0)

    def evaluations(self) -> int:
        """How many there were."""
        return len(self.dev) + len(self.tested())

    def hours(self) -> tuple[float, float]:
        """Hours of all trainings and of all evaluations, each as one process had them."""
        evaluations = [*self.dev.values(), *self.tested()]
        return (
            sum(one.seconds for one in self.trainings.values()) / 3600,
            sum(one.seconds for one in evaluations) / 3600,
        )

    def runs(self) -> list[dict[str, Any]]:
        """Every training: what it was, and its accuracy where it was measured."""
        rows: list[dict[str, Any]] = []
        for one in self.trainings.values():
            measured = (self.dev if one.part == "tries" else self.wide).get(one.name)
            rows.append(
                {
                    "training": one,
                    "accuracy": "" if measured is None else str(numbers.level([measured], passed(1))),
                    "last": float(np.mean(one.metrics["correct_ratio"][-10:])),
                }
            )
        return rows

    def rate_table(self) -> list[dict[str, Any]]:
        """The criterion of every try, and what was chosen."""
        scores = {(one["method"], one["rate"]): one["criterion"] for one in self.tries}
        return [
            {
                "name": label(method.name),
                "cells": [
                    f"**{100 * scores[method.name, rate]:.1f}**"
                    if rate == self.rates[method.name]
                    else f"{100 * scores[method.name, rate]:.1f}"
                    for rate in RATES
                ],
            }
            for method in METHODS
        ]

    def base_criterion(self) -> float:
        """What the rates are chosen by, of base: a try below it did harm."""
        return score(self.dev["base"])
