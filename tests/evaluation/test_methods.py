from __future__ import annotations

import numpy as np
import pytest

from nsr.evaluation.compare import bootstrap_interval, paired_difference
from nsr.evaluation.methods import holm, method_difference, method_interval, method_p_value

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
