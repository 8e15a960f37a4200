"""What a method did over its training: records of steps and evaluations, as curves of seeds and their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr.evaluation.evaluate import Evaluation
from nsr.report.collect import number
from nsr.report.figures import running_mean
from nsr.report.methods import Arm

Array = NDArray[np.float64]
Points = dict[int, float]

_MOST_SMOOTHED = 9


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number over steps: one array of values a seed, where it is known, and the mean over seeds."""

    seeds: tuple[tuple[Array, Array], ...]
    """(steps, values) of each seed."""
    steps: Array
    """Steps at which every seed has a value."""
    mean: Array

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not len(self.steps)


def curve(seeds: Iterable[Points]) -> Curve:
    """The curve of several seeds; those without any value are left out."""
    known = [points for points in seeds if points]
    shared = sorted(set.intersection(*(set(points) for points in known))) if known else []
    return Curve(
        seeds=tuple(
            (np.array(sorted(points), dtype=np.float64), np.array([points[step] for step in sorted(points)]))
            for points in known
        ),
        steps=np.array(shared, dtype=np.float64),
        mean=np.array([float(np.mean([points[step] for points in known])) for step in shared]),
    )


def metric_curve(arm: Arm, name: str) -> Curve:
    """A metric of the training steps."""
    return curve(points(member.run.metrics, lambda record: record.get(name)) for member in arm.members)


def mechanism_curve(arm: Arm, *path: str) -> Curve:
    """A number of the mechanism's records: `("right", "log_prob_change")` or `("kl_base",)`."""

    def find(record: Mapping[str, Any]) -> Any:
        value: Any = record
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    return curve(points(member.run.mechanism, find) for member in arm.members)


def evaluation_curve(arm: Arm, measure: Callable[[Evaluation], float | None]) -> Curve:
    """A number of the evaluations."""
    return curve(
        {
            evaluation.step: value
            for evaluation in member.run.evaluations
            if (value := number(measure(evaluation))) is not None
        }
        for member in arm.members
    )


def points(records: Sequence[Mapping[str, Any]], find: Callable[[Mapping[str, Any]], Any]) -> Points:
    """The finite values of a number by step."""
    return {record["step"]: value for record in records if (value := number(find(record))) is not None}


def smooth(values: Array) -> Array:
    """A running mean over about a tenth of the values, an odd number of them."""
    return running_mean(values, smoothed_over(len(values)))


def smoothed_over(count: int) -> int:
    """How many of `count` values `smooth` takes the mean of."""
    window = min(_MOST_SMOOTHED, max(1, count // 10))
    return window + 1 - window % 2
