"""Policy -> numbers: what a set of puzzles says about a model, with intervals, in one record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr.errors import UserError
from nsr.evaluation.compare import Interval, bootstrap_intervals, paired_difference
from nsr.evaluation.diversity import coverage, rarefied_distinct
from nsr.evaluation.pass_at_k import is_rough, k_values, pass_at_k
from nsr.evaluation.record import DistinctCorrect, Evaluation, PassAtK, Split
from nsr.evaluation.samples import SampleRow, sample_rows
from nsr.rollout.engine import Engine, SamplingParams
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tasks.countdown.solvability import is_solvable, sums_suffice

RAREFIED_TO = 4
"""Correct samples a puzzle that `DistinctCorrect` is rarefied to."""

OPERATIONS = ("+ and - alone", "needs * or /", "no solution")
"""Kinds of puzzles by what they need; names of splits."""


def evaluate(
    engine: Engine,
    encode: Callable[[Puzzle], tuple[int, ...]],
    puzzles: Sequence[Puzzle],
    *,
    num_samples: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    step: int = 0,
    greedy: bool = False,
    with_coverage: bool = False,
    progress: Callable[[int], None] | None = None,
    keep: Callable[[SampleRow], object] | None = None,
    keep_greedy: Callable[[SampleRow], object] | None = None,
) -> Evaluation:
    """Sample `num_samples` completions of every puzzle from the engine's present weights and measure them.

    `step` is for the record alone. The random streams are those of step 0 at every evaluation of a run, and the puzzles
    are the same, so before and after a change of the weights each sample meets the same luck. What the luck adds to
    both cancels in their difference: a model that did not change gives exactly the same samples, not merely similar
    ones.

    Args:
        engine: where the completions come from.
        encode: prompt of a puzzle as token ids.
        puzzles: at least one, no two with the same key.
        num_samples: completions a puzzle, the n of pass@k.
        temperature: of the samples.
        max_tokens: longest response.
        seed: of the random streams.
        step: training steps behind the weights.
        greedy: also measure accuracy at temperature 0, one completion a puzzle.
        with_coverage: also compare with all solutions of each puzzle; the solver takes some milliseconds a puzzle.
        progress: called now and then with the number of new completions: `num_samples` a puzzle, one more if greedy.
        keep: takes every sample as it comes, for instance into a file. None is held here, so memory does not grow with
            their number.
        keep_greedy: as `keep`, for the samples at temperature 0.

    Raises:
        ValueError: no puzzle, one twice, or a setting out of its range.
    """
    if num_samples < 1:
        raise UserError(f"num_samples must be 1 or more; given {num_samples}")
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed, purpose="eval", step=0)
    tally = Tally(puzzles, num_samples)
    for row in sample_rows(engine, encode, puzzles, params, num_samples, progress):
        tally.add(row)
        if keep is not None:
            keep(row)
    greedy_accuracy = None
    if greedy:
        greedy_tally = Tally(puzzles, 1)
        greedy_params = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=seed, purpose="greedy", step=0)
        for row in sample_rows(engine, encode, puzzles, greedy_params, 1, progress):
            greedy_tally.add(row)
            if keep_greedy is not None:
                keep_greedy(row)
        greedy_accuracy = greedy_tally.accuracy()
    return Evaluation(
        step=step,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        greedy_accuracy=greedy_accuracy,
        **tally.measures(with_coverage=with_coverage),
    )


def difference(before: Evaluation, after: Evaluation, k: int = 1) -> Interval:
    """How much pass@k changed between two evaluations, paired by puzzle.

    Raises:
        ValueError: they are not of the same puzzles, or one has fewer than k samples a puzzle.
    """
    if before.puzzles != after.puzzles:
        raise UserError("the two evaluations are not of the same puzzles: evaluate both on the same --data and --seed.")
    return paired_difference(
        pass_at_k(before.num_samples, before.num_correct, k), pass_at_k(after.num_samples, after.num_correct, k)
    )


def operations_needed(puzzle: Puzzle) -> str:
    """Which of `OPERATIONS` the puzzle is."""
    if sums_suffice(puzzle):
        return OPERATIONS[0]
    return OPERATIONS[1] if is_solvable(puzzle) else OPERATIONS[2]


class Tally:
    """Counts over sample rows, from which an evaluation is made: its size does not grow with the number of rows.

    Everything comes from the rows, so an evaluation can be made again from kept rows, without the model.
    """

    def __init__(self, puzzles: Sequence[Puzzle], num_samples: int) -> None:
        """Rows of these puzzles will come, `num_samples` of each. Raises ValueError for no puzzle or one twice."""
        if not puzzles:
            raise UserError("an evaluation needs at least one puzzle; given none")
        self._puzzles = {puzzle.key: puzzle for puzzle in puzzles}
        if len(self._puzzles) < len(puzzles):
            raise UserError("an evaluation needs distinct puzzles; given one twice")
        self._num_samples = num_samples
        self._equations: dict[str, Counter[str]] = {key: Counter() for key in self._puzzles}
        self._verdicts: Counter[str] = Counter()
        self._num_tokens = 0
        self._num_truncated = 0
        self._entropy: float | None = 0.0

    def add(self, row: SampleRow) -> SampleRow:
        """Count one row. Returns it, so that rows can be counted on their way elsewhere."""
        self._verdicts[row["verdict"]] += 1
        self._num_tokens += row["tokens"]
        self._num_truncated += row["truncated"]
        if row["equation"] is not None:
            self._equations[row["puzzle"]][row["equation"]] += 1
        if row["entropy"] is None:
            self._entropy = None
        elif self._entropy is not None:
            self._entropy += row["entropy"] * row["tokens"]
        return row

    def measures(self, *, with_coverage: bool) -> dict[str, Any]:
        """The fields of `Evaluation` that come from the rows."""
        num_rows = self._verdicts.total()
        assert num_rows == self._num_samples * len(self._puzzles), "every sample of every puzzle is counted, once"
        num_correct_P = self._num_correct()
        malformed = self._verdicts[Verdict.NO_ANSWER.value] + self._verdicts[Verdict.MALFORMED.value]
        return {
            "num_samples": self._num_samples,
            "puzzles": tuple(self._puzzles),
            "num_correct": tuple(num_correct_P.tolist()),
            "pass_at_k": _curve(num_correct_P, self._num_samples),
            "splits": self._splits(num_correct_P),
            "verdicts": {verdict.value: self._verdicts[verdict.value] / num_rows for verdict in Verdict},
            "well_formed_accuracy": (
                self._verdicts[Verdict.CORRECT.value] / (num_rows - malformed) if malformed < num_rows else None
            ),
            "entropy": None if self._entropy is None else self._entropy / self._num_tokens,
            "response_length": self._num_tokens / num_rows,
            "truncated": self._num_truncated / num_rows,
            "distinct_correct": self._distinct(),
            "coverage": self._coverage() if with_coverage else None,
        }

    def accuracy(self) -> Interval:
        """Mean pass@1 over the puzzles."""
        return _curve(self._num_correct(), self._num_samples)[0].value

    def _num_correct(self) -> NDArray[np.int64]:
        return np.array([equations.total() for equations in self._equations.values()])

    def _splits(self, num_correct_P: NDArray[np.int64]) -> tuple[Split, ...]:
        size_P = np.array([f"{len(puzzle.numbers)} numbers" for puzzle in self._puzzles.values()])
        operations_P = np.array([operations_needed(puzzle) for puzzle in self._puzzles.values()])
        of_a_kind = {name: size_P == name for name in np.unique(size_P).tolist()}
        of_a_kind |= {name: operations_P == name for name in OPERATIONS if name in operations_P}
        return tuple(
            Split(
                name=name,
                num_puzzles=int(chosen_P.sum()),
                pass_at_k=_curve(num_correct_P[chosen_P], self._num_samples),
            )
            for name, chosen_P in of_a_kind.items()
        )

    def _distinct(self) -> DistinctCorrect:
        expected = [
            rarefied_distinct(list(equations.values()), RAREFIED_TO)
            for equations in self._equations.values()
            if equations.total() >= RAREFIED_TO
        ]
        mean = math.fsum(expected) / len(expected) if expected else None
        return DistinctCorrect(num_draws=RAREFIED_TO, num_puzzles=len(expected), mean=mean)

    def _coverage(self) -> float | None:
        shares = [coverage(puzzle, self._equations[key]) for key, puzzle in self._puzzles.items()]
        known = [share for share in shares if share is not None]
        return math.fsum(known) / len(known) if known else None


def _curve(num_correct_P: NDArray[np.int64], num_samples: int) -> tuple[PassAtK, ...]:
    k_K = k_values(num_samples)
    intervals = bootstrap_intervals(pass_at_k(num_samples, num_correct_P[:, None], k_K))
    return tuple(
        PassAtK(k=k, value=interval, rough=is_rough(k, num_samples)) for k, interval in zip(k_K, intervals, strict=True)
    )
