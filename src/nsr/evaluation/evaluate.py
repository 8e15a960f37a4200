"""Policy -> numbers: what a set of puzzles says about a model, with intervals, in one record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr.evaluation.compare import Interval, bootstrap_intervals, paired_difference
from nsr.evaluation.diversity import coverage, rarefied_distinct
from nsr.evaluation.passk import is_rough, k_values, pass_at_k
from nsr.evaluation.samples import SampleRow, sample_rows
from nsr.sampling.engine import Engine, SamplingParams
from nsr.task.grader import Verdict
from nsr.task.puzzle import Puzzle

RAREFIED_TO = 4
"""Correct samples a puzzle that `DistinctCorrect` is rarefied to."""


@dataclass(frozen=True, kw_only=True)
class PassAtK:
    """One point of a pass@k curve."""

    k: int
    value: Interval
    rough: bool
    """k is above half the samples of a puzzle (see `nsr.evaluation.passk.is_rough`)."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The puzzles of one kind."""

    name: str
    num_puzzles: int
    pass_at_k: tuple[PassAtK, ...]

    @property
    def accuracy(self) -> Interval:
        """Mean pass@1."""
        return self.pass_at_k[0].value


@dataclass(frozen=True, kw_only=True)
class DistinctCorrect:
    """How many distinct equations to expect among `num_draws` correct samples of a puzzle."""

    num_draws: int
    num_puzzles: int
    """Puzzles with so many correct samples; the mean is over them."""
    mean: float | None
    """None if there is no such puzzle."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is known of a model at one moment. Shares are 0..1, entropy is in nats, lengths are in tokens."""

    step: int
    """Training steps behind the model."""
    temperature: float
    max_tokens: int
    seed: int
    num_samples: int
    """Samples of each puzzle, n."""
    puzzles: tuple[str, ...]
    """Canonical key of each puzzle."""
    num_correct: tuple[int, ...]
    """Correct samples of each puzzle, c."""
    pass_at_k: tuple[PassAtK, ...]
    """At k = 1, 2, 4, ..., n, over all puzzles."""
    splits: tuple[Split, ...]
    """By how many numbers a puzzle has."""
    greedy_accuracy: Interval | None
    """Share of the puzzles that temperature 0 gets right; None if it was not asked for."""
    verdicts: Mapping[str, float]
    """Share of all samples by `Verdict`; every verdict is listed."""
    well_formed_accuracy: float | None
    """Share of correct samples among those with an answer that follows the grammar; None if there is none."""
    entropy: float | None
    """Mean over all sampled tokens of the entropy sampled from; None if the engine cannot tell."""
    response_length: float
    """Mean over all samples."""
    truncated: float
    """Share of the samples that were cut off at `max_tokens`."""
    distinct_correct: DistinctCorrect
    coverage: float | None
    """Share of a puzzle's solutions that its samples found, mean over puzzles; None if it was not asked for."""
    samples: tuple[SampleRow, ...] = field(default=(), compare=False, repr=False)
    """Every completion, for the samples file; not part of the JSON."""

    @property
    def accuracy(self) -> Interval:
        """Mean pass@1 at `temperature`."""
        return self.pass_at_k[0].value

    def to_json(self) -> dict[str, Any]:
        """Plain values in a fixed order; `from_json` makes the same record of them, without its samples."""
        return {
            "step": self.step,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "num_puzzles": len(self.puzzles),
            "accuracy": self.accuracy._asdict(),
            "greedy_accuracy": None if self.greedy_accuracy is None else self.greedy_accuracy._asdict(),
            "pass_at_k": _curve_to_json(self.pass_at_k),
            "splits": {
                split.name: {"num_puzzles": split.num_puzzles, "pass_at_k": _curve_to_json(split.pass_at_k)}
                for split in self.splits
            },
            "verdicts": dict(self.verdicts),
            "well_formed_accuracy": self.well_formed_accuracy,
            "entropy": self.entropy,
            "response_length": self.response_length,
            "truncated": self.truncated,
            "distinct_correct": {
                "num_draws": self.distinct_correct.num_draws,
                "num_puzzles": self.distinct_correct.num_puzzles,
                "mean": self.distinct_correct.mean,
            },
            "coverage": self.coverage,
            "num_correct": dict(zip(self.puzzles, self.num_correct, strict=True)),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Evaluation:
        """The record that `to_json` wrote.

        Raises:
            ValueError: `record` is no evaluation, or was written by another version.
        """
        try:
            return cls(
                **{name: record[name] for name in _PLAIN_FIELDS},
                puzzles=tuple(record["num_correct"]),
                num_correct=tuple(record["num_correct"].values()),
                greedy_accuracy=None if record["greedy_accuracy"] is None else Interval(**record["greedy_accuracy"]),
                pass_at_k=_curve_from_json(record["pass_at_k"]),
                splits=tuple(
                    Split(name=name, num_puzzles=split["num_puzzles"], pass_at_k=_curve_from_json(split["pass_at_k"]))
                    for name, split in record["splits"].items()
                ),
                distinct_correct=DistinctCorrect(**record["distinct_correct"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no evaluation of this version of nsr ({error!r}); evaluate again.") from error


_PLAIN_FIELDS = (
    "step",
    "temperature",
    "max_tokens",
    "seed",
    "num_samples",
    "verdicts",
    "well_formed_accuracy",
    "entropy",
    "response_length",
    "truncated",
    "coverage",
)


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

    Raises:
        ValueError: no puzzle, one twice, or a setting out of its range.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be 1 or more; given {num_samples}")
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed, purpose="eval", step=0)
    tally = Tally(puzzles, num_samples)
    samples = tuple(map(tally.add, sample_rows(engine, encode, puzzles, params, num_samples, progress)))
    greedy_accuracy = None
    if greedy:
        greedy_params = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=seed, purpose="greedy", step=0)
        rows = sample_rows(engine, encode, puzzles, greedy_params, 1, progress)
        right_P = [float(row["verdict"] == Verdict.CORRECT.value) for row in rows]
        (greedy_accuracy,) = bootstrap_intervals(np.array(right_P)[:, None])
    return Evaluation(
        step=step,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        greedy_accuracy=greedy_accuracy,
        samples=samples,
        **tally.measures(with_coverage=with_coverage),
    )


def difference(before: Evaluation, after: Evaluation, k: int = 1) -> Interval:
    """How much pass@k changed between two evaluations, paired by puzzle.

    Raises:
        ValueError: they are not of the same puzzles, or one has fewer than k samples a puzzle.
    """
    if before.puzzles != after.puzzles:
        raise ValueError(
            "the two evaluations are not of the same puzzles: evaluate both on the same --data and --seed."
        )
    return paired_difference(
        pass_at_k(before.num_samples, before.num_correct, k), pass_at_k(after.num_samples, after.num_correct, k)
    )


class Tally:
    """Counts over sample rows, from which an evaluation is made: its size does not grow with the number of rows.

    Everything comes from the rows, so an evaluation can be made again from kept rows, without the model.
    """

    def __init__(self, puzzles: Sequence[Puzzle], num_samples: int) -> None:
        """Rows of these puzzles will come, `num_samples` of each. Raises ValueError for no puzzle or one twice."""
        if not puzzles:
            raise ValueError("an evaluation needs at least one puzzle; given none")
        self._puzzles = {puzzle.key: puzzle for puzzle in puzzles}
        if len(self._puzzles) < len(puzzles):
            raise ValueError("an evaluation needs distinct puzzles; given one twice")
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
        num_correct_P = np.array([equations.total() for equations in self._equations.values()])
        malformed = self._verdicts[Verdict.NO_ANSWER.value] + self._verdicts[Verdict.MALFORMED.value]
        return {
            "num_samples": self._num_samples,
            "puzzles": tuple(self._puzzles),
            "num_correct": tuple(num_correct_P.tolist()),
            "pass_at_k": _curve(num_correct_P, self._num_samples),
            "splits": self._by_size(num_correct_P),
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

    def _by_size(self, num_correct_P: NDArray[np.int64]) -> tuple[Split, ...]:
        sizes_P = np.array([len(puzzle.numbers) for puzzle in self._puzzles.values()])
        return tuple(
            Split(
                name=f"{size} numbers",
                num_puzzles=int(np.sum(sizes_P == size)),
                pass_at_k=_curve(num_correct_P[sizes_P == size], self._num_samples),
            )
            for size in np.unique(sizes_P).tolist()
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


def _curve_to_json(curve: Iterable[PassAtK]) -> list[dict[str, Any]]:
    return [{"k": point.k, **point.value._asdict(), "rough": point.rough} for point in curve]


def _curve_from_json(points: Iterable[Mapping[str, Any]]) -> tuple[PassAtK, ...]:
    return tuple(
        PassAtK(
            k=point["k"],
            value=Interval(point["estimate"], point["low"], point["high"]),
            rough=point["rough"],
        )
        for point in points
    )
