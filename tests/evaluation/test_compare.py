from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nsr.evaluation.compare import (
    Interval,
    Method,
    bootstrap_interval,
    bootstrap_intervals,
    finding,
    paired_difference,
)


def test_an_interval_reads_as_percent_or_points() -> None:
    assert str(Interval(0.2312, 0.204, 0.2591)) == "23.1% [20.4, 25.9]"
    assert Interval(0.032, 0.004, 0.059).points() == "+3.2 points [+0.4, +5.9]"
    assert Interval(-0.01, -0.03, 0.0).points() == "-1.0 points [-3.0, 0.0]"
    assert Interval(-0.0003, -0.01, 0.01).points(unit="") == "0.0 [-1.0, +1.0]"


def test_estimate_is_the_mean_and_lies_inside() -> None:
    values_P = [0.0, 0.25, 0.25, 1.0]
    interval = bootstrap_interval(values_P)
    assert interval.estimate == pytest.approx(0.375)
    assert 0 < interval.low < 0.375 < interval.high < 1


def test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)
    values_P = rng.binomial(8, rng.beta(0.4, 1.6, 150)) / 8
    for method, name in (("bca", "BCa"), ("percentile", "percentile")):
        ours = bootstrap_interval(values_P, method=method, num_resamples=20_000)
        theirs = stats.bootstrap((values_P,), np.mean, n_resamples=20_000, method=name, rng=1).confidence_interval
        width = theirs.high - theirs.low
        assert abs(ours.low - theirs.low) < 0.02 * width  # the noise of 20,000 draws
        assert abs(ours.high - theirs.high) < 0.02 * width


def test_resampling_in_blocks_changes_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values_P = np.random.default_rng(1).random(40)
    whole = bootstrap_interval(values_P)
    monkeypatch.setattr("nsr.evaluation.compare._LARGEST_BLOCK", 1000)
    blocks = bootstrap_interval(values_P)
    assert blocks == pytest.approx(whole, abs=1e-12)


def test_columns_are_the_single_intervals() -> None:
    values_PK = np.random.default_rng(2).random((30, 3))
    together = bootstrap_intervals(values_PK)
    assert together == [pytest.approx(bootstrap_interval(column)) for column in values_PK.T]


def test_repeats_with_the_seed_and_only_with_it() -> None:
    values_P = np.random.default_rng(3).random(50)
    assert bootstrap_interval(values_P, seed=1) == bootstrap_interval(values_P, seed=1)
    assert bootstrap_interval(values_P, seed=1) != bootstrap_interval(values_P, seed=2)


def test_puzzles_without_spread_are_not_taken_for_certainty() -> None:
    # 200 puzzles, all wrong. A true share of q shows no right one with probability (1 - q)^200 = 0.025 at q = 1.83%.
    interval = bootstrap_interval(np.zeros(200))
    assert interval == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 200)))
    assert interval.high == pytest.approx(0.0183, abs=1e-4)
    assert bootstrap_interval(np.ones(200)) == pytest.approx((1.0, 1 - interval.high, 1.0))
    # One puzzle tells next to nothing.
    assert bootstrap_interval([0.5]) == pytest.approx((0.5, 0.0125, 0.9875))
    unchanged = paired_difference(np.full(200, 0.5), np.full(200, 0.5))
    assert unchanged == pytest.approx((0.0, -interval.high, interval.high))


@pytest.mark.parametrize("values", [[], [0.5, 1.5], [0.5, float("nan")], [-0.1, 0.2]])
def test_refuses_what_is_no_share(values: list[float]) -> None:
    with pytest.raises(ValueError, match="puzzle"):
        bootstrap_interval(values)


def test_paired_difference_of_the_same_puzzles() -> None:
    rng = np.random.default_rng(4)
    before_P = rng.beta(0.5, 0.5, 200)  # puzzles differ a lot ...
    after_P = np.clip(before_P + rng.normal(0.02, 0.02, 200), 0, 1)  # ... and each changes a little
    difference, low, high = paired_difference(before_P, after_P)
    assert difference == pytest.approx(np.mean(after_P) - np.mean(before_P))
    percentile = bootstrap_interval(after_P - before_P, bounds=(-1, 1), method="percentile")
    assert (difference, low, high) == percentile != bootstrap_interval(after_P - before_P, bounds=(-1, 1))
    assert 0 < low < difference < high
    # Two single intervals overlap widely: only the pairing shows the change.
    before, after = bootstrap_interval(before_P), bootstrap_interval(after_P)
    assert before.high > after.low
    assert high - low < 0.1 * (before.high - before.low)
    assert paired_difference(after_P, before_P) == pytest.approx((-difference, -high, -low), abs=1e-3)


def test_paired_difference_needs_equal_lengths() -> None:
    with pytest.raises(ValueError, match="same puzzles twice; given 2 and 3"):
        paired_difference([0.1, 0.2], [0.1, 0.2, 0.3])


def test_a_finding_claims_only_what_the_interval_allows() -> None:
    assert finding(Interval(0.03, 0.01, 0.05), "accuracy") == ("accuracy rose: +3.0 points [+1.0, +5.0] leaves out 0")
    assert finding(Interval(-0.03, -0.05, -0.01), "pass@8").startswith("pass@8 fell: -3.0 points")
    # The last one leaves out 0 by less than is shown: it would read "[-4.2, 0.0] leaves out 0".
    for low, high in ((-0.01, 0.07), (0.0, 0.06), (-0.06, 0.0), (-0.042, -0.0004)):
        assert finding(Interval((low + high) / 2, low, high), "accuracy").startswith(
            "no change in accuracy can be claimed"
        )


# Coverage: how often a 95% interval of 200 puzzles holds the truth. The whole simulation is described in compare.py.

NUM_PUZZLES = 200
_EDGE = 1e-9  # an end that falls on the truth holds it


def _coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([low - _EDGE <= truth <= high + _EDGE for _, low, high in intervals]))


def test_coverage_with_one_sample_a_puzzle_is_exact_arithmetic() -> None:
    """With one sample a puzzle the interval depends on the count of right ones alone: 201 intervals, no simulation."""
    right_PC = (np.arange(NUM_PUZZLES)[:, None] < np.arange(NUM_PUZZLES + 1)).astype(float)
    accuracies = np.linspace(0.05, 0.95, 901) + 1e-6  # not on the ends of intervals, which are multiples of 1/200
    coverage = {}
    for method in ("bca", "percentile"):
        ends = np.array(bootstrap_intervals(right_PC, method=method))
        holds_AC = (ends[:, 1] <= accuracies[:, None]) & (accuracies[:, None] <= ends[:, 2])
        chance_AC = stats.binom.pmf(np.arange(NUM_PUZZLES + 1), NUM_PUZZLES, accuracies[:, None])
        coverage[method] = (holds_AC * chance_AC).sum(axis=1)
    assert 0.93 <= coverage["bca"].min() <= coverage["bca"].max() <= 0.97
    assert coverage["percentile"].min() < 0.92  # why it was not chosen


def _coverage_of_shares(accuracy: float, num_samples: int, spread: float, method: Method, num_sets: int) -> float:
    """Puzzles' own accuracies are Beta distributed; `spread` 1000: all alike, 0.5: nearly all-or-nothing."""
    rng = np.random.default_rng(12)
    chance_PD = rng.beta(accuracy * spread, (1 - accuracy) * spread, (NUM_PUZZLES, num_sets))
    values_PD = rng.binomial(num_samples, chance_PD) / num_samples
    return _coverage(bootstrap_intervals(values_PD, method=method, num_resamples=2000), accuracy)


def _coverage_without_change(accuracy: float, num_samples: int, method: Method, num_sets: int) -> float:
    """Before and after are samples of the same puzzles with the same accuracies: the difference is 0."""
    rng = np.random.default_rng(13)
    chance_PD = rng.beta(accuracy, 1 - accuracy, (NUM_PUZZLES, num_sets))
    before_PD, after_PD = (rng.binomial(num_samples, chance_PD) / num_samples for _ in range(2))
    intervals = bootstrap_intervals(after_PD - before_PD, bounds=(-1, 1), method=method, num_resamples=2000)
    return _coverage(intervals, 0.0)


@pytest.mark.parametrize("accuracy", [0.05, 0.3, 0.95])
@pytest.mark.parametrize(("num_samples", "spread"), [(4, 1000.0), (8, 0.5), (64, 0.5)])
def test_coverage_of_accuracies(accuracy: float, num_samples: int, spread: float) -> None:
    assert 0.93 <= _coverage_of_shares(accuracy, num_samples, spread, "bca", 3000) <= 0.97


@pytest.mark.parametrize(("accuracy", "num_samples"), [(0.05, 4), (0.3, 8)])
def test_a_change_is_claimed_in_a_twentieth_of_the_cases_where_there_is_none(accuracy: float, num_samples: int) -> None:
    assert 0.93 <= _coverage_without_change(accuracy, num_samples, "percentile", 3000) <= 0.97


def test_near_zero_the_interval_holds_the_truth_less_often() -> None:
    assert 0.75 <= _coverage_of_shares(0.005, 64, 0.5, "bca", 3000) <= 0.9


@pytest.mark.slow
def test_the_whole_simulation() -> None:
    """What the module says of the two intervals. No accuracy is a multiple of 1/200, where an end would touch it."""
    cases = [(num_samples, spread) for num_samples in (4, 8, 64) for spread in (1000.0, 2.0, 0.5)]

    def worst_and_best(accuracies: tuple[float, ...], method: Method) -> tuple[float, float]:
        values = [_coverage_of_shares(accuracy, *case, method, 8000) for accuracy in accuracies for case in cases]
        return min(values), max(values)

    low, high = worst_and_best((0.0513, 0.1027, 0.2511, 0.4973, 0.7491, 0.8977, 0.9487), "bca")
    assert 0.935 <= low <= high <= 0.965
    assert worst_and_best((0.0207, 0.9797), "bca")[0] >= 0.93
    assert worst_and_best((0.0103, 0.9899), "bca")[0] >= 0.885
    assert worst_and_best((0.0051, 0.9952), "bca")[0] >= 0.8
    assert worst_and_best((0.0207, 0.9797), "percentile")[0] <= 0.92
    for method, least in (("percentile", 0.935), ("bca", 0.915)):
        unchanged = [_coverage_without_change(a, n, method, 8000) for a in (0.05, 0.1, 0.3, 0.6) for n in (1, 4, 8)]
        assert least <= min(unchanged) <= max(unchanged) <= 0.965
