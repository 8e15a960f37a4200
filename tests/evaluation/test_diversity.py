from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsr.evaluation.diversity import canonical_equation, coverage, rarefied_distinct
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tasks.countdown.solver import solve


def test_equal_answers_have_one_canonical_equation() -> None:
    written = [
        "<think>?</think><answer>44+19+35</answer>",
        "<ANSWER>(35 + 44) - (-19)</ANSWER>",
        "<answer>19+(35+44)</answer>",
    ]
    assert {canonical_equation(text) for text in written} == {"19 + 35 + 44"}
    assert canonical_equation("<answer>(7-3)*5</answer>") != canonical_equation("<answer>7*5-3*5</answer>")


def test_rarefied_distinct_by_hand() -> None:
    assert rarefied_distinct([4], 2) == pytest.approx(1)  # one equation, however often
    assert rarefied_distinct([1, 1, 1, 1], 3) == pytest.approx(3)  # all different
    # Pairs out of a, a, b: aa, ab, ab hold 1, 2, 2 distinct ones.
    assert rarefied_distinct([2, 1], 2) == pytest.approx(5 / 3)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_rarefied_distinct_is_the_mean_over_all_subsets(counts: list[int], data: st.DataObject) -> None:
    samples = [equation for equation, count in enumerate(counts) for _ in range(count)]
    num_draws = data.draw(st.integers(1, len(samples)))
    subsets = list(combinations(samples, num_draws))
    mean = sum(len(set(subset)) for subset in subsets) / len(subsets)
    assert rarefied_distinct(counts, num_draws) == pytest.approx(mean)


def test_rarefied_distinct_does_not_reward_more_samples() -> None:
    assert rarefied_distinct([1, 1], 2) == pytest.approx(2)
    assert rarefied_distinct([50, 50], 2) < 1.6  # the same two equations, found by a model that is right more often


def test_rarefied_distinct_needs_enough_correct_samples() -> None:
    with pytest.raises(ValueError, match="k = 4 with num_samples = 3"):
        rarefied_distinct([2, 1], 4)


def test_coverage_counts_solutions_once() -> None:
    puzzle = Puzzle(numbers=(2, 3, 6), target=12)
    solutions = solve(puzzle)
    assert len(solutions) > 1
    assert coverage(puzzle, []) == 0.0
    assert coverage(puzzle, solutions[:1] * 3) == pytest.approx(1 / len(solutions))
    assert coverage(puzzle, [*solutions, "1 + 1"]) == 1.0


def test_coverage_of_an_unsolvable_puzzle_is_unknown() -> None:
    assert coverage(Puzzle(numbers=(1, 1), target=50), []) is None
