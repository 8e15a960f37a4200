"""Whether a puzzle has a solution at all: many times quicker than `solver.solve`, which finds every one."""

from __future__ import annotations

import math
from typing import TypeAlias

from nsr.tasks.countdown.puzzle import Puzzle

# A value of zero or above as (numerator, denominator) in lowest terms. Signs do not matter: whatever an expression
# gives, turning its differences around gives the positive value, so a + b, |a - b|, a * b, a / b and b / a reach all.
_Ratio: TypeAlias = "tuple[int, int]"
_Numbers: TypeAlias = "tuple[int, ...]"


def is_solvable(puzzle: Puzzle) -> bool:
    """True if some equation uses each number once and gives the target; the search stops at the first one."""
    return _reaches(puzzle.numbers, (puzzle.target, 1), {})


def sums_suffice(puzzle: Puzzle) -> bool:
    """True if the puzzle can be solved with + and - alone.

    Brackets and signs then decide no more than which numbers are added and which taken away.
    """
    sums = {0}
    for number in puzzle.numbers:
        sums = {value + signed for value in sums for signed in (number, -number)}
    return puzzle.target in sums


def _reaches(numbers: _Numbers, goal: _Ratio, tables: dict[_Numbers, set[_Ratio]]) -> bool:
    """Whether `numbers` can make `goal`: up to three by table, more by what a part of them leaves to be made."""
    if len(numbers) <= 3:
        return goal in _table(numbers, tables)
    return any(
        _reaches(rest, missing, tables)
        for part, rest in _splits(numbers)
        for value in _table(part, tables)
        for missing in _missing(value, goal)
    )


def _table(numbers: _Numbers, tables: dict[_Numbers, set[_Ratio]]) -> set[_Ratio]:
    """All values that `numbers` can make."""
    table = tables.get(numbers)
    if table is None:
        table = {(numbers[0], 1)} if len(numbers) == 1 else set[_Ratio]()
        for part, rest in _splits(numbers):
            for a in _table(part, tables):
                for b in _table(rest, tables):
                    table.update(_combined(a, b))
        tables[numbers] = table
    return table


def _combined(a: _Ratio, b: _Ratio) -> list[_Ratio]:
    left, right, below = a[0] * b[1], b[0] * a[1], a[1] * b[1]
    values = [_ratio(left + right, below), _ratio(abs(left - right), below), _ratio(a[0] * b[0], below)]
    if right:
        values.append(_ratio(left, right))
    if left:
        values.append(_ratio(right, left))
    return values


def _missing(a: _Ratio, goal: _Ratio) -> list[_Ratio]:
    """Every x that makes `goal` together with `a`.

    0 makes 0 with any x, and only x = 0 is named: a number times what makes 0 out of the others is found anyway.
    """
    left, right, below = a[0] * goal[1], goal[0] * a[1], a[1] * goal[1]
    found = [_ratio(left + right, below), _ratio(abs(left - right), below)]
    if left:
        found += [_ratio(right, left), _ratio(goal[0] * a[0], below)]
        if right:
            found.append(_ratio(left, right))
    return found


def _splits(numbers: _Numbers) -> list[tuple[_Numbers, _Numbers]]:
    """Ways to part `numbers` into two, the smaller part first."""
    splits: list[tuple[_Numbers, _Numbers]] = []
    for chosen in range(1, 2 ** (len(numbers) - 1)):  # without the last number, so that each way comes once
        part = tuple(number for place, number in enumerate(numbers) if chosen >> place & 1)
        rest = tuple(number for place, number in enumerate(numbers) if not chosen >> place & 1)
        splits.append((part, rest) if len(part) <= len(rest) else (rest, part))
    return splits


def _ratio(numerator: int, denominator: int) -> _Ratio:
    divisor = math.gcd(numerator, denominator)
    return numerator // divisor, denominator // divisor
