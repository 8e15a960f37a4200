from __future__ import annotations

import math

import numpy as np
import pytest
from kept_data import kept

from nsr.evaluation.compare import Interval
from study import numbers
from study.numbers import Difference

BASE = kept([0, 16, 32, 8])
MEASURED = {
    "base": BASE,
    **{
        f"NSR_{seed}": kept([4, 16, 32, 8], model=f"NSR_{seed}", method="NSR", part="main", seed=seed)
        for seed in (43, 42)
    },
    "NSR_kept": kept([0, 0, 0, 0], model="NSR_kept", method="NSR", part="kept", seed=42),
}


def test_models_of_a_method_are_those_of_its_part_by_seed() -> None:
    assert numbers.models_of(MEASURED, "base") == [BASE]
    assert [one.seed for one in numbers.models_of(MEASURED, "NSR")] == [42, 43]
    assert [one.model for one in numbers.models_of(MEASURED, "NSR", "kept")] == ["NSR_kept"]


def test_levels_and_differences_have_the_means_of_the_counts() -> None:
    after = numbers.models_of(MEASURED, "NSR")
    assert numbers.level([BASE], numbers.passed(1)).estimate == pytest.approx((0 + 0.5 + 1 + 0.25) / 4)
    found = numbers.difference([BASE], after, numbers.passed(1)).interval
    assert found.estimate == pytest.approx((4 / 32) / 4)
    assert numbers.level([BASE], numbers.greedy).estimate == 0.25


def test_differences_are_of_the_same_seeds() -> None:
    other = [kept([0, 0, 0, 0], model=f"PSR_{seed}", method="PSR", seed=seed) for seed in (42, 44)]
    with pytest.raises(ValueError, match=r"NSR was measured with the seeds \[42, 43\] and PSR with \[42, 44\]"):
        numbers.difference(numbers.models_of(MEASURED, "NSR"), other, numbers.passed(1))


def test_values_of_some_puzzles() -> None:
    chosen = np.array([True, False, True, False])
    assert numbers.of_puzzles(chosen, numbers.passed(1))(BASE).tolist() == [0.0, 1.0]


def test_the_curve_is_pass_at_k_of_every_k() -> None:
    # 8 of 32 right: 1 - C(24, 2) / C(32, 2).
    expected = [(0.5 + 1 + 0.25) / 4, (1 - 120 / 496 + 1 + 1 - 276 / 496) / 4]
    assert [interval.estimate for interval in numbers.curve([BASE], [1, 2])] == pytest.approx(expected)
    after = numbers.models_of(MEASURED, "NSR")
    changes = [interval.estimate for interval in numbers.curve_differences([BASE], after, [1, 2])]
    assert changes == pytest.approx([4 / 32 / 4, (1 - 378 / 496) / 4])


def test_entropy_is_over_tokens_and_over_seeds() -> None:
    assert numbers.entropy([BASE, kept([0], nats=3.0)]) == pytest.approx((0.1 + 0.3) / 2)
    assert numbers.entropy_share(103)(kept([0], nats=math.log(103) * 10)) == pytest.approx([1.0])


def test_verdicts_and_format() -> None:
    assert numbers.verdict_share([BASE], "no_answer") == pytest.approx(1 - 56 / 128)
    assert numbers.well_formed_accuracy([BASE]) == 1.0
    assert numbers.length([BASE]) == pytest.approx(10 / 32)


def test_distinct_equations_at_eight_right_samples() -> None:
    # Two equations, 8 times each: one is missing among 8 with probability C(8, 8) / C(16, 8).
    models = [kept([16, 7, 8], equations=[[8, 8], [7], [8]]), kept([8, 32, 9])]
    assert numbers.with_enough(models) == [0, 2]
    share = numbers.rarefied([0, 2])(models[0])
    assert share * 8 == pytest.approx([2 - 2 / math.comb(16, 8), 1.0])


@pytest.mark.parametrize(
    ("interval", "not_below", "above"),
    [
        (Interval(0.03, 0.01, 0.05), "holds", "holds"),
        (Interval(0.0, -0.01, 0.01), "holds", "open"),
        (Interval(-0.01, -0.019, -0.001), "holds", "fails"),
        (Interval(0.0, -0.03, 0.03), "open", "open"),
        (Interval(-0.03, -0.05, -0.021), "fails", "fails"),
    ],
)
def test_what_the_plan_calls_an_interval(interval: Interval, not_below: str, above: str) -> None:
    assert numbers.not_below(interval) == not_below
    assert numbers.above(interval) == above


def test_a_claim_of_several_parts() -> None:
    assert numbers.together(["holds", "holds"]) == "holds"
    assert numbers.together(["holds", "open"]) == "open"
    assert numbers.together(["open", "fails", "holds"]) == "fails"
    assert [numbers.opposite(call) for call in ("holds", "fails", "open")] == ["fails", "holds", "open"]


def test_holm_over_differences() -> None:
    interval = Interval(0.0, 0.0, 0.0)
    found = numbers.adjusted([Difference(interval=interval, p_value=p) for p in (0.01, 0.04, 0.03)])
    assert np.allclose(found, [0.03, 0.06, 0.06])
