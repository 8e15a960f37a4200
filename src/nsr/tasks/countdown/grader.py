"""(Puzzle, completion text) -> Verdict. Only the completion is graded, and no text makes the grader raise."""

from __future__ import annotations

import enum

from nsr.tasks.countdown.expression import MalformedExpression, evaluate, literals, parse
from nsr.tasks.countdown.prompt import ANSWER_CLOSE, ANSWER_OPEN
from nsr.tasks.countdown.puzzle import Puzzle

_OPEN, _CLOSE = ANSWER_OPEN.encode(), ANSWER_CLOSE.encode()


class Verdict(enum.Enum):
    """What became of a completion: the first that applies, in this order, else `CORRECT`."""

    NO_ANSWER = "no_answer"
    """There is no <answer> ... </answer>."""
    MALFORMED = "malformed"
    """The answer does not follow the grammar of `nsr.tasks.countdown.expression`, or exceeds its bounds."""
    WRONG_NUMBERS = "wrong_numbers"
    """The literals are not the puzzle's numbers, each exactly once."""
    DIVISION_BY_ZERO = "division_by_zero"
    """The value is not defined."""
    WRONG_VALUE = "wrong_value"
    """The value, an exact rational, is not the target."""
    CORRECT = "correct"

    @property
    def reward(self) -> float:
        """+1.0 for `CORRECT`, -1.0 for everything else."""
        return 1.0 if self is Verdict.CORRECT else -1.0


def extract_answer(completion: str) -> str | None:
    """The text between the last </answer> and the nearest <answer> before it; None if there is no such pair."""
    # Every character becomes one byte, and those that are not ASCII a "?": places stay, and nothing folds to a letter.
    # Quicker than a regular expression, whose worst text of a million characters takes 5 ms where this one takes 2.
    small = completion.encode("ascii", "replace").lower()
    closed = small.rfind(_CLOSE)
    opened = small.rfind(_OPEN, 0, max(closed, 0))
    return None if opened < 0 else completion[opened + len(_OPEN) : closed]


def grade(puzzle: Puzzle, completion: str) -> Verdict:
    """The verdict on `completion`, a model's whole response to `puzzle` without the prompt.

    Never raises, and the work is linear in the length of the text.
    """
    answer = extract_answer(completion)
    if answer is None:
        return Verdict.NO_ANSWER
    try:
        node = parse(answer)
    except MalformedExpression:
        return Verdict.MALFORMED
    if sorted(literals(node)) != sorted(puzzle.numbers):
        return Verdict.WRONG_NUMBERS
    try:
        value = evaluate(node)
    except ZeroDivisionError:
        return Verdict.DIVISION_BY_ZERO
    return Verdict.CORRECT if value == puzzle.target else Verdict.WRONG_VALUE
