"""How many different ways of being right a model has."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nsr.evaluation.pass_at_k import pass_at_k
from nsr.tasks.countdown.expression import canonical, parse
from nsr.tasks.countdown.grader import extract_answer
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tasks.countdown.solver import solve


def canonical_equation(completion: str) -> str:
    """The canonical equation of a completion that was graded correct: equal texts for the same equation."""
    answer = extract_answer(completion)
    assert answer is not None, "a correct completion has an answer"
    return canonical(parse(answer))


def rarefied_distinct(counts: Sequence[int], num_draws: int) -> float:
    """Distinct equations to expect among `num_draws` correct samples of a puzzle, drawn without replacement.

    A model that is right more often finds more equations by that alone; at a fixed number of correct samples puzzles
    and models can be compared (Hurlbert 1971, doi:10.2307/1934145). An equation found c times among n correct samples
    is missed with probability C(n - c, m) / C(n, m), so the sum is over pass@m of each equation.

    Args:
        counts: how often each distinct equation was found.
        num_draws: m, at most the sum of `counts`.

    Raises:
        ValueError: there are fewer than `num_draws` correct samples.
    """
    return float(pass_at_k(sum(counts), list(counts), num_draws).sum())


def coverage(puzzle: Puzzle, equations: Collection[str]) -> float | None:
    """Share of the puzzle's solutions that are among the canonical `equations`; None where it has no solution."""
    solutions = solve(puzzle)
    return len(set(equations) & set(solutions)) / len(solutions) if solutions else None
