"""The puzzle record and its canonical key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

MIN_SIZE, MAX_SIZE = 2, 6
MAX_VALUE = 9999


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
            raise ValueError(f"numbers must be a tuple or list of whole numbers, not {_shown(numbers)}.")
        if not MIN_SIZE <= len(self.numbers) <= MAX_SIZE:
            raise ValueError(f"a puzzle has {MIN_SIZE} to {MAX_SIZE} numbers, not {len(self.numbers)}: {_shown(numbers)}.")
        for number in self.numbers:
            _check_value("each of the numbers", number)
        _check_value("the target", self.target)
        object.__setattr__(self, "numbers", tuple(self.numbers))

    @property
    def key(self) -> str:
        """The canonical key: sorted numbers and target, such as "19,35,44=98". Equal for puzzles that are the same."""
        return f"{','.join(map(str, sorted(self.numbers)))}={self.target}"


def _check_value(what: str, value: object) -> None:
    # bool is a subclass of int, and True is no number of a puzzle.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_VALUE:
        raise ValueError(f"{what} must be a whole number from 1 to {MAX_VALUE}, not {_shown(value)}.")


def _shown(value: object) -> str:
    """`value` for an error message, cut to a readable length."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python writes out
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
