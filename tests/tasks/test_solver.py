"""The solver against enumeration of every tree, and the grader's opinion of what it finds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import pytest

from nsr.tasks.countdown.expression import canonical, parse
from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solver import solve


def enumerated(numbers: tuple[int, ...]) -> Iterator[tuple[Fraction, str]]:
    """Value and text of every binary tree over all of `numbers`, the undefined ones left out."""
    if len(numbers) == 1:
        yield Fraction(numbers[0]), str(numbers[0])
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            left = list(enumerated(tuple(numbers[place] for place in chosen)))
            right = list(enumerated(tuple(number for place, number in enumerate(numbers) if place not in chosen)))
            for (a, a_text), (b, b_text) in itertools.product(left, right):
                yield a + b, f"({a_text}+{b_text})"
                yield a - b, f"({a_text}-{b_text})"
                yield a * b, f"({a_text}*{b_text})"
                if b:
                    yield a / b, f"({a_text}/{b_text})"


@pytest.mark.parametrize(
    ("numbers", "target"),
    [
        ((5, 3), 8),
        ((5, 3), 15),
        ((3, 5), 7),
        ((6, 6), 1),
        ((44, 19, 35), 98),
        ((1, 1, 1), 1),
        ((2, 2, 2), 2),
        ((4, 2, 2), 4),
        ((12, 3, 4), 1),
        ((7, 5, 5), 7),
        ((1, 2, 3), 6),
        ((8, 3, 8, 3), 24),
        ((1, 1, 1, 1), 1),
        ((5, 5, 5, 5), 5),
        ((7, 5, 5, 3), 7),
        ((1, 2, 3, 4), 10),
        ((2, 2, 4, 4), 4),
        ((97, 61, 13, 2), 99),
        ((1, 2, 3, 4), 9999),
    ],
)
def test_exactly_what_enumeration_finds(numbers: tuple[int, ...], target: int) -> None:
    hits = {canonical(parse(text)) for value, text in enumerated(numbers) if value == target}
    assert solve(Puzzle(numbers=numbers, target=target)) == sorted(hits)


def test_by_hand() -> None:
    assert solve(Puzzle(numbers=(44, 19, 35), target=98)) == ["19 + 35 + 44"]
    assert solve(Puzzle(numbers=(8, 3, 8, 3), target=24)) == ["8 / (3 - 8 / 3)"]
    assert solve(Puzzle(numbers=(6, 3), target=2)) == ["6 / 3"]
    assert solve(Puzzle(numbers=(7, 1), target=7)) == ["1 * 7", "7 / 1"]
    assert solve(Puzzle(numbers=(5, 3), target=7)) == []


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_solution_is_correct_canonical_and_there_once(size: int) -> None:
    for puzzle in generate(40, seed=11, sizes=(size,), number_range=(1, 20)):
        solutions = solve(puzzle)
        assert solutions, puzzle  # solvable by construction
        assert len(set(solutions)) == len(solutions)
        for solution in solutions:
            assert grade(puzzle, f"<answer>{solution}</answer>") is Verdict.CORRECT
            assert canonical(parse(solution)) == solution


def test_five_numbers() -> None:
    puzzle = Puzzle(numbers=(3, 7, 11, 19, 42), target=100)
    solutions = solve(puzzle)
    assert all(grade(puzzle, f"<answer>{text}</answer>") is Verdict.CORRECT for text in solutions)
    assert len(set(solutions)) == len(solutions) > 1


def test_the_order_of_the_numbers_does_not_matter() -> None:
    found = {tuple(solve(Puzzle(numbers=order, target=24))) for order in itertools.permutations((2, 3, 4, 12))}
    assert len(found) == 1
    assert found != {()}
