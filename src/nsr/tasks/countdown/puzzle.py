"""The puzzle record, its canonical key, and the seeded generator of solvable puzzles."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from nsr.errors import UserError

MIN_SIZE, MAX_SIZE = 2, 6
MAX_VALUE = 9999
_MAX_COUNT = 10_000_000
_KEY = re.compile(r"([0-9]{1,4}(?:,[0-9]{1,4})*)=([0-9]{1,4})")


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """Combine `numbers`, each exactly once, with + - * / and brackets into `target`.

    `numbers` keep the order given; a list is stored as a tuple.

    Raises:
        ValueError: fewer than 2 or more than 6 numbers, or a number or target that is no whole number from 1 to 9999.
    """

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        numbers = cast(object, self.numbers)
        if not isinstance(numbers, tuple | list):
            raise UserError(f"numbers must be a tuple or list of whole numbers, not {shown(numbers)}.")
        if not MIN_SIZE <= len(self.numbers) <= MAX_SIZE:
            raise UserError(f"a puzzle has {MIN_SIZE} to {MAX_SIZE} numbers, not {len(self.numbers)}.")
        for number in self.numbers:
            _check_value("each of the numbers", number)
        _check_value("the target", self.target)
        object.__setattr__(self, "numbers", tuple(self.numbers))

    @property
    def key(self) -> str:
        """The canonical key: sorted numbers and target, such as "19,35,44=98". Equal for puzzles that are the same."""
        return f"{','.join(map(str, sorted(self.numbers)))}={self.target}"

    @classmethod
    def from_key(cls, key: str) -> Puzzle:
        """The puzzle with a canonical key, its numbers in order. Raises ValueError for a text that is no such key."""
        match = _KEY.fullmatch(key)
        puzzle = cls(numbers=tuple(map(int, match[1].split(","))), target=int(match[2])) if match else None
        if puzzle is None or puzzle.key != key:
            raise UserError(f"the key of a puzzle is like 19,35,44=98, not {shown(key)}.")
        return puzzle


def generate(
    count: int,
    seed: int = 0,
    sizes: Sequence[int] = (3, 4),
    number_range: tuple[int, int] = (1, 99),
    target_range: tuple[int, int] = (10, 100),
) -> list[Puzzle]:
    """`count` different puzzles, each solvable: it is made from an equation, drawn at random and evaluated.

    The default imitates the rows of the public Countdown-Tasks-3to4. The same arguments give the same list, and a
    smaller `count` gives the start of it.

    Args:
        count: how many, at most 10 million; no two have the same canonical key.
        seed: zero or above.
        sizes: how many numbers a puzzle may have, each from 2 to 6; all sizes are equally frequent.
        number_range: smallest and largest number, both included.
        target_range: smallest and largest target, both included.

    Raises:
        ValueError: an argument is out of its range, or so many different puzzles could not be found.
    """
    _check_whole("count", count, 0, _MAX_COUNT)
    _check_whole("seed", seed, 0, None)
    for size in sizes:
        _check_whole("each of sizes", size, MIN_SIZE, MAX_SIZE)
    if not sizes:
        raise UserError(f"sizes must name at least one size from {MIN_SIZE} to {MAX_SIZE}; it is empty.")
    _check_range("number_range", number_range)
    _check_range("target_range", target_range)
    wanted = sorted(set(sizes))
    rounds = -(-count // len(wanted))
    streams = [_stream(_Equations(size, number_range, target_range), rounds, seed) for size in wanted]
    # Each round holds every size once, in random order; rows fill one after the other, so a smaller count starts alike.
    order = np.random.default_rng([seed]).random((rounds, len(wanted))).argsort(axis=1)
    return [next(streams[index]) for index in order.ravel()[:count].tolist()]


_BLOCK = 1 << 15  # equations drawn at once
_FRUITLESS_BLOCKS = 64  # so many blocks in a row without a new puzzle: there is none, or none worth waiting for


def _stream(equations: _Equations, needed: int, seed: int) -> Iterator[Puzzle]:
    """Different puzzles of one size; ends with a `ValueError` when no more are found in a bounded number of tries."""
    seen: set[tuple[int, ...]] = set()
    fruitless = 0
    for block in range(_FRUITLESS_BLOCKS + 8 * needed):
        known = len(seen)
        for *numbers, target in equations.draw(np.random.default_rng([seed, equations.size, block])).tolist():
            key = (*sorted(numbers), target)
            if key not in seen:
                seen.add(key)
                yield Puzzle(numbers=tuple(numbers), target=target)
        fruitless = fruitless + 1 if len(seen) == known else 0
        if fruitless == _FRUITLESS_BLOCKS:
            break
    raise UserError(
        f"found {len(seen)} of the {needed} different puzzles needed with {equations.size} numbers from "
        f"{equations.number_range[0]} to {equations.number_range[1]} and a target from {equations.target_range[0]} to "
        f"{equations.target_range[1]}: ask for fewer, or widen number_range or target_range."
    )


# An equation's form without its signs: the forms of a node's operands, () for a number. Sums and products alternate.
_Form: TypeAlias = "tuple[_Form, ...]"
_Values: TypeAlias = NDArray[np.float64]

# Fitted to the quantiles of the real rows, which a test records.
_PLAIN_SUM_WEIGHT = 1.1  # real rows that + and - alone solve are so much more frequent than among all equations
_LOWEST_TARGET_KEPT = 0.66  # real targets are near uniform; random equations reach low ones more often
_EXACT = 2.0**50  # whole numbers up to here, and sums of six of them, are exact in float64


class _Equations:
    """Equations over `size` numbers, drawn evenly from all canonical ones; those with a target in range are kept."""

    def __init__(self, size: int, number_range: tuple[int, int], target_range: tuple[int, int]) -> None:
        self.size, self.number_range, self.target_range = size, number_range, target_range
        weighted = {(is_sum, form): float(n) for is_sum in (True, False) for form, n in _forms(size, is_sum).items()}
        weighted[True, ((),) * size] *= _PLAIN_SUM_WEIGHT
        self.forms = list(weighted)
        weights = np.array(list(weighted.values()))
        self.shares = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of `size` numbers and a target: what is left of one block."""
        low, high = self.number_range
        inside: list[NDArray[np.int64]] = []
        for (is_sum, form), count in zip(self.forms, rng.multinomial(_BLOCK, self.shares), strict=True):
            numbers = rng.integers(low, high + 1, (self.size, count))
            with np.errstate(all="ignore"):  # what is no number is dropped
                values = _evaluate(form, is_sum, iter(numbers.astype(np.float64)), rng)
            is_inside = (values >= self.target_range[0]) & (values <= self.target_range[1])
            inside.append(np.vstack([numbers[:, is_inside], values[is_inside].astype(np.int64)]).T)
        rows = np.concatenate(inside)
        keep = self._keep_probability(rows)
        rows = rows[rng.random(len(rows)) * keep.max(initial=0) < keep]
        rows[:, :-1] = rng.permuted(rows[:, :-1], axis=1)
        rng.shuffle(rows)
        return rows

    def _keep_probability(self, rows: NDArray[np.int64]) -> _Values:
        numbers, targets = np.sort(rows[:, :-1], axis=1), rows[:, -1]
        lowest, highest = self.target_range
        keep = _LOWEST_TARGET_KEPT + (1 - _LOWEST_TARGET_KEPT) * (targets - lowest) / max(highest - lowest, 1)
        # A 1 serves as a factor or a divisor, in many places: such puzzles were drawn at least twice as often.
        keep = keep / 2.0 ** (numbers == 1).sum(axis=1)
        # A number that stands twice could change places with its twin: the same equation was drawn twice as often.
        repeats = np.ones(len(rows))
        for column in range(1, self.size):
            repeats = np.where(numbers[:, column] == numbers[:, column - 1], repeats + 1, 1)
            keep = keep / repeats
        return keep


def _forms(size: int, is_sum: bool) -> Counter[_Form]:
    """Each form over `size` numbers, and how many equations it has: places for the numbers times choices of signs."""
    if size == 1:
        return Counter({(): 1})
    counts: Counter[_Form] = Counter()
    for parts in _partitions(size, size - 1):
        # The signs of a sum count up to a common one, since its value is made positive; not all factors stand below.
        choices = 2 ** (len(parts) - 1) if is_sum else 2 ** len(parts) - 1
        alike = math.prod(map(math.factorial, parts)) * math.prod(map(math.factorial, Counter(parts).values()))
        partial: dict[_Form, int] = {(): choices * math.factorial(size) // alike}
        for part in parts:
            operands = _forms(part, not is_sum).items()
            partial = {(*form, child): a * b for form, a in partial.items() for child, b in operands}
        for form, count in partial.items():
            counts[tuple(sorted(form))] += count
    return counts


def _partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Ways to write `total` as a sum of parts up to `largest`, the largest part first."""
    if total == 0:
        yield ()
    for part in range(min(total, largest), 0, -1):
        for rest in _partitions(total - part, part):
            yield (part, *rest)


def _evaluate(form: _Form, is_sum: bool, numbers: Iterator[_Values], rng: np.random.Generator) -> _Values:
    """Values of `form` with random signs, one for each column of `numbers`; nan where a step is no whole number."""
    if not form:
        return next(numbers)
    operands = [_evaluate(child, not is_sum, numbers, rng) for child in form]
    if is_sum:
        signs = rng.integers(0, 2 ** len(operands), len(operands[0]))
        return np.abs(sum(np.where(signs >> bit & 1, -operand, operand) for bit, operand in enumerate(operands)))
    below_line = rng.integers(0, 2 ** len(operands) - 1, len(operands[0]))  # all of them below the line is left out
    above, below = np.ones(len(below_line)), np.ones(len(below_line))
    for bit, operand in enumerate(operands):
        is_below = (below_line >> bit & 1).astype(bool)
        above *= np.where(is_below, 1.0, operand)
        below *= np.where(is_below, operand, 1.0)
    values = above / below
    # A zero factor would leave the other factors without work: such puzzles are far rarer among the real rows.
    whole = (above > 0) & (above < _EXACT) & (below < _EXACT) & (values == np.floor(values))
    return np.where(whole, values, np.nan)


def _check_value(what: str, value: object) -> None:
    _check_whole(what, value, 1, MAX_VALUE)


def _check_range(what: str, limits: object) -> None:
    if not isinstance(limits, tuple | list) or len(cast("tuple[object, ...]", limits)) != 2:
        raise UserError(f"{what} must be a pair (smallest, largest), not {shown(limits)}.")
    low, high = cast("tuple[int, int]", limits)
    _check_value(f"each end of {what}", low)
    _check_value(f"each end of {what}", high)
    if low > high:
        raise UserError(f"{what} must not end below its start: {low} to {high}.")


def _check_whole(what: str, value: object, low: int, high: int | None) -> None:
    # bool is a subclass of int, and True is no number here.
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        allowed = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise UserError(f"{what} must be a whole number {allowed}, not {shown(value)}.")


def shown(value: object) -> str:
    """`value` for an error message, cut to a readable length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits, or a list of more levels, than Python writes out
        text = f"a very large {type(value).__name__}"
    return cut(text, 60)


def plain(text: str) -> str:
    """Text from outside for a message of one line: whatever breaks a line or controls a terminal is an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def cut(text: str, longest: int) -> str:
    """`text`, or the start of it and three dots."""
    return text if len(text) <= longest else text[: longest - 3] + "..."
