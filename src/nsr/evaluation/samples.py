"""One row a completion: what every number of an evaluation is computed from, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import numpy as np

from nsr.evaluation.diversity import canonical_equation
from nsr.rollout.engine import Completion, Engine, SamplingParams
from nsr.rollout.rollout import rollout
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle

CHUNK_SAMPLES = 1024


class SampleRow(TypedDict):
    """A graded completion, ready for JSON. Numbers are rounded to 6 decimals, so that a file of many stays small."""

    puzzle: str
    """The puzzle's canonical key."""
    sample: int
    """0, 1, ... within the puzzle; with the key it names the random stream."""
    text: str
    tokens: int
    verdict: str
    equation: str | None
    """Canonical equation of a correct answer, else None."""
    log_prob: float
    """Mean over the tokens of their log-probability (nats) at the sampling temperature."""
    entropy: float | None
    """Mean over the tokens of the entropy (nats) sampled from; None if the engine cannot tell."""
    truncated: bool


def sample_rows(
    engine: Engine,
    encode: Callable[[Puzzle], tuple[int, ...]],
    puzzles: Sequence[Puzzle],
    params: SamplingParams,
    num_samples: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[SampleRow]:
    """Sample and grade `num_samples` completions of every puzzle, row by row in the order of the puzzles.

    Works in chunks of about `CHUNK_SAMPLES` completions, so memory does not grow with their number. `progress` is
    called after each chunk with the number of new completions.
    """
    size = max(1, CHUNK_SAMPLES // num_samples)
    for first in range(0, len(puzzles), size):
        groups = rollout(engine, encode, puzzles[first : first + size], params, num_samples)
        for group in groups:
            for index, (completion, verdict) in enumerate(zip(group.completions, group.verdicts, strict=True)):
                yield _row(group.puzzle, index, completion, verdict)
        if progress is not None:
            progress(len(groups) * num_samples)


def _row(puzzle: Puzzle, index: int, completion: Completion, verdict: Verdict) -> SampleRow:
    return {
        "puzzle": puzzle.key,
        "sample": index,
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "verdict": verdict.value,
        "equation": canonical_equation(completion.text) if verdict is Verdict.CORRECT else None,
        "log_prob": round(float(np.mean(completion.log_probs_T, dtype=np.float64)), 6),
        "entropy": None if completion.entropy is None else round(completion.entropy, 6),
        "truncated": completion.truncated,
    }
