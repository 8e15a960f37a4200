from __future__ import annotations

import numpy as np
import pytest

from nsr.evaluation.compare import bootstrap_interval, paired_difference
from nsr.evaluation.methods import (
    holm,
    method_difference,
    method_differences,
    method_interval,
    method_intervals,
    method_p_value,
)

KEYS = [f"{number},2=3" for number in range(60)]


def shares(seed: int, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.binomial(8, rng.beta(0.5, 1.0, count)) / 8


def test_one_seed_is_the_interval_over_puzzles() -> None:
    values_P, other_P = shares(1), shares(2)
    assert method_interval([values_P], [KEYS]) == bootstrap_interval(values_P)
    assert method_difference([values_P], [other_P], [KEYS]) == paired_difference(values_P, other_P)


def test_holm_by_hand() -> None:
    # Smallest first: 4 x 0.005 = 0.02; 3 x 0.01 = 0.03; 2 x 0.03 = 0.06; 1 x 0.04, but never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        holm([0.5, 1.2])
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        holm([float("nan")])


def test_p_values_and_intervals_say_the_same() -> None:
    before_P = shares(1)
    for shift in np.linspace(0, 0.2, 9):
        after_P = np.clip(before_P + np.random.default_rng(3).normal(shift, 0.3, 60), 0, 1)
        interval = method_difference([before_P], [after_P], [KEYS])
        p = method_p_value([before_P], [after_P], [KEYS])
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
        assert p == pytest.approx(method_p_value([after_P], [before_P], [KEYS]), abs=0.02)
    assert method_p_value([before_P], [before_P], [KEYS]) == 1.0


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        ([], [], "at least one seed"),
        ([[]], [[]], "at least one puzzle"),
        ([[0.5], [0.5]], [["a"]], "same seeds and puzzles"),
        ([[0.5, 0.5]], [["a"]], "same seeds and puzzles"),
        ([[1.5]], [["a"]], "within 0..1"),
        ([[float("nan")], [0.5]], [["a"], ["a"]], "within 0..1"),
    ],
)
def test_refuses_what_does_not_fit(values: list, keys: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_interval(values, keys)
    with pytest.raises(ValueError, match=message):
        method_difference(values, values, keys)


# Coverage: how often the 95% interval of S seeds x 200 puzzles holds the truth. methods.py says what came out.

NUM_PUZZLES = 200


def _coverage(
    num_seeds: int,
    seed_deviation: float,
    *,
    of: str,
    crossed: bool = True,
    accuracy: float = 0.3,
    num_samples: int = 8,
    num_sets: int = 400,
) -> float:
    """Puzzles' accuracies are Beta(accuracy, 1 - accuracy) distributed; a seed moves the mean by `seed_deviation`.

    It moves most what is neither always right nor always wrong. `of` is "accuracy", or "change": from a model that is
    the same for all seeds to the seeds' own, 0 in the mean.
    """
    rng = np.random.default_rng(21)
    everyone_PD = rng.beta(accuracy, 1 - accuracy, (NUM_PUZZLES, num_sets))
    before_S, after_S = [], []
    for _ in range(num_seeds):
        base_PD = everyone_PD if crossed else rng.beta(accuracy, 1 - accuracy, (NUM_PUZZLES, num_sets))
        moved_D = rng.normal(0, seed_deviation, num_sets)
        can_move_PD = base_PD * (1 - base_PD) / (accuracy * (1 - accuracy) / 2)  # 1 in the mean
        chance_PD = np.clip(base_PD + moved_D * can_move_PD, 0, 1)
        before_S.append(rng.binomial(num_samples, base_PD) / num_samples)
        after_S.append(rng.binomial(num_samples, chance_PD) / num_samples)
    keys = [[f"{puzzle} of {0 if crossed else seed}" for puzzle in range(NUM_PUZZLES)] for seed in range(num_seeds)]
    intervals = (
        method_intervals(after_S, keys, num_resamples=1000)
        if of == "accuracy"
        else method_differences(before_S, after_S, keys, num_resamples=1000)
    )
    truth = accuracy if of == "accuracy" else 0.0
    return float(np.mean([low - 1e-9 <= truth <= high + 1e-9 for _, low, high in intervals]))
