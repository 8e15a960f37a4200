"""What is known of a model at one moment: one record, with its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nsr.errors import UserError
from nsr.evaluation.compare import Interval


@dataclass(frozen=True, kw_only=True)
class PassAtK:
    """One point of a pass@k curve."""

    k: int
    value: Interval
    rough: bool
    """k is above half the samples of a puzzle (see `nsr.evaluation.pass_at_k.is_rough`)."""


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
    """By how many numbers a puzzle has, and by which operations it needs (`nsr.evaluation.evaluate.OPERATIONS`)."""
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

    @property
    def accuracy(self) -> Interval:
        """Mean pass@1 at `temperature`."""
        return self.pass_at_k[0].value

    def to_json(self) -> dict[str, Any]:
        """Plain values in a fixed order; `from_json` makes the same record of them."""
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
            raise UserError(f"this is no evaluation of this version of nsr ({error!r}); evaluate again.") from error


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
