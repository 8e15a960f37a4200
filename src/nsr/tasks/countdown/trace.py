"""Solver traces: the reasoning texts of the supervised warm start.

A trace tries some combinations that fail, then one that works, then gives the answer::

    <think>44+35=79,79-19=60
    44+35=79,79+19=98</think><answer>44+35+19</answer>

Steps are written so that a small model can learn them: the larger number first, whole numbers above zero only.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from nsr.tasks.countdown.expression import Node, Number, Sum, parse
from nsr.tasks.countdown.prompt import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tasks.countdown.solver import solve

LARGEST_INTERMEDIATE = 999
_CANDIDATES = 4  # a failed attempt is the nearest of so many random ones: near misses teach more than noise
_SUM, _PRODUCT, _ATOM = range(3)  # how tightly a text binds


class _Value(NamedTuple):
    value: int
    text: str
    binding: int

    def inside_product(self) -> str:
        return f"({self.text})" if self.binding == _SUM else self.text


class _NotWhole(Exception):
    """The equation has no order of steps in whole numbers above zero within the bound."""


def trace(puzzle: Puzzle, rng: random.Random, failed_attempts: int) -> str | None:
    """One trace for `puzzle` with at most `failed_attempts` failed attempts before the one that works.

    Returns None when no solution has steps in whole numbers from 1 to `LARGEST_INTERMEDIATE`.
    """
    solutions = [steps for equation in solve(puzzle) if (steps := _steps(equation)) is not None]
    if not solutions:
        return None
    steps, answer = rng.choice(solutions)
    attempts: list[str] = []
    for _ in range(failed_attempts):
        failed = _near_miss(puzzle, rng)
        if failed is not None and failed not in attempts:
            attempts.append(failed)
    attempts.append(",".join(steps))
    reasoning = "\n".join(attempts)
    return f"{THINK_OPEN}{reasoning}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


def _steps(equation: str) -> tuple[list[str], str] | None:
    """The canonical `equation` as single steps ("44+35=79", ...) and as an answer without blanks."""
    steps: list[str] = []
    try:
        return steps, _work_out(parse(equation), steps).text
    except _NotWhole:
        return None


def _work_out(node: Node, steps: list[str]) -> _Value:
    if isinstance(node, Number):
        return _Value(node.value, str(node.value), _ATOM)
    children = node.terms if isinstance(node, Sum) else node.factors
    values = [(sign, _work_out(child, steps)) for sign, child in children]
    first = sorted((value for sign, value in values if sign > 0), key=lambda value: -value.value)
    second = sorted((value for sign, value in values if sign < 0), key=lambda value: -value.value)
    if not first:
        raise _NotWhole
    if isinstance(node, Sum):
        return _fold(_fold(first[0], "+", first[1:], steps), "-", second, steps)
    # Dividing before multiplying keeps the numbers small; where no single factor divides, multiply first.
    for divisor in list(second):
        position = next((i for i, value in enumerate(first) if value.value % divisor.value == 0), None)
        if position is not None:
            first[position] = _step(first[position], "/", divisor, steps)
            second.remove(divisor)
    first.sort(key=lambda value: -value.value)
    return _fold(_fold(first[0], "*", first[1:], steps), "/", second, steps)


def _fold(start: _Value, operator: str, others: list[_Value], steps: list[str]) -> _Value:
    for other in others:
        start = _step(start, operator, other, steps)
    return start


def _step(left: _Value, operator: str, right: _Value, steps: list[str]) -> _Value:
    result = _apply(left, operator, right)
    if result is None:
        raise _NotWhole
    steps.append(_written(left, operator, right, result))
    return result


def _written(left: _Value, operator: str, right: _Value, result: _Value) -> str:
    a, b = left.value, right.value
    if operator in "+*" and a < b:
        a, b = b, a
    return f"{a}{operator}{b}={result.value}"


def _apply(left: _Value, operator: str, right: _Value) -> _Value | None:
    """`left` operator `right` as one value; None if it is not a whole number from 1 to the bound."""
    if operator == "+":
        value, text, binding = left.value + right.value, f"{left.text}+{right.text}", _SUM
    elif operator == "-":
        subtrahend = f"({right.text})" if right.binding == _SUM else right.text
        value, text, binding = left.value - right.value, f"{left.text}-{subtrahend}", _SUM
    elif operator == "*":
        factor = f"({right.text})" if right.binding == _SUM else right.text
        value, text, binding = left.value * right.value, f"{left.inside_product()}*{factor}", _PRODUCT
    else:
        if right.value == 0 or left.value % right.value:
            return None
        divisor = right.text if right.binding == _ATOM else f"({right.text})"
        value, text, binding = left.value // right.value, f"{left.inside_product()}/{divisor}", _PRODUCT
    return _Value(value, text, binding) if 1 <= value <= LARGEST_INTERMEDIATE else None


def _near_miss(puzzle: Puzzle, rng: random.Random) -> str | None:
    """The random attempt nearest to the target among a few, without hitting it."""
    attempts = [attempt for _ in range(_CANDIDATES) if (attempt := _random_attempt(puzzle, rng)) is not None]
    return min(attempts, key=lambda attempt: abs(attempt[0] - puzzle.target))[1] if attempts else None


def _random_attempt(puzzle: Puzzle, rng: random.Random) -> tuple[int, str] | None:
    """Combine two numbers at random until one is left; the last operator is the one nearest to the target."""
    pool = [_Value(number, str(number), _ATOM) for number in puzzle.numbers]
    steps: list[str] = []
    while len(pool) > 1:
        left, right = rng.sample(pool, 2)
        if left.value < right.value:
            left, right = right, left
        results = {operator: result for operator in "+-*/" if (result := _apply(left, operator, right)) is not None}
        if len(pool) == 2:
            results = {operator: result for operator, result in results.items() if result.value != puzzle.target}
            if not results:
                return None
            operator = min(results, key=lambda operator: abs(results[operator].value - puzzle.target))
        else:
            # Sums and differences are what most puzzles want, and a product is seldom below the target's range.
            weights = [{"+": 5, "-": 5, "*": 2, "/": 3}[operator] for operator in results]
            operator = rng.choices(list(results), weights)[0]
        pool.remove(left)
        pool.remove(right)
        pool.append(results[operator])
        steps.append(_written(left, operator, right, results[operator]))
    return pool[0].value, ",".join(steps)
