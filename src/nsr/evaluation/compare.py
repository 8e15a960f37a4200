"""Intervals over puzzles: how sure a number is, and whether two models differ.

Puzzles are what is drawn at random, so they are what is resampled: a puzzle comes with all its samples or not at all.

Which interval was decided by simulation: 200 puzzles of 1 to 64 samples, accuracies of 5% to 95%, puzzles from all
alike to nearly all-or-nothing (tests/evaluation/test_compare.py keeps it: a quick form, and all of it marked slow).

- For a share, BCa (bias-corrected and accelerated; Efron 1987, doi:10.1080/01621459.1987.10478410). Its 95% interval
  held the truth in 93.1% to 96.7% of the data sets, the plain percentile interval in 90.8% to 95.6%, missing mostly
  from one side.
- For a difference of two, percentile: 94.0% to 95.5%, against 92.2% to 95.3% for BCa. A difference is nearly
  symmetric, so what BCa corrects there is mostly noise.

Nearer to 0 and 1 every bootstrap knows too little, since few puzzles are not all wrong (or all right): at 2% and 98%
BCa held the truth in 93% or more, at 1% and 99% in 89% or more, at 0.5% and 99.5% in 80% or more.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from nsr.errors import UserError

Array = NDArray[np.float64]
Method = Literal["bca", "percentile"]

_TAIL = 0.025  # on each side of a 95% interval
_LARGEST_BLOCK = 4_000_000  # resampling counts held at once


class Interval(NamedTuple):
    """A mean over puzzles with the interval around it. Shares, not percent: 0.25 is 25%."""

    estimate: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is within the interval, as it is shown to a tenth of a point: then no difference may be claimed."""
        return round(100 * self.low, 1) <= 0.0 <= round(100 * self.high, 1)

    def __str__(self) -> str:
        """In percent, as "23.1% [20.4, 25.9]"."""
        return f"{100 * self.estimate:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def points(self, unit: str = " points") -> str:
        """As a difference of shares, in percentage points: "+3.2 points [+0.4, +5.9]"."""
        return f"{signed(100 * self.estimate)}{unit} [{signed(100 * self.low)}, {signed(100 * self.high)}]"


def signed(value: float, decimals: int = 1) -> str:
    """A change, with its sign unless it rounds to 0: "+3.2", "-0.4", "0.0"."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def bootstrap_interval(
    values_P: ArrayLike,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    method: Method = "bca",
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of `values_P` over puzzles with its 95% bootstrap interval.

    Args:
        values_P: one number a puzzle, for instance its pass@k.
        bounds: the least and the greatest value possible; they matter only where all puzzles have the same value.
        method: "bca" for shares, "percentile" for differences.
        num_resamples: bootstrap draws of P puzzles.
        seed: of the draws; the same values give the same interval.

    Raises:
        ValueError: there is no puzzle, or a value is outside `bounds` or not a number.
    """
    values_P1 = np.asarray(values_P, dtype=np.float64)[:, None]
    return bootstrap_intervals(values_P1, bounds=bounds, method=method, num_resamples=num_resamples, seed=seed)[0]


def bootstrap_intervals(
    values_PK: ArrayLike,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    method: Method = "bca",
    num_resamples: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """As `bootstrap_interval` for every column of `values_PK`, with the same draws of puzzles for all columns."""
    values = np.asarray(values_PK, dtype=np.float64)
    if values.shape[0] == 0:
        raise UserError("an interval needs at least one puzzle; given none")
    if not np.all((values >= bounds[0]) & (values <= bounds[1])):
        raise UserError(f"every value of a puzzle must be within {bounds[0]:g}..{bounds[1]:g}")
    means_RK = np.sort(resampled_means(values, num_resamples, np.random.default_rng(seed)), axis=0)
    ends_K2 = np.stack([_column_quantiles(means_RK, level_K) for level_K in _levels(values, means_RK, method)], axis=1)
    return [
        Interval(float(column.mean()), float(low), float(high)) if np.ptp(column) > 0 else no_spread(column, bounds)
        for column, (low, high) in zip(values.T, ends_K2, strict=True)
    ]


def paired_difference(
    before_P: ArrayLike, after_P: ArrayLike, *, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How much the mean over puzzles changed from `before_P` to `after_P`, with the interval of the change.

    Both hold one share a puzzle, of the same puzzles in the same order. What the puzzles' difficulty adds to the noise
    cancels, so the interval is narrower than the two single ones suggest. Unpacks as (difference, low, high).

    Raises:
        ValueError: the two have different lengths, or as `bootstrap_interval`.
    """
    before, after = np.asarray(before_P, dtype=np.float64), np.asarray(after_P, dtype=np.float64)
    if before.shape != after.shape:
        raise UserError(f"a paired difference needs the same puzzles twice; given {before.size} and {after.size}")
    return bootstrap_interval(
        after - before, bounds=(-1.0, 1.0), method="percentile", num_resamples=num_resamples, seed=seed
    )


def finding(difference: Interval, what: str) -> str:
    """What `difference` allows to say of `what` ("accuracy"). Where the interval holds 0, nothing is claimed."""
    if difference.holds_zero:
        return f"no change in {what} can be claimed: {difference.points()} holds 0"
    return f"{what} {'rose' if difference.estimate > 0 else 'fell'}: {difference.points()} leaves out 0"


def resampled_means(values_PK: Array, num_resamples: int, rng: np.random.Generator) -> Array:
    """Means over P puzzles drawn with replacement, [num_resamples, K]; in blocks, so that memory is bounded."""
    num_puzzles = len(values_PK)
    means_RK = np.empty((num_resamples, values_PK.shape[1]))
    block = max(1, _LARGEST_BLOCK // num_puzzles)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn_RP = rng.integers(num_puzzles, size=(rows, num_puzzles)) + num_puzzles * np.arange(rows)[:, None]
        counts_RP = np.bincount(drawn_RP.ravel(), minlength=rows * num_puzzles).reshape(rows, num_puzzles)
        means_RK[start : start + rows] = counts_RP.astype(np.float64) @ values_PK / num_puzzles
    return means_RK


def _levels(values_PK: Array, sorted_means_RK: Array, method: Method) -> tuple[Array, Array]:
    """Where among the sorted resampled means the two ends of each column's interval lie, as shares of them."""
    if method == "percentile":
        return np.full(values_PK.shape[1], _TAIL), np.full(values_PK.shape[1], 1 - _TAIL)
    deviations = values_PK - values_PK.mean(axis=0)
    squares = (deviations**2).sum(axis=0)
    # For a mean the acceleration, by the jackknife, is the skewness of the values / (6 sqrt(P)).
    acceleration = (deviations**3).sum(axis=0) / (6 * np.where(squares > 0, squares, 1.0) ** 1.5)
    # Means of few distinct values often tie with the estimate: a tie counts half, and rounding must not break it.
    gap = sorted_means_RK - values_PK.mean(axis=0)
    below = (np.sum(gap < -1e-12, axis=0) + 0.5 * np.sum(np.abs(gap) <= 1e-12, axis=0)) / len(gap)
    bias = ndtri(np.clip(below, 0.5 / len(gap), 1 - 0.5 / len(gap)))
    low, high = (ndtr(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in ndtri([_TAIL, 1 - _TAIL]))
    return low, high


def _column_quantiles(sorted_RK: Array, levels_K: Array) -> Array:
    """The quantile of each column at that column's own level, linear between neighbours."""
    position = levels_K * (len(sorted_RK) - 1)
    left = np.floor(position).astype(np.int64)
    right = np.minimum(left + 1, len(sorted_RK) - 1)
    columns = np.arange(sorted_RK.shape[1])
    return sorted_RK[left, columns] + (position - left) * (sorted_RK[right, columns] - sorted_RK[left, columns])


def no_spread(values_P: Array, bounds: tuple[float, float]) -> Interval:
    """The interval where all P puzzles have one value c: a bootstrap of them says [c, c], as if the mean were certain.

    If a share q of all puzzles had other values, P puzzles without one would turn up with probability (1 - q)^P. So q
    is at most 1 - 0.025^(1/P), and the mean no further from c than such a share at the bounds takes it.
    """
    value = float(values_P[0])
    share = 1 - _TAIL ** (1 / len(values_P))
    return Interval(value, value - share * (value - bounds[0]), value + share * (bounds[1] - value))
