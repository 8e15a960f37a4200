"""pass@k: the chance that at least one of k samples of a puzzle is correct."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr.errors import UserError


@overload
def pass_at_k(num_samples: int, num_correct: int, k: int) -> float: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]: ...
def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> float | NDArray[np.float64]:
    """Unbiased estimate of pass@k from `num_correct` right ones among `num_samples` samples.

    1 - C(n - c, k) / C(n, k): the share of the subsets of k samples that hold a right one. (Chen et al. 2021,
    arXiv 2107.03374, equation 1.) Arguments are whole numbers or arrays of them and broadcast against each other;
    a float comes back for three numbers, a float64 array of the broadcast shape otherwise.

    The ratio of binomials is taken as the product of 1 - c / (n - i) over i < k, which no n or k overflows.

    Raises:
        ValueError: k is below 1 or above `num_samples`, or `num_correct` is not within 0..`num_samples`.
    """
    samples, correct, draws = np.broadcast_arrays(
        _whole(num_samples, "num_samples"), _whole(num_correct, "num_correct"), _whole(k, "k")
    )
    if np.any(draws < 1) or np.any(draws > samples):
        raise UserError(f"pass@k needs 1 <= k <= num_samples; given k = {k} with num_samples = {num_samples}")
    if np.any(correct < 0) or np.any(correct > samples):
        given = f"num_correct = {num_correct} with num_samples = {num_samples}"
        raise UserError(f"num_correct must be within 0..num_samples; given {given}")
    missed = np.ones(samples.shape)
    for i in range(int(draws.max(initial=0))):
        # Where k samples cannot avoid a right one a factor is zero (the ones after it no longer matter), and where i
        # has reached k it is one.
        left = np.maximum(samples - i, 1)
        missed *= np.where(i < draws, np.maximum(1 - correct / left, 0.0), 1.0)
    passed = 1 - missed
    return float(passed) if passed.ndim == 0 else passed


def k_values(num_samples: int) -> list[int]:
    """The k at which a pass@k curve is shown: 1, 2, 4, ... and `num_samples` itself.

    Raises:
        ValueError: `num_samples` is below 1.
    """
    if num_samples < 1:
        raise UserError(f"num_samples must be 1 or more; given {num_samples}")
    powers = [1 << exponent for exponent in range(num_samples.bit_length())]
    return powers if powers[-1] == num_samples else [*powers, num_samples]


def is_rough(k: int, num_samples: int) -> bool:
    """Whether pass@k from `num_samples` samples is rough: k is above half of them.

    The subsets of k samples then share most of their members, so the estimate hangs on one or two lucky samples.
    """
    return 2 * k > num_samples


def _whole(value: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name} must be whole numbers; given {value!r}")
    return array.astype(np.int64)
