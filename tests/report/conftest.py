from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from nsr.evaluation.evaluate import Evaluation, Tally
from nsr.tasks.countdown.puzzle import Puzzle, generate

NUM_PUZZLES = 40
PUZZLES = generate(NUM_PUZZLES, seed=3)


def _evaluation(
    step: int,
    num_correct: Sequence[int],
    *,
    num_samples: int = 4,
    entropy: float | None = 0.5,
    puzzles: Sequence[Puzzle] = PUZZLES,
) -> Evaluation:
    tally = Tally(puzzles, num_samples)
    for puzzle, count in zip(puzzles, num_correct, strict=True):
        for sample in range(num_samples):
            right = sample < count
            tally.add(
                {
                    "puzzle": puzzle.key,
                    "sample": sample,
                    "text": "",
                    "tokens": 10 + step,
                    "verdict": "correct" if right else "wrong_value",
                    "equation": "1 + 2" if right else None,
                    "log_prob": -1.0,
                    "entropy": entropy,
                    "truncated": False,
                }
            )
    measures = tally.measures(with_coverage=False)
    return Evaluation(step=step, temperature=1.0, max_tokens=64, seed=42, greedy_accuracy=None, **measures)


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    """An evaluation from the number of right samples of each puzzle."""
    return _evaluation


@pytest.fixture
def before() -> Evaluation:
    return _evaluation(0, [1, 0] * (NUM_PUZZLES // 2))


@pytest.fixture
def after() -> Evaluation:
    """Each puzzle has one right sample more than in `before`: pass@1 rises by exactly 25 points, pass@4 by 50."""
    return _evaluation(20, [2, 1] * (NUM_PUZZLES // 2), entropy=0.6)
