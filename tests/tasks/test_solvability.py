"""The quick search against the solver, which finds every equation."""

from __future__ import annotations

import random

import pytest

from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solvability import is_solvable, sums_suffice
from nsr.tasks.countdown.solver import solve


@pytest.mark.parametrize(
    ("size", "largest", "count"), [(2, 12, 100), (3, 12, 100), (3, 40, 200), (4, 6, 60), (4, 99, 20), (5, 4, 15)]
)
def test_agrees_with_the_solver(size: int, largest: int, count: int) -> None:
    rng = random.Random(size * largest)
    answers: set[bool] = set()
    for _ in range(count):
        numbers = tuple(rng.randint(1, largest) for _ in range(size))
        puzzle = Puzzle(numbers=numbers, target=rng.randint(1, 100))
        assert is_solvable(puzzle) == bool(solve(puzzle)), puzzle
        answers.add(is_solvable(puzzle))
    assert answers == {True, False}


@pytest.mark.parametrize(("size", "largest"), [(2, 12), (3, 20), (4, 12)])
def test_sums_alone_agree_with_the_solver(size: int, largest: int) -> None:
    rng = random.Random(size)
    answers: set[bool] = set()
    for _ in range(40):
        numbers = tuple(rng.randint(1, largest) for _ in range(size))
        puzzle = Puzzle(numbers=numbers, target=rng.randint(1, 30))
        without = [equation for equation in solve(puzzle) if not set(equation) & set("*/")]
        assert sums_suffice(puzzle) == bool(without), puzzle
        answers.add(sums_suffice(puzzle))
    assert answers == {True, False}


@pytest.mark.parametrize(
    ("numbers", "target", "solvable"),
    [
        ((8, 3, 8, 3), 24, True),  # by 8 / (3 - 8 / 3) alone
        ((50, 50, 71, 34, 9), 9, True),  # by 9 + (50 - 50) * ...
        ((50, 50, 971, 834, 697, 9), 9, True),
        ((51, 20, 31, 971, 834, 9), 9, True),
        ((5, 5, 9973, 7), 7, True),
        ((1, 1, 1, 1, 1), 6, True),  # (1 + 1) * (1 + 1 + 1)
        ((1, 1, 1, 1, 1), 7, False),  # 6 is the most that five ones make
        ((1, 1, 1, 1, 1, 1), 9, True),
        ((1, 1, 1, 1, 1, 1), 10, False),  # 9 is the most that six ones make
        ((2, 2), 3, False),
    ],
)
def test_by_hand(numbers: tuple[int, ...], target: int, solvable: bool) -> None:
    assert is_solvable(Puzzle(numbers=numbers, target=target)) is solvable


@pytest.mark.parametrize("size", [5, 6])
def test_generated_puzzles_are_solvable(size: int) -> None:
    assert all(map(is_solvable, generate(20, seed=3, sizes=(size,))))
