"""Methods measured with several seeds: intervals over seeds and puzzles, and many differences read at once.

A method is more than one model: another seed gives other random numbers in training, other training puzzles, and where
the data depends on the seed, other evaluation puzzles. So seeds and puzzles are both resampled:

- crossed, where all seeds were measured on the same puzzles: seeds are drawn, puzzles are drawn, and every drawn seed
  is read on every drawn puzzle (the pigeonhole bootstrap; Owen 2007, doi:10.1214/07-AOAS122);
- nested, where they were not: seeds are drawn, and then puzzles anew within each drawn seed.

Of S seeds S - 1 are drawn, because the mean of S drawn ones varies by (S - 1) / S of what it should, which is much with
two or three (McCarthy and Snowden 1985, Vital and Health Statistics 2-95). Puzzles are many, so there it is no matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nsr.evaluation.compare import Array, Interval, bootstrap_interval, no_spread, paired_difference, resampled_means
from nsr.evaluation.passk import pass_at_k
from nsr.evaluation.record import Evaluation

Keys = Sequence[Sequence[str]]

_TAIL = 0.025
_ROUNDING = 1e-12


class Comparison(NamedTuple):
    """One difference of several that are read together."""

    difference: Interval
    p_value: float
    adjusted: float
    """The p-value by Holm's correction over all of them."""


def method_interval(values: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of a method over seeds and puzzles with its 95% bootstrap interval.

    The mean is over the seeds' own means. With one seed this is `bootstrap_interval` over its puzzles: how much the
    method changes from seed to seed is then NOT in the interval.

    Args:
        values: one array for each seed, with one share (for instance pass@k) for each of its puzzles.
        keys: the puzzles' canonical keys, as `values`.
        num_resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: there is no seed or no puzzle, `keys` do not fit `values`, or a value is no share.
    """
    values_S = _checked(values, keys, (0.0, 1.0))
    if len(values_S) == 1:
        return bootstrap_interval(values_S[0], num_resamples=num_resamples, seed=seed)
    return _interval(values_S, _means(values_S, keys, num_resamples, seed), (0.0, 1.0))


def method_difference(
    before: Sequence[ArrayLike], after: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How much a method's mean changed from `before` to `after`, paired by seed and puzzle, with its 95% interval.

    Both hold one array for each seed, of the same puzzles (`keys`) in the same order. With one seed this is
    `paired_difference`, and what the seed adds is not in the interval.

    Raises:
        ValueError: the two have different seeds or puzzles, or as `method_interval`.
    """
    changes_S = _changes(before, after, keys)
    if len(changes_S) == 1:
        return paired_difference(before[0], after[0], num_resamples=num_resamples, seed=seed)
    return _interval(changes_S, _means(changes_S, keys, num_resamples, seed), (-1.0, 1.0))


def method_p_value(
    before: Sequence[ArrayLike], after: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided bootstrap p-value of no change: twice the smaller share of resampled differences beyond 0.

    From the same draws as `method_difference`, so it is below 0.05 where that interval leaves out 0. It is never below
    2 / (num_resamples + 1), which is all that so many draws can tell.
    """
    changes_S = _changes(before, after, keys)
    if all(np.ptp(changes_P) == 0 for changes_P in changes_S) and np.ptp([c[0] for c in changes_S]) == 0:
        # As `no_spread`: a share q of other puzzles at the bound would take the mean to 0, and goes unseen with
        # probability (1 - q)^P.
        change = abs(float(changes_S[0][0]))
        return min(1.0, 2 * (1 / (1 + change)) ** _num_puzzles(keys))
    means_R = _means(changes_S, keys, num_resamples, seed)
    beyond = min(np.sum(means_R <= _ROUNDING), np.sum(means_R >= -_ROUNDING))
    return float(min(1.0, 2 * (beyond + 1) / (num_resamples + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values that are read together, in the order given.

    Where each adjusted value below 0.05 is called a difference, the chance that any of those calls is wrong is at most
    5%, whatever the dependence between them (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Raises:
        ValueError: a value is not within 0..1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values are within 0..1; given {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def differences_to_first(evaluations: Sequence[Evaluation], k_values: Sequence[int]) -> list[list[Comparison]]:
    """How each further evaluation's pass@k differs from the first one's, paired by puzzle: a list for each, by k.

    Raises:
        ValueError: they are not of the same puzzles, or one has fewer samples a puzzle than the largest k.
    """
    first, *others = evaluations
    if any(other.puzzles != first.puzzles for other in others):
        raise ValueError("the evaluations are not of the same puzzles: evaluate all on the same --data and --seed.")
    keys = [first.puzzles]

    def values(evaluation: Evaluation, k: int) -> list[Array]:
        return [pass_at_k(evaluation.num_samples, evaluation.num_correct, k)]

    pairs = [[(values(first, k), values(other, k)) for k in k_values] for other in others]
    p_values = [[method_p_value(*pair, keys) for pair in row] for row in pairs]
    adjusted = iter(holm([p for row in p_values for p in row]))
    return [
        [Comparison(method_difference(*pair, keys), p, next(adjusted)) for pair, p in zip(*row, strict=True)]
        for row in zip(pairs, p_values, strict=True)
    ]


def _changes(before: Sequence[ArrayLike], after: Sequence[ArrayLike], keys: Keys) -> list[Array]:
    before_S, after_S = _checked(before, keys, (0.0, 1.0)), _checked(after, keys, (0.0, 1.0))
    return [after_P - before_P for before_P, after_P in zip(before_S, after_S, strict=True)]


def _checked(values: Sequence[ArrayLike], keys: Keys, bounds: tuple[float, float]) -> list[Array]:
    values_S = [np.asarray(values_P, dtype=np.float64) for values_P in values]
    if not values_S or min(map(len, values_S)) == 0:
        raise ValueError("a method needs at least one seed, and each seed at least one puzzle")
    if [len(values_P) for values_P in values_S] != [len(keys_P) for keys_P in keys]:
        raise ValueError(
            "values and keys must be of the same seeds and puzzles; given puzzles "
            f"{[len(values_P) for values_P in values_S]} and keys {[len(keys_P) for keys_P in keys]}"
        )
    if not all(np.all((values_P >= bounds[0]) & (values_P <= bounds[1])) for values_P in values_S):
        raise ValueError(f"every value of a puzzle must be within {bounds[0]:g}..{bounds[1]:g}")
    return values_S


def _means(values_S: Sequence[Array], keys: Keys, num_resamples: int, seed: int) -> Array:
    """Resampled means over seeds and puzzles, [num_resamples]."""
    rng = np.random.default_rng(seed)
    num_seeds = len(values_S)
    drawn_RS = rng.integers(num_seeds, size=(num_resamples, num_seeds - 1 or 1))
    if _crossed(keys):
        means_RS = resampled_means(np.stack(values_S, axis=1), num_resamples, rng)
        return np.take_along_axis(means_RS, drawn_RS, axis=1).mean(axis=1)
    means_RS = np.empty(drawn_RS.shape)
    for index, values_P in enumerate(values_S):
        here_RS = drawn_RS == index
        means_RS[here_RS] = resampled_means(values_P[:, None], int(here_RS.sum()), rng)[:, 0]
    return means_RS.mean(axis=1)


def _crossed(keys: Keys) -> bool:
    return all(list(keys_P) == list(keys[0]) for keys_P in keys)


def _num_puzzles(keys: Keys) -> int:
    return len({key for keys_P in keys for key in keys_P})


def _interval(values_S: Sequence[Array], means_R: Array, bounds: tuple[float, float]) -> Interval:
    if np.ptp(np.concatenate(values_S)) == 0:
        return no_spread(values_S[0], bounds)
    low, high = np.quantile(means_R, [_TAIL, 1 - _TAIL])
    return Interval(float(np.mean([values_P.mean() for values_P in values_S])), float(low), float(high))
