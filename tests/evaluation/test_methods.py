from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

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


def test_crossed_by_hand() -> None:
    """Two seeds on two puzzles: every resample can be written down."""
    # One seed of two is drawn. Seed 1 is 0 on both puzzles; seed 2 has means 0, 1/2, 1 with chances 1/4, 1/2, 1/4. So
    # the resampled mean has mean 1/4 and mean square (1/2)(1/4 + 1/2 x 1/4) = 3/16: variance 3/16 - 1/16 = 1/8.
    # The seeds' means, 0 and 1/2, have variance 1/8, over 2 seeds 1/16: (1/8) / (1/16) = 2, and 1 x 2^2 = 4 degrees.
    interval = method_interval([[0.0, 0.0], [0.0, 1.0]], [["a", "b"]] * 2, num_resamples=200_000)
    reach = stats.t.ppf(0.975, 4) * np.sqrt(1 / 8)
    assert interval == pytest.approx((0.25, 0.0, 1.0))  # 0.25 - 0.98 and 0.25 + 0.98 are no shares
    before, after, keys = [[0.5, 0.5]] * 2, [[0.5, 0.5], [0.5, 0.52]], [["a", "b"]] * 2
    narrow = method_difference(before, after, keys, num_resamples=200_000)
    assert narrow == pytest.approx((0.005, 0.005 - reach / 50, 0.005 + reach / 50), abs=0.0003)
    p = method_p_value(before, after, keys, num_resamples=200_000)
    assert p == pytest.approx(2 * stats.t.sf(0.25 / np.sqrt(1 / 8), 4), abs=0.01)


def test_crossed_and_nested_by_hand() -> None:
    """With three seeds, two are drawn: they share the drawn puzzles, or each has its own."""
    # Seeds a: (0, 0), b: (0, 0), c: (0, 1). A drawn seed's mean has mean 1/6 and mean square (1/3)(1/8 + 1/4) = 1/8:
    # variance 1/8 - 1/36 = 7/72. Nested, the two draws are independent: 7/144. Crossed, both are c with chance 1/9 and
    # then see the same share of the second puzzle, of mean square 3/8: their covariance is (3/8) / 9 - 1/36 = 1/72, and
    # half of it is added: 8/144.
    values = [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    for keys, variance in (([["a", "b"], ["c", "d"], ["e", "f"]], 7 / 144), ([["a", "b"]] * 3, 8 / 144)):
        change = method_difference([[0.0, 0.0]] * 3, values, keys, num_resamples=200_000)
        freedom = 2 * (variance / (1 / 36)) ** 2  # the seeds' means 0, 0, 1/2 have variance 1/12, over 3 seeds 1/36
        assert change.high - change.estimate == pytest.approx(stats.t.ppf(0.975, freedom) * variance**0.5, rel=0.02)


def test_columns_are_the_single_intervals() -> None:
    rng = np.random.default_rng(8)
    values = [rng.random((30, 3)) for _ in range(3)]
    keys = [[str(puzzle) for puzzle in range(30)]] * 3
    together = method_intervals(values, keys, num_resamples=500)
    changes = method_differences(values, values[::-1], keys, num_resamples=500)
    for column in range(3):
        alone = [array[:, column] for array in values]
        assert method_interval(alone, keys, num_resamples=500) == pytest.approx(together[column])
        assert method_difference(alone, alone[::-1], keys, num_resamples=500) == pytest.approx(changes[column])


def test_seeds_that_agree_and_puzzles_without_spread() -> None:
    same_P = shares(1)
    together = method_interval([same_P] * 3, [KEYS] * 3)
    assert together == pytest.approx(bootstrap_interval(same_P, method="percentile"), abs=0.01)
    # No spread anywhere is not taken for certainty, as with one seed.
    assert method_interval([np.zeros(60)] * 3, [KEYS] * 3) == bootstrap_interval(np.zeros(60))
    assert method_p_value([same_P] * 3, [same_P] * 3, [KEYS] * 3) == 1.0
    assert method_p_value([np.zeros(60)], [np.full(60, 0.1)], [KEYS]) == pytest.approx(2 / 1.1**60)


def test_seeds_may_have_different_puzzles_but_not_before_and_after() -> None:
    values = [[0.1, 0.2, 0.9], [0.4, 0.3]]
    keys = [["a", "b", "c"], ["d", "e"]]
    assert method_interval(values, keys).estimate == pytest.approx((0.4 + 0.35) / 2)
    with pytest.raises(ValueError, match="same seeds and puzzles"):
        method_difference(values, [[0.1, 0.2], [0.4, 0.3]], keys)


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


@pytest.mark.parametrize("crossed", [True, False])
def test_coverage_of_changes_where_seeds_differ(crossed: bool) -> None:
    # Binomial noise of 400 data sets: 2 standard deviations are 2 points.
    assert 0.92 <= _coverage(3, 0.02, of="change", crossed=crossed) <= 0.99
    assert 0.90 <= _coverage(3, 0.05, of="change", crossed=crossed) <= 0.97


def test_coverage_where_seeds_do_not_differ_is_above_what_is_said() -> None:
    assert _coverage(3, 0.0, of="change") >= 0.98
    assert 0.93 <= _coverage(3, 0.0, of="accuracy") <= 0.98


def test_two_seeds_hold_the_truth_less_often() -> None:
    assert 0.80 <= _coverage(2, 0.05, of="change") <= 0.92


@pytest.mark.slow
def test_the_whole_simulation() -> None:
    """What the module says of its intervals."""
    cases = [
        {"of": of, "crossed": crossed, "num_samples": num_samples, "num_sets": 1000}
        for of in ("change", "accuracy")
        for crossed in (True, False)
        for num_samples in (8, 64)
    ]
    deviations = (0.0, 0.01, 0.02, 0.05)
    for num_seeds, least in ((2, 0.85), (3, 0.91), (5, 0.92)):
        found = [_coverage(num_seeds, deviation, **case) for case in cases for deviation in deviations]
        assert least <= min(found), num_seeds
    for accuracy, least in ((0.0207, 0.89), (0.9793, 0.89), (0.0513, 0.93), (0.9487, 0.93)):
        for num_seeds in (2, 3, 5):
            for crossed in (True, False):
                found = _coverage(num_seeds, 0.0, of="accuracy", crossed=crossed, accuracy=accuracy, num_sets=1000)
                assert found >= least, (accuracy, num_seeds)
