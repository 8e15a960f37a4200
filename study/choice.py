"""The learning rate of each method, by the criterion of the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nsr.evaluation.pass_at_k import pass_at_k
from study.keep import Kept
from study.runs import METHODS, RATES

CHOICE_K = (1, 2, 4, 8, 16)


class Try(NamedTuple):
    """One method at one rate on the development puzzles."""

    method: str
    rate: float
    criterion: float
    """Mean over `CHOICE_K` of pass@k: every doubling of k weighs the same."""


def score(one: Kept) -> float:
    """The criterion for one measured model."""
    correct_P1 = np.array(one.correct)[:, None]
    passed_PK = pass_at_k(one.num_samples, correct_P1, np.array(CHOICE_K))
    return math.fsum(passed_PK.ravel().tolist()) / passed_PK.size


def all_tries(measured: Mapping[str, Kept]) -> list[Try]:
    """Every try with its score. `measured` holds the development set's models by name."""
    return [
        Try(method.name, rate, score(measured[f"{method.name}_lr{rate:g}"])) for method in METHODS for rate in RATES
    ]


def choose(found: list[Try]) -> dict[str, float]:
    """For each method the rate with the best score; of equal ones the smaller."""
    return {
        method.name: max((one for one in found if one.method == method.name), key=lambda one: one.criterion).rate
        for method in METHODS
    }
