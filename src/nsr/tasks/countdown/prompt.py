"""Puzzle -> chat messages. The one home of the tag contract: reasoning in <think>, the bare expression in <answer>."""

from __future__ import annotations

from nsr.tasks.countdown.puzzle import Puzzle

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# The embedded model's tokenizer reduces everything here but the numbers and the target to a few tokens
# (nsr.models.embedded builds it from these very strings).
BEFORE_NUMBERS = "Using the numbers "
BEFORE_TARGET = ", write an expression that equals "
AFTER_TARGET = (
    ". The operations are + - * / and parentheses; use each number exactly once. "
    f"First reason inside {THINK_OPEN} {THINK_CLOSE}, then give the bare expression, without an equals sign, "
    f"inside {ANSWER_OPEN} {ANSWER_CLOSE}. "
)
EXAMPLE = (
    "For example, using the numbers 3, 5, 2 to make 16: "
    f"{THINK_OPEN}5+3=8,8*2=16{THINK_CLOSE}{ANSWER_OPEN}(5+3)*2{ANSWER_CLOSE}"
)


def budget(max_tokens: int) -> str:
    """The sentence that states the token budget."""
    return f"Your whole response may take at most {max_tokens} tokens. "


def build_messages(puzzle: Puzzle, max_tokens: int) -> list[dict[str, str]]:
    """Chat messages that state `puzzle` and the response budget of `max_tokens` tokens: one user message.

    One message only, since some chat templates know no system role.
    """
    numbers = ", ".join(map(str, puzzle.numbers))
    content = f"{BEFORE_NUMBERS}{numbers}{BEFORE_TARGET}{puzzle.target}{AFTER_TARGET}{budget(max_tokens)}{EXAMPLE}"
    return [{"role": "user", "content": content}]
