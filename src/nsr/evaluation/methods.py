"""Methods measured with several seeds: intervals over seeds and puzzles, and many differences read at once.

A method is more than one model: another seed gives other random numbers in training, other training puzzles, and where
the data depends on the seed, other evaluation puzzles. So seeds and puzzles are both resampled:

- crossed, where all seeds were measured on the same puzzles: seeds are drawn, puzzles are drawn, and every drawn seed
  is read on every drawn puzzle (the pigeonhole bootstrap; Owen 2007, doi:10.1214/07-AOAS122);
- nested, where they were not: seeds are drawn, and then puzzles anew within each drawn seed.

Of S seeds S - 1 are drawn, because the mean of S drawn ones varies by (S - 1) / S of what it should, which is much with
two or three (McCarthy and Snowden 1985, Vital and Health Statistics 2-95). And with so few seeds the quantiles of the
resampled means are too near to each other, so the interval is the bootstrap's standard error times the t quantile.

How often a 95% interval of 200 puzzles holds the truth, by simulation (tests/evaluation/test_methods.py keeps it: a
quick form, and all of it marked slow), for 8 and 64 samples, crossed and nested, and seeds that differ by a standard
deviation of 0 to 5 points of accuracy:

- with 3 and 5 seeds in 92% to 99.9% of the data sets. The more, the less the seeds differ: then both resamplings count
  the noise of the samples, and the interval of a change is up to twice as wide as it had to be;
- with 2 seeds in 87% to 99.9%: two seeds say next to nothing of how seeds differ;
- percentiles in place of the t quantile: 74% with 2 seeds and 84% with 3 where seeds differ most.

At accuracies of 5% and 95% it is no worse (94% to 99%), at 2% and 98% in 90% or more: the interval is symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from nsr.errors import UserError
from nsr.evaluation.compare import Array, Interval, bootstrap_intervals, no_spread, resampled_means
from nsr.evaluation.pass_at_k import pass_at_k
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
        values: one array [P] for each seed, with one share (for instance pass@k) for each of its puzzles.
        keys: the puzzles' canonical keys, as `values`.
        num_resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: there is no seed or no puzzle, `keys` do not fit `values`, or a value is no share.
    """
    return method_intervals(values, keys, num_resamples=num_resamples, seed=seed)[0]


def method_intervals(
    values: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """As `method_interval` for every column of arrays [P, K], with the same draws for all: a band over pass@k."""
    values_S = _columns(values, keys)
    if len(values_S) == 1:
        return bootstrap_intervals(values_S[0], num_resamples=num_resamples, seed=seed)
    return _intervals(values_S, keys, (0.0, 1.0), num_resamples, seed)


def method_difference(
    before: Sequence[ArrayLike], after: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How much a method's mean changed from `before` to `after`, paired by seed and puzzle, with its 95% interval.

    Both hold one array for each seed, of the same puzzles (`keys`) in the same order. With one seed this is
    `paired_difference`, and what the seed adds is NOT in the interval.

    Raises:
        ValueError: the two have different seeds or puzzles, or as `method_interval`.
    """
    return method_differences(before, after, keys, num_resamples=num_resamples, seed=seed)[0]


def method_differences(
    before: Sequence[ArrayLike], after: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """As `method_difference` for every column of arrays [P, K], with the same draws for all."""
    changes_S = _changes(before, after, keys)
    bounds = (-1.0, 1.0)
    if len(changes_S) == 1:
        return bootstrap_intervals(
            changes_S[0], bounds=bounds, method="percentile", num_resamples=num_resamples, seed=seed
        )
    return _intervals(changes_S, keys, bounds, num_resamples, seed)


def method_p_value(
    before: Sequence[ArrayLike], after: Sequence[ArrayLike], keys: Keys, *, num_resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of no change: below 0.05 where the interval of `method_difference` leaves out 0. Arrays [P].

    With one seed it is twice the smaller share of the resampled changes that is beyond 0, and never below
    2 / (num_resamples + 1), which is all that so many draws can tell. With more it is of the t distribution that the
    interval is made with.
    """
    changes_S = _changes(before, after, keys)
    if np.ptp(np.concatenate(changes_S)) == 0:
        # As `no_spread`: a share of other puzzles at the bound that would take the mean to 0 is 1 - 1 / (1 + change),
        # and P puzzles without one turn up with probability (1 / (1 + change))^P.
        return float(min(1.0, 2 * (1 / (1 + abs(changes_S[0][0, 0]))) ** len(changes_S[0])))
    if len(changes_S) == 1:
        means_R = resampled_means(changes_S[0], num_resamples, np.random.default_rng(seed))[:, 0]
        beyond = min(np.sum(means_R <= _ROUNDING), np.sum(means_R >= -_ROUNDING))
        return float(min(1.0, 2 * (beyond + 1) / (num_resamples + 1)))
    (estimate,), (error,), (freedom,) = _spread(changes_S, keys, num_resamples, seed)
    return float(2 * stdtr(freedom, -abs(estimate) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values that are read together, in the order given.

    Where each adjusted value below 0.05 is called a difference, the chance that any of those calls is wrong is at most
    5%, whatever the dependence between them (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Raises:
        ValueError: a value is not within 0..1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise UserError(f"p-values are within 0..1; given {list(p_values)}")
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
        raise UserError("the evaluations are not of the same puzzles: evaluate all on the same --data and --seed.")
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
    """Changes of each seed, [P, K]."""
    pairs = zip(_columns(before, keys), _columns(after, keys), strict=True)
    if any(np.shape(old) != np.shape(new) for old, new in zip(before, after, strict=True)):
        raise UserError("before and after must be of the same values a puzzle")
    return [after_PK - before_PK for before_PK, after_PK in pairs]


def _columns(values: Sequence[ArrayLike], keys: Keys) -> list[Array]:
    """The shares of each seed as [P, K], checked; one value a puzzle is one column."""
    values_S = [np.asarray(seed_values, dtype=np.float64) for seed_values in values]
    if not values_S or min(map(len, values_S)) == 0:
        raise UserError("a method needs at least one seed, and each seed at least one puzzle")
    given, named = [len(seed_values) for seed_values in values_S], [len(seed_keys) for seed_keys in keys]
    if given != named:
        raise UserError(f"values and keys must be of the same seeds and puzzles; given {given} values and {named} keys")
    if not all(np.all((seed_values >= 0) & (seed_values <= 1)) for seed_values in values_S):
        raise UserError("every value of a puzzle must be within 0..1")
    return [seed_values.reshape(len(seed_values), -1) for seed_values in values_S]


def _means(values_S: Sequence[Array], keys: Keys, num_resamples: int, seed: int) -> Array:
    """Resampled means over seeds and puzzles, [num_resamples, K]."""
    rng = np.random.default_rng(seed)
    num_seeds, num_columns = len(values_S), values_S[0].shape[1]
    drawn_RS = rng.integers(num_seeds, size=(num_resamples, num_seeds - 1))
    if _crossed(keys):
        means_RSK = resampled_means(np.concatenate(values_S, axis=1), num_resamples, rng)
        means_RSK = means_RSK.reshape(num_resamples, num_seeds, num_columns)
        return np.take_along_axis(means_RSK, drawn_RS[:, :, None], axis=1).mean(axis=1)
    means_RSK = np.empty((*drawn_RS.shape, num_columns))
    for index, values_PK in enumerate(values_S):
        here_RS = drawn_RS == index
        means_RSK[here_RS] = resampled_means(values_PK, int(here_RS.sum()), rng)
    return means_RSK.mean(axis=1)


def _crossed(keys: Keys) -> bool:
    return all(list(seed_keys) == list(keys[0]) for seed_keys in keys)


def _spread(values_S: Sequence[Array], keys: Keys, num_resamples: int, seed: int) -> tuple[Array, Array, Array]:
    """Estimate, bootstrap standard error and degrees of freedom, [K] each.

    The degrees of freedom are Satterthwaite's: S - 1 where the seeds make all of the error, more where puzzles share in
    it. The variance of the seeds' means holds some of the puzzles' noise too, which makes the interval wider.
    """
    means_SK = np.stack([values_PK.mean(axis=0) for values_PK in values_S])
    variance_K = _means(values_S, keys, num_resamples, seed).var(axis=0)
    of_seeds_K = means_SK.var(axis=0, ddof=1) / len(values_S)
    times_K = np.divide(variance_K, of_seeds_K, out=np.full_like(variance_K, np.inf), where=of_seeds_K > 0)
    freedom_K = (len(values_S) - 1) * np.clip(times_K, 1.0, 1e3) ** 2
    return means_SK.mean(axis=0), np.sqrt(variance_K), freedom_K


def _intervals(
    values_S: Sequence[Array], keys: Keys, bounds: tuple[float, float], num_resamples: int, seed: int
) -> list[Interval]:
    estimate_K, error_K, freedom_K = _spread(values_S, keys, num_resamples, seed)
    reach_K = stdtrit(freedom_K, 1 - _TAIL) * error_K
    low_K, high_K = (np.clip(end_K, *bounds) for end_K in (estimate_K - reach_K, estimate_K + reach_K))
    together_NK = np.concatenate(values_S)
    return [
        Interval(float(estimate), float(low), float(high))
        if np.ptp(together_NK[:, column]) > 0
        else no_spread(values_S[0][:, column], bounds)
        for column, (estimate, low, high) in enumerate(zip(estimate_K, low_K, high_K, strict=True))
    ]
