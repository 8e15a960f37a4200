"""Every table of the write-up, worked out from what is kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsr.evaluation.compare import Interval
from nsr.evaluation.evaluate import operations_needed
from nsr.runs.files import read_json
from nsr.task.puzzle import Puzzle
from study import numbers
from study.figures import label
from study.keep import Kept, KeptSet, KeptTraining, read_answers, read_kept, read_sets, read_trainings
from study.numbers import LARGE_K, NUM_RIGHT, SMALL_K, Call, Difference, models_of, passed
from study.runs import EQUAL_RATE, METHODS, RATES
from study.sets import BIG, DEV, FAR, FIVE, REAL, REAL_DEV_LONG, REAL_LONG, WIDE

VOCABULARY = 103
"""Of the embedded model: what its tokens' entropies are divided by to be shares."""
FEW_K = 4
"""Largest k of the sets of 8 samples."""
_SHOWN_ANSWERS = 6
_ENDS = (slice(0, 10), slice(-10, None))
"""The first and the last steps of a training: ten, of which one alone says little."""


class Results:
    """Everything that the templates ask for, worked out from what is kept."""

    def __init__(self, data: Path) -> None:
        """Read the files. Raises ValueError where one is damaged, or the test sets were not measured yet."""
        self.sets: Mapping[str, KeptSet] = read_sets(data)
        self.dev, self.big, self.wide = (read_kept(data, one) for one in (DEV, BIG, WIDE))
        self.others = {one.title: read_kept(data, one) for one in (REAL, FIVE, FAR)}
        self.trainings: Mapping[str, KeptTraining] = read_trainings(data)
        self.answers = read_answers(data)
        self.rates: dict[str, float] = read_json(data / "rates.json")["chosen"]
        self.tries: list[dict[str, Any]] = read_json(data / "rates.json")["tries"]
        for one, measured in ((BIG, self.big), (WIDE, self.wide)):
            if "base" not in measured:
                raise ValueError(f"{data} holds no measurement on {one.name} yet: `make study` makes them.")
        self.best = {one.title: read_kept(data / "best", one) for one in (REAL_DEV_LONG, REAL_LONG)}
        self.methods = [method.name for method in METHODS if models_of(self.big, method.name)]
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

    def entropy_difference(self) -> Interval:
        """PSR - NSR in entropy of a token, in nats: mean over puzzles."""
        found = numbers.difference(
            models_of(self.wide, "NSR"),
            models_of(self.wide, "PSR"),
            lambda one: numbers.entropy_share(one, VOCABULARY),
        )
        return Interval(*(value * math.log(VOCABULARY) for value in found.interval))

    def distinct(self, method: str) -> Interval:
        """Distinct equations among 8 right samples, over `rich_puzzles`."""
        return Interval(*(NUM_RIGHT * value for value in self._distinct_level(method)))

    def distinct_difference(self) -> Interval:
        """PSR - NSR in distinct equations among 8 right samples."""
        puzzles = self.rich_puzzles()
        old, new = (numbers.rarefied(models_of(self.big, name), puzzles) for name in ("NSR", "PSR"))
        found = numbers.differences_of(old, new)
        return Interval(*(NUM_RIGHT * value for value in found.interval))

    def rich_puzzles(self) -> list[int]:
        """Puzzles of the large set with 8 right samples or more from every model of the comparison."""
        return numbers.with_enough([*self.base, *(one for name in self.methods for one in models_of(self.big, name))])

    def _distinct_level(self, method: str) -> Interval:
        return numbers.level_of(numbers.rarefied(models_of(self.big, method), self.rich_puzzles()))

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

    def calls(self) -> list[Call]:
        """What became of the four hypotheses."""
        return [self.call_h1(), self.call_h2(), self.call_h3(), self.call_h4()]

    # Tables.

    def compared(self) -> list[dict[str, Any]]:
        """Base and every method: levels and differences at 1 and the largest k, with Holm's marks over the table."""
        rows: list[dict[str, Any]] = []
        places = ((self.wide, 1), (self.wide, SMALL_K), (self.big, LARGE_K))
        differences = {
            (name, place): numbers.difference(models_of(measured, "base"), models_of(measured, name), passed(k))
            for name in self.methods
            for place, (measured, k) in enumerate(places)
        }
        marks = marked(differences)
        for name in ("base", *self.methods):
            levels = [numbers.level(models_of(measured, name), passed(k)) for measured, k in places]
            changes = ["" if name == "base" else marks[name, place] for place in range(len(places))]
            rows.append(
                {"name": label(name), "cells": [cell for pair in zip(levels, changes, strict=True) for cell in pair]}
            )
        return rows

    def other_sets(self) -> list[dict[str, Any]]:
        """Every method on the sets beside the synthetic ones; differences marked over the whole table."""
        known = {title: measured for title, measured in self.others.items() if "base" in measured}
        places = [(title, k) for title in known for k in (1, SMALL_K)]
        differences = {
            (name, title, k): numbers.difference(
                models_of(known[title], "base"), models_of(known[title], name), passed(k)
            )
            for name in self.methods
            for title, k in places
            if models_of(known[title], name)
        }
        marks = marked(differences)
        return [
            {
                "name": label(name),
                "cells": [
                    numbers.level(models_of(known[title], name), passed(k)) if name == "base" else marks[name, title, k]
                    for title, k in places
                ],
            }
            for name in ("base", *self.methods)
        ]

    def other_titles(self) -> list[str]:
        """Heads of the columns of `other_sets`."""
        return [f"{title}, pass@{k}" for title, one in self.others.items() if "base" in one for k in (1, SMALL_K)]

    def measures(self) -> list[dict[str, Any]]:
        """What else is known of each method on the synthetic puzzles."""
        rows: list[dict[str, Any]] = []
        for name in ("base", *self.methods):
            wide = models_of(self.wide, name)
            rows.append(
                {
                    "name": label(name),
                    "greedy": numbers.level(wide, numbers.greedy),
                    "well_formed": numbers.well_formed_accuracy(wide),
                    "entropy": numbers.entropy(wide),
                    "length": numbers.length(wide),
                    "truncated": numbers.truncated(wide),
                    "distinct": self.distinct(name),
                    "found": numbers.level(models_of(self.big, name), numbers.found(self.sets[BIG.name])),
                    "kl": self._kl(name),
                    "verdicts": [
                        numbers.verdict_share(wide, verdict)
                        for verdict in ("no_answer", "malformed", "wrong_numbers", "division_by_zero", "wrong_value")
                    ],
                }
            )
        return rows

    def by_size(self) -> list[dict[str, Any]]:
        """Accuracy on puzzles of 3 and of 4 numbers, and those with and without sums alone."""
        kept_set = self.sets[WIDE.name]
        sizes_P = np.array(kept_set.sizes)
        kinds_P = np.array([operations_needed(Puzzle.from_key(key)) for key in kept_set.puzzles])
        parts = {f"{size} numbers": sizes_P == size for size in (3, 4)}
        parts |= {kind: kinds_P == kind for kind in sorted(set(kinds_P.tolist()))}
        return [
            {
                "name": title,
                "count": int(chosen_P.sum()),
                "cells": [
                    numbers.of_puzzles(models_of(self.wide, name), chosen_P, passed(1))
                    for name in ("base", *self.methods)
                ],
            }
            for title, chosen_P in parts.items()
        ]

    def temperatures(self) -> list[dict[str, Any]]:
        """Base at each temperature on the two synthetic sets."""
        bases = sorted((one for one in self.big.values() if one.method == "base"), key=lambda one: one.temperature)
        return [
            {
                "temperature": one.temperature,
                "one": numbers.level([self.wide[one.model]], passed(1)),
                "small": numbers.level([self.wide[one.model]], passed(SMALL_K)),
                "large": numbers.level([one], passed(LARGE_K)),
                "entropy": numbers.entropy([self.wide[one.model]]),
            }
            for one in bases
        ]

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

    def kept_only(self) -> list[dict[str, Any]]:
        """The methods averaged over what is kept."""
        return self._beside({name: models_of(self.wide, name, "kept") for name in self.methods})

    def equal_rate(self) -> list[dict[str, Any]]:
        """All methods at one rate: those that have it anyway, with the same seeds, and the others' own runs."""
        others = {name: models_of(self.wide, name, "equal") for name in self.methods}
        seeds = {one.seed for models in others.values() for one in models}
        return self._beside(
            {
                name: [one for one in models_of(self.wide, name) if one.seed in seeds]
                if self.rates[name] == EQUAL_RATE
                else others[name]
                for name in self.methods
            }
        )

    def _beside(self, of_method: Mapping[str, list[Kept]]) -> list[dict[str, Any]]:
        """A table beside the comparison, of the methods that have models; differences marked over all of it."""
        known = {name: models for name, models in of_method.items() if models}
        base = models_of(self.wide, "base")
        differences = {
            (name, k): numbers.difference(base, models, passed(k))
            for name, models in known.items()
            for k in (1, SMALL_K)
        }
        marks = marked(differences)
        return [
            {
                "name": label(name),
                "rate": models[0].rate,
                "seeds": len(models),
                "one": numbers.level(models, passed(1)),
                "changes": [marks[name, k] for k in (1, SMALL_K)],
                "entropy": numbers.entropy(models),
            }
            for name, models in known.items()
        ]

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

    def beyond(self) -> list[dict[str, Any]]:
        """Base and the model of `study.best` on the public rows; empty where it was not trained."""
        rows: list[dict[str, Any]] = []
        for title, measured in self.best.items():
            for name, one in measured.items():
                old, new = [measured["base"]], [one]
                change = "" if name == "base" else numbers.difference(old, new, passed(1)).interval.points("")
                share = {verdict: numbers.verdict_share(new, verdict) for verdict in ("no_answer", "wrong_value")}
                rows.append(
                    {
                        "set": title,
                        "name": name,
                        "one": numbers.level(new, passed(1)),
                        "change": change,
                        "greedy": numbers.level(new, numbers.greedy),
                        "few": numbers.level(new, passed(FEW_K)),
                        "length": numbers.length(new),
                        **share,
                    }
                )
        return rows

    def over_time(self) -> list[dict[str, Any]]:
        """Each method's rollouts in the first and in the last ten steps: means over seeds."""
        names = ("correct_ratio", "verdict_no_answer", "verdict_wrong_value", "verdict_wrong_numbers", "entropy")
        return [
            {
                "name": label(method),
                **{
                    name: [float(np.mean([np.mean(one.metrics[name][part]) for one in trained])) for part in _ENDS]
                    for name in names
                },
            }
            for method in self.methods
            if (trained := [one for one in self.trainings.values() if (one.method, one.part) == (method, "main")])
        ]

    def mechanism(self) -> list[dict[str, Any]]:
        """For each puzzle looked at, the answers whose share PSR or NSR changed most, with those shares."""
        tables: list[dict[str, Any]] = []
        of_method: dict[str, list[Mapping[str, Mapping[str, int]]]] = {}
        for one in self.answers:
            of_method.setdefault(one.method, []).append(one.answers)
        if not {"base", "PSR", "NSR"} <= of_method.keys():
            return []
        for key in of_method["base"][0]:
            shares = {name: _shares([answers[key] for answers in of_method[name]]) for name in ("base", "PSR", "NSR")}
            change = Counter({answer: 0.0 for counts in shares.values() for answer in counts})
            for answer in change:
                change[answer] = max(abs(shares[name][answer] - shares["base"][answer]) for name in ("PSR", "NSR"))
            shown = [
                answer for answer, _ in sorted(change.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN_ANSWERS]
            ]
            tables.append(
                {
                    "puzzle": Puzzle.from_key(key),
                    "rows": [
                        {
                            "answer": answer,
                            "right": "=" not in answer and any(sign in answer for sign in "+-*/"),
                            "shares": [shares[name][answer] for name in ("base", "PSR", "NSR")],
                        }
                        for answer in sorted(shown, key=lambda answer: (-shares["base"][answer], answer))
                    ],
                    "distinct": [len(shares[name]) for name in ("base", "PSR", "NSR")],
                }
            )
        return tables

    def seeds(self) -> int:
        """How many trainings each method of the comparison has."""
        return len(models_of(self.wide, self.methods[0]))

    def commits(self, part: str) -> str:
        """The commits that made the trainings of a part, shortened."""
        return ", ".join(sorted({one.commit[:7] for one in self.trainings.values() if one.part == part}))

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
        return sum(len(measured) for measured in (self.dev, self.big, self.wide, *self.others.values()))

    def hours(self) -> tuple[float, float]:
        """Hours of all trainings and of all evaluations, each as one process had them."""
        evaluations = [
            one for measured in (self.dev, self.big, self.wide, *self.others.values()) for one in measured.values()
        ]
        return (
            sum(one.seconds for one in self.trainings.values()) / 3600,
            sum(one.seconds for one in evaluations) / 3600,
        )

    def _kl(self, method: str) -> float | None:
        """KL(base || policy) in nats a token at the end of training: mean over seeds."""
        of_method = [one for one in self.trainings.values() if one.method == method and one.part == "main"]
        return float(np.mean([one.mechanism[-1]["kl_base"] for one in of_method])) if of_method else None


def marked(differences: Mapping[Any, Difference]) -> dict[Any, str]:
    """Differences in points, in bold where Holm's correction over all of them leaves a claim."""
    adjusted = numbers.adjusted(list(differences.values()))
    return {
        key: f"**{one.interval.points('')}**" if p < 0.05 and not one.interval.holds_zero else one.interval.points("")
        for (key, one), p in zip(differences.items(), adjusted, strict=True)
    }


def _shares(counts: Sequence[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    number = total.total()
    return Counter({answer: count / number for answer, count in total.items()})
