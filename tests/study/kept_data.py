"""Made-up kept evaluations for the tests of the study: every field stated, few of them of interest."""

from __future__ import annotations

from study.keep import Kept


def kept(
    correct: list[int],
    *,
    num_samples: int = 32,
    model: str = "base",
    method: str = "base",
    part: str | None = None,
    seed: int | None = None,
    equations: list[list[int]] | None = None,
    nats: float = 1.0,
) -> Kept:
    """A model with so many right samples of each puzzle; every other sample has no answer."""
    count = len(correct)
    return Kept(
        model=model,
        method=method,
        part=part or ("base" if seed is None else "main"),
        seed=seed,
        rate=None if seed is None else 3e-5,
        temperature=1.0,
        num_samples=num_samples,
        correct=correct,
        equations=[[number] if number else [] for number in correct] if equations is None else equations,
        tokens=[10] * count,
        nats=[nats] * count,
        greedy=[int(2 * number > num_samples) for number in correct],
        verdicts={
            "no_answer": num_samples * count - sum(correct),
            "malformed": 0,
            "wrong_numbers": 0,
            "division_by_zero": 0,
            "wrong_value": 0,
            "correct": sum(correct),
        },
        truncated=0,
        seconds=1.0,
        commit="abc",
    )
