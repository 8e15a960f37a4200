"""Puzzles become graded groups, in order, whatever the chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from nsr.rollout.engine import Completion, Request, SamplingParams
from nsr.rollout.rollout import RolloutGroup, rewards, rollout
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle

PUZZLES = [*[Puzzle(numbers=(10, 20), target=10 + n) for n in (20, 1, 20, 2)][:2], Puzzle(numbers=(3, 5), target=8)]


class Parrot:
    """Answers "10 + 20" with every even sample, nothing with every odd one."""

    def __init__(self) -> None:
        self.chunks: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        self.chunks.append(list(requests))
        return [[self._completion(sample) for sample in range(request.num_samples)] for request in requests]

    def load_weights(self, policy: object) -> None:
        raise NotImplementedError

    def _completion(self, sample: int) -> Completion:
        text = "<answer>10 + 20</answer>" if sample % 2 == 0 else "no idea"
        return Completion(
            token_ids=(sample + 1,), text=text, log_probs_T=np.zeros(1, np.float32), entropy=0.0, finish_reason="stop"
        )


def encode(puzzle: Puzzle) -> tuple[int, ...]:
    return (*puzzle.numbers, puzzle.target)


def test_groups_are_graded_against_their_own_puzzle(params) -> None:
    groups = rollout(Parrot(), encode, PUZZLES, params(), 3)
    assert [group.puzzle for group in groups] == PUZZLES
    assert [group.prompt_ids for group in groups] == [(10, 20, 30), (10, 20, 11), (3, 5, 8)]
    assert groups[0].verdicts == (Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.CORRECT)
    assert groups[1].verdicts == (Verdict.WRONG_VALUE, Verdict.NO_ANSWER, Verdict.WRONG_VALUE)
    assert groups[2].verdicts == (Verdict.WRONG_NUMBERS, Verdict.NO_ANSWER, Verdict.WRONG_NUMBERS)
    assert rewards(groups).tolist() == [[1.0, -1.0, 1.0], [-1.0] * 3, [-1.0] * 3]
    assert rewards(groups).dtype == np.float64


@pytest.mark.parametrize(("chunk_samples", "sizes"), [(1, [1, 1, 1]), (6, [2, 1]), (8, [2, 1]), (9, [3]), (100, [3])])
def test_chunks_hold_whole_groups_and_progress_counts_completions(params, chunk_samples: int, sizes: list[int]) -> None:
    engine, progress = Parrot(), []
    groups = rollout(
        engine,
        encode,
        PUZZLES,
        params(),
        3,
        chunk_samples=chunk_samples,
        on_progress=progress.append,
    )
    assert [len(chunk) for chunk in engine.chunks] == sizes
    assert [request.key for chunk in engine.chunks for request in chunk] == [puzzle.key for puzzle in PUZZLES]
    assert progress == (3 * np.cumsum(sizes)).tolist()
    assert len(groups) == 3


def test_a_group_has_a_verdict_for_each_completion() -> None:
    with pytest.raises(AssertionError):
        RolloutGroup(puzzle=PUZZLES[0], prompt_ids=(1,), completions=(), verdicts=(Verdict.CORRECT,))
