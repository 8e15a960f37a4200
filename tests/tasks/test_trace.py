"""Traces are right in every step, use the puzzle's numbers, and are graded as correct."""

from __future__ import annotations

import random

import pytest

from nsr.tasks.countdown.expression import evaluate, parse
from nsr.tasks.countdown.grader import Verdict, extract_answer, grade
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.trace import LARGEST_INTERMEDIATE, trace


def attempts(text: str) -> list[list[str]]:
    """The steps of each attempt."""
    reasoning = text.split("<think>")[1].split("</think>", maxsplit=1)[0]
    return [line.split(",") for line in reasoning.split("\n")]


def test_every_trace_is_graded_correct_and_every_step_holds() -> None:
    rng = random.Random(0)
    made = 0
    for puzzle in generate(300, seed=1):
        text = trace(puzzle, rng, failed_attempts=3)
        if text is None:
            continue
        made += 1
        assert grade(puzzle, text) is Verdict.CORRECT
        for steps in attempts(text):
            assert len(steps) == len(puzzle.numbers) - 1
            for step in steps:
                left, right = step.split("=")
                assert evaluate(parse(left)) == int(right)
                assert 1 <= int(right) <= LARGEST_INTERMEDIATE
    assert made > 270


def test_only_the_last_attempt_reaches_the_target() -> None:
    rng = random.Random(0)
    for puzzle in generate(100, seed=2):
        text = trace(puzzle, rng, failed_attempts=3)
        if text is not None:
            results = [int(steps[-1].split("=")[1]) for steps in attempts(text)]
            assert results[-1] == puzzle.target
            assert puzzle.target not in results[:-1]


@pytest.mark.parametrize(
    ("numbers", "target", "expected"),
    [
        # The only solution, larger number first.
        ((44, 19, 35), 98, "<think>44+35=79,79+19=98</think><answer>44+35+19</answer>"),
        # Dividing first keeps the numbers small: 60/12 before times 7.
        ((7, 12, 60), 35, "<think>60/12=5,7*5=35</think><answer>7*60/12</answer>"),
        # A sum inside a product is in brackets.
        ((3, 5, 12), 96, "<think>5+3=8,12*8=96</think><answer>12*(5+3)</answer>"),
    ],
)
def test_a_trace_without_failures(numbers: tuple[int, ...], target: int, expected: str) -> None:
    assert trace(Puzzle(numbers=numbers, target=target), random.Random(0), failed_attempts=0) == expected


def test_no_trace_where_the_only_solutions_need_fractions() -> None:
    # 24 = 8 / (3 - 8/3) is the one solution of 3, 3, 8, 8.
    assert trace(Puzzle(numbers=(3, 3, 8, 8), target=24), random.Random(0), failed_attempts=0) is None


def test_the_seed_decides() -> None:
    puzzle = Puzzle(numbers=(44, 19, 35, 2), target=96)
    texts = {trace(puzzle, random.Random(seed), failed_attempts=3) for seed in range(20)}
    assert len(texts) > 5
    assert trace(puzzle, random.Random(3), 3) == trace(puzzle, random.Random(3), 3)
    assert all(extract_answer(text) is not None for text in texts if text)
