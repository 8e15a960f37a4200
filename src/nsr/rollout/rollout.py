"""Puzzles -> graded groups of completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsr.rollout.engine import Completion, Engine, Request, SamplingParams
from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.puzzle import Puzzle


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The G completions of one puzzle, graded."""

    puzzle: Puzzle
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        assert len(self.completions) == len(self.verdicts), (len(self.completions), len(self.verdicts))

    @property
    def rewards_G(self) -> npt.NDArray[np.float64]:
        """+1.0 for each correct completion, -1.0 for each other."""
        return np.array([verdict.reward for verdict in self.verdicts], dtype=np.float64)


def rewards(groups: Sequence[RolloutGroup]) -> npt.NDArray[np.float64]:
    """rewards_PG of groups that all have the same number of completions."""
    return np.stack([group.rewards_G for group in groups])


def rollout(
    engine: Engine,
    encode: Callable[[Puzzle], tuple[int, ...]],
    puzzles: Sequence[Puzzle],
    params: SamplingParams,
    num_samples: int,
    *,
    chunk_samples: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> list[RolloutGroup]:
    """Sample `num_samples` completions of every puzzle and grade them.

    Args:
        engine: where the completions come from.
        encode: prompt of a puzzle as token ids.
        puzzles: one group each, in this order.
        params: how to sample.
        num_samples: completions a puzzle.
        chunk_samples: whole groups go to the engine in chunks of about this many completions. Completions do not depend
            on it; smaller chunks report progress more often and keep the engine less busy.
        on_progress: called after each chunk with the number of completions done so far.
    """
    groups: list[RolloutGroup] = []
    for chunk in _chunks(puzzles, max(1, chunk_samples // num_samples)):
        requests = [Request(key=puzzle.key, prompt_ids=encode(puzzle), num_samples=num_samples) for puzzle in chunk]
        for puzzle, request, completions in zip(chunk, requests, engine.generate(requests, params), strict=True):
            groups.append(_graded(puzzle, request.prompt_ids, completions))
        if on_progress is not None:
            on_progress(len(groups) * num_samples)
    return groups


def _chunks(puzzles: Sequence[Puzzle], size: int) -> Iterator[Sequence[Puzzle]]:
    for first in range(0, len(puzzles), size):
        yield puzzles[first : first + size]


def _graded(puzzle: Puzzle, prompt_ids: tuple[int, ...], completions: Sequence[Completion]) -> RolloutGroup:
    return RolloutGroup(
        puzzle=puzzle,
        prompt_ids=prompt_ids,
        completions=tuple(completions),
        verdicts=tuple(grade(puzzle, completion.text) for completion in completions),
    )
