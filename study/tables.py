"""Every table of the write-up, worked out from what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nsr.evaluation.evaluate import operations_needed
from nsr.tasks.countdown.puzzle import Puzzle
from study import numbers
from study.figures import label
from study.keep import Kept
from study.numbers import LARGE_K, LARGE_K_VALUES, SMALL_K, Difference, models_of, passed
from study.provenance import Provenance
from study.runs import EQUAL_RATE
from study.sets import BIG, WIDE

FEW_K = 4
"""Largest k of the sets of 8 samples."""
_SHOWN_ANSWERS = 6
_ENDS = (slice(0, 10), slice(-10, None))
"""The first and the last steps of a training: ten, of which one alone says little."""


class Results(Provenance):
    """Everything that the templates ask for."""

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

    def crossing(self, method: str) -> int | None:
        """The smallest k (1, 2, 4, ...) of the large set at which a method is not above base; None if it always is."""
        differences = numbers.curve_differences(self.base, models_of(self.big, method), LARGE_K_VALUES)
        below = (k for k, one in zip(LARGE_K_VALUES, differences, strict=True) if one.estimate <= 0)
        return next(below, None)

    def other_sets(self) -> list[dict[str, Any]]:
        """Every method on the sets beside the synthetic ones; differences marked over the whole table."""
        known = {one.title: measured for one, measured in self.others.items() if "base" in measured}
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
        return [
            f"{one.title}, pass@{k}"
            for one, measured in self.others.items()
            if "base" in measured
            for k in (1, SMALL_K)
        ]

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
                    "of_many": self.distinct(name, self.many_solutions()),
                    "found": numbers.level(models_of(self.big, name), numbers.found(self.sets[BIG.name])),
                    "kl": self._kl(name),
                    "verdicts": [
                        numbers.verdict_share(wide, verdict)
                        for verdict in ("no_answer", "malformed", "wrong_numbers", "division_by_zero", "wrong_value")
                    ],
                }
            )
        return rows

    def by_kind(self) -> list[dict[str, Any]]:
        """Accuracy on puzzles of 3 and of 4 numbers, and of those that need sums alone and that need more."""
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
                    numbers.level(models_of(self.wide, name), numbers.of_puzzles(chosen_P, passed(1)))
                    for name in ("base", *self.methods)
                ],
            }
            for title, chosen_P in parts.items()
        ]

    def ends_by_size(self) -> list[dict[str, Any]]:
        """Changes from base at both ends of k, of 3 and of 4 numbers apart; marked over the whole table."""
        parts = [
            (f"{size} numbers, pass@{k}", measured, k, np.array(self.sets[one.name].sizes) == size)
            for size in (3, 4)
            for one, measured, k in ((WIDE, self.wide, 1), (BIG, self.big, LARGE_K))
        ]
        marks = marked(
            {
                (title, name): numbers.difference(
                    models_of(measured, "base"), models_of(measured, name), numbers.of_puzzles(chosen_P, passed(k))
                )
                for title, measured, k, chosen_P in parts
                for name in self.methods
            }
        )
        return [
            {
                "name": title,
                "count": int(chosen_P.sum()),
                "base": numbers.level(models_of(measured, "base"), numbers.of_puzzles(chosen_P, passed(k))),
                "of": {name: marks[title, name] for name in self.methods},
            }
            for title, measured, k, chosen_P in parts
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

    def beside_heated(self) -> list[dict[str, Any]]:
        """Every method beside base at the temperature whose entropy is nearest to its own; marked over the table."""
        bases = [one for one in self.wide.values() if one.method == "base"]
        nearest = {
            name: min(bases, key=lambda one: abs(numbers.entropy([one]) - numbers.entropy(models_of(self.wide, name))))
            for name in self.methods
        }
        ends = ((self.wide, 1), (self.wide, SMALL_K), (self.big, LARGE_K))
        marks = marked(
            {
                (name, k): numbers.difference([measured[base.model]], models_of(measured, name), passed(k))
                for name, base in nearest.items()
                for measured, k in ends
            }
        )
        return [
            {
                "name": label(name),
                "entropy": numbers.entropy(models_of(self.wide, name)),
                "temperature": base.temperature,
                "cells": [marks[name, k] for _, k in ends],
            }
            for name, base in nearest.items()
        ]

    def kept_only(self) -> list[dict[str, Any]]:
        """The methods averaged over what is kept, beside base and beside themselves averaged over all."""
        of_method = {name: models_of(self.wide, name, "kept") for name in self.methods}
        return self._beside(of_method, {name: self._seeds_of(name, models) for name, models in of_method.items()})

    def equal_rate(self) -> list[dict[str, Any]]:
        """All methods at one rate, beside base and beside SHUFFLED: those that have that rate anyway, and own runs."""
        own = {name: models_of(self.wide, name, "equal") for name in self.methods}
        some = next((models for models in own.values() if models), [])
        of_method = {
            name: own[name] if self.rates[name] != EQUAL_RATE else self._seeds_of(name, some) for name in self.methods
        }
        return self._beside(of_method, dict.fromkeys(set(self.methods) - {"SHUFFLED"}, of_method["SHUFFLED"]))

    def _seeds_of(self, method: str, others: Sequence[Kept]) -> list[Kept]:
        """The models of the comparison with the seeds of `others`."""
        seeds = {one.seed for one in others}
        return [one for one in models_of(self.wide, method) if one.seed in seeds]

    def _beside(self, of_method: Mapping[str, list[Kept]], others: Mapping[str, list[Kept]]) -> list[dict[str, Any]]:
        """A table beside the comparison, of the methods that have models; differences marked over all of it."""
        known = {name: models for name, models in of_method.items() if models}
        base = models_of(self.wide, "base")
        differences = {
            (name, k): numbers.difference(base, models, passed(k))
            for name, models in known.items()
            for k in (1, SMALL_K)
        }
        differences |= {
            (name, "other"): numbers.difference(others[name], models, passed(1))
            for name, models in known.items()
            if name in others
        }
        marks = marked(differences)
        return [
            {
                "name": label(name),
                "rate": models[0].rate,
                "seeds": len(models),
                "one": numbers.level(models, passed(1)),
                "changes": [marks.get((name, which), "") for which in (1, "other", SMALL_K)],
                "entropy": numbers.entropy(models),
            }
            for name, models in known.items()
        ]

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
            if (trained := [one for one in self.of_part("main") if one.method == method])
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
                    "distinct": [
                        float(np.mean([len(answers[key]) for answers in of_method[name]]))
                        for name in ("base", "PSR", "NSR")
                    ],
                }
            )
        return tables

    def _kl(self, method: str) -> float | None:
        """KL(base || policy) in nats a token at the end of training: mean over seeds."""
        of_method = [one for one in self.of_part("main") if one.method == method]
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
