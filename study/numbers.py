"""What is kept -> the numbers of the write-up: intervals, paired differences, and what the plan calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nsr.evaluation.compare import Interval
from nsr.evaluation.diversity import rarefied_distinct
from nsr.evaluation.methods import (
    holm,
    method_difference,
    method_differences,
    method_interval,
    method_intervals,
    method_p_value,
)
from nsr.evaluation.pass_at_k import pass_at_k
from study.keep import Kept, KeptSet

Array = NDArray[np.float64]
Values = Callable[[Kept], Array]
"""One share for each puzzle of a set."""

MARGIN = 0.02
"""What "not below" allows, as the plan says."""
SMALL_K, LARGE_K = 16, 256
"""Largest k of the sets of 32 and of 512 samples: half the samples."""
LARGE_K_VALUES = [1 << exponent for exponent in range(LARGE_K.bit_length())]
"""1, 2, 4, ..., 256."""
NUM_RIGHT = 8
"""Right samples of a puzzle among which distinct equations are counted."""

Call = Literal["holds", "fails", "open"]


def models_of(measured: Mapping[str, Kept], method: str, part: str = "main") -> list[Kept]:
    """The models of a method, by seed; base alone where that is asked for."""
    if method == "base":
        return [measured["base"]]
    found = [one for one in measured.values() if one.method == method and one.part == part]
    return sorted(found, key=lambda one: (one.seed or 0, one.rate or 0.0))


def passed(k: int) -> Values:
    """pass@k of each puzzle."""
    return lambda one: pass_at_k(one.num_samples, np.array(one.correct), np.full(len(one.correct), k))


def greedy(one: Kept) -> Array:
    """Whether temperature 0 is right."""
    return np.array(one.greedy, dtype=np.float64)


def found(kept_set: KeptSet) -> Values:
    """Share of a puzzle's solutions that its samples found."""
    return lambda one: np.array([len(counts) for counts in one.equations]) / np.array(kept_set.solutions)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one method differs from another on a set, with what is needed to read many of them together."""

    interval: Interval
    p_value: float


def level(models: Sequence[Kept], values: Values) -> Interval:
    """The mean of a method over its seeds and the puzzles."""
    arrays = [values(one) for one in models]
    return method_interval(arrays, _keys(arrays))


def curve(models: Sequence[Kept], k_values: Sequence[int]) -> list[Interval]:
    """pass@k of a method at each k."""
    arrays = [_curve(one, k_values) for one in models]
    return method_intervals(arrays, _keys(arrays))


def curve_differences(before: Sequence[Kept], after: Sequence[Kept], k_values: Sequence[int]) -> list[Interval]:
    """How pass@k differs at each k. Raises ValueError as `difference`."""
    pairs = _paired(before, after)
    old, new = ([_curve(one, k_values) for one in models] for models in pairs)
    return method_differences(old, new, _keys(new))


def difference(before: Sequence[Kept], after: Sequence[Kept], values: Values) -> Difference:
    """After - before, paired by puzzle and by seed; base, which has none, stands beside every seed.

    Raises:
        ValueError: the two were not measured with the same seeds.
    """
    old, new = ([values(one) for one in models] for models in _paired(before, after))
    keys = _keys(new)
    return Difference(interval=method_difference(old, new, keys), p_value=method_p_value(old, new, keys))


def of_puzzles(chosen_P: NDArray[np.bool_], values: Values) -> Values:
    """The same values of some of the puzzles."""
    return lambda one: values(one)[chosen_P]


def adjusted(differences: Sequence[Difference]) -> list[float]:
    """Their p-values by Holm's correction over all of them."""
    return holm([one.p_value for one in differences])


def entropy(models: Sequence[Kept]) -> float:
    """Mean entropy of a sampled token in nats, over all tokens; mean over seeds."""
    return _mean([math.fsum(one.nats) / sum(one.tokens) for one in models])


def entropy_share(vocabulary: int) -> Values:
    """Mean entropy of a token of each puzzle, as a share of the most that it could be."""
    return lambda one: np.array(one.nats) / np.array(one.tokens) / math.log(vocabulary)


def length(models: Sequence[Kept]) -> float:
    """Mean number of tokens of a response."""
    return _mean([sum(one.tokens) / (one.num_samples * len(one.tokens)) for one in models])


def verdict_share(models: Sequence[Kept], *names: str) -> float:
    """Share of the samples with one of the verdicts."""
    return _mean([sum(one.verdicts[name] for name in names) / sum(one.verdicts.values()) for one in models])


def truncated(models: Sequence[Kept]) -> float:
    """Share of the samples that were cut off."""
    return _mean([one.truncated / (one.num_samples * len(one.tokens)) for one in models])


def well_formed_accuracy(models: Sequence[Kept]) -> float:
    """Right samples among those whose answer follows the grammar."""
    shares = [
        one.verdicts["correct"] / (sum(one.verdicts.values()) - one.verdicts["no_answer"] - one.verdicts["malformed"])
        for one in models
    ]
    return _mean(shares)


def rarefied(puzzles: Sequence[int]) -> Values:
    """Distinct equations among `NUM_RIGHT` right samples of each of `puzzles`, as a share of them."""
    return lambda one: np.array(
        [rarefied_distinct(one.equations[index], NUM_RIGHT) / NUM_RIGHT for index in puzzles], dtype=np.float64
    )


def with_enough(models: Sequence[Kept]) -> list[int]:
    """Puzzles to which every model has `NUM_RIGHT` right samples or more."""
    least_P = np.min([one.correct for one in models], axis=0)
    return np.flatnonzero(least_P >= NUM_RIGHT).tolist()


def not_below(interval: Interval) -> Call:
    """Whether a difference is above the margin for all that the data say, below it, or neither."""
    return "holds" if interval.low > -MARGIN else "fails" if interval.high < -MARGIN else "open"


def above(interval: Interval) -> Call:
    """Whether a difference is above 0, below it, or neither."""
    return "holds" if interval.low > 0 else "fails" if interval.high < 0 else "open"


def opposite(call: Call) -> Call:
    """The call on the opposite claim."""
    swapped: dict[Call, Call] = {"holds": "fails", "fails": "holds", "open": "open"}
    return swapped[call]


def together(calls: Sequence[Call]) -> Call:
    """A claim of several parts: it fails with one of them, and holds with all."""
    return "fails" if "fails" in calls else "holds" if all(call == "holds" for call in calls) else "open"


def _curve(one: Kept, k_values: Sequence[int]) -> Array:
    return pass_at_k(one.num_samples, np.array(one.correct)[:, None], np.array(k_values))


def _paired(before: Sequence[Kept], after: Sequence[Kept]) -> tuple[Sequence[Kept], Sequence[Kept]]:
    if before[0].method == "base":
        return [before[0]] * len(after), after
    seeds = [[one.seed for one in models] for models in (before, after)]
    if seeds[0] != seeds[1]:
        raise ValueError(
            f"{before[0].method} was measured with the seeds {seeds[0]} and {after[0].method} with {seeds[1]}: "
            "`make study` makes what is missing."
        )
    return before, after


def _keys(arrays: Sequence[Array]) -> list[list[str]]:
    """All models of a set are measured on the same puzzles."""
    return [[str(index) for index in range(len(array))] for array in arrays]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
