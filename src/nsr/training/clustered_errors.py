"""How certain the numbers of a rollout batch are: their standard errors, from the differences between its groups.

The samples of a group share their puzzle, so they are not independent; the puzzles are. A mean over all samples is a
ratio of two sums over groups, and its error follows from how far each group is from that ratio (a ratio estimator, as
in the sampling of clusters).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nsr.rollout.rollout import RolloutGroup, rewards


def standard_errors(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Standard errors of a step's accuracy, length, truncation and, where it is known, entropy.

    None for a single group: it has no differences.
    """
    if len(groups) < 2:
        return {}
    samples_P = np.array([len(group.completions) for group in groups], dtype=np.float64)
    tokens_P = _sums([[len(one.token_ids) for one in group.completions] for group in groups])
    truncated_P = _sums([[one.truncated for one in group.completions] for group in groups])
    errors = {
        "correct_ratio_se": ratio_error((rewards(groups) > 0).sum(axis=1), samples_P),
        "response_length_se": ratio_error(tokens_P, samples_P),
        "truncation_se": ratio_error(truncated_P, samples_P),
    }
    entropies = [[one.entropy for one in group.completions] for group in groups]
    if all(entropy is not None for of_group in entropies for entropy in of_group):
        weighted = [[(one.entropy or 0.0) * len(one.token_ids) for one in group.completions] for group in groups]
        errors["entropy_se"] = ratio_error(_sums(weighted), tokens_P)
    return errors


def ratio_error(above_P: npt.NDArray[np.float64], below_P: npt.NDArray[np.float64]) -> float:
    """Standard error of sum(above_P) / sum(below_P), where the P pairs are independent draws."""
    ratio = above_P.sum() / below_P.sum()
    squares = np.square(above_P - ratio * below_P).sum()
    return float(np.sqrt(squares * len(below_P) / (len(below_P) - 1)) / below_P.sum())


def _sums(values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    return np.array([sum(of_group) for of_group in values], dtype=np.float64)
