"""What is drawn into one pair of axes: each panel of a report's figures, by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from nsr.evaluation.compare import signed
from nsr.report.methods import Arm, Method
from nsr.report.results import SectionResult, mean_pass_at_k
from nsr.report.series import Curve, evaluation_curve, mechanism_curve, metric_curve, points, smooth
from nsr.report.theme import AXIS, PAPER, VERDICT_COLORS, Look

Looks = Mapping[Method, Look]
Draw = Callable[[Axes], None]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes of a figure."""

    title: str
    draw: Draw
    height: float = 2.75
    """In inches; every panel is as wide as the others."""


def mark(method: Method) -> str:
    """The name by which the page finds what belongs to a method in a drawing."""
    return f"m{method.index}"


def pass_at_k_panel(result: SectionResult, looks: Looks) -> Draw:
    """pass@k of every method with its band, k on a log axis; hollow where k is above half the samples."""

    def draw(axes: Axes) -> None:
        for row in result.rows:
            look, name = looks[row.arm.method], mark(row.arm.method)
            ks = [point.k for point in row.curve]
            estimate, low, high = np.array([point.value for point in row.curve]).T
            axes.fill_between(ks, low, high, color=look.color, alpha=0.09, linewidth=0, gid=name)
            axes.plot(ks, estimate, **look.line, gid=name)
            for point in row.curve:
                _dot(axes, point.k, point.value.estimate, look, name, hollow=point.rough and point.k > 1)
        _k_axis(axes, [point.k for row in result.rows for point in row.curve])
        axes.set_ylabel("puzzles with a right one among k")
        _percent(axes)

    return draw


def change_at_k_panel(result: SectionResult, looks: Looks) -> Draw:
    """The paired change of pass@k from the base at every k with its interval, the methods side by side at each k."""
    rows = [row for row in result.rows if row.changes]

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=AXIS, linewidth=1)
        for place, row in enumerate(rows):
            look, name = looks[row.arm.method], mark(row.arm.method)
            shift = 2 ** (0.62 * ((place + 0.5) / len(rows) - 0.5))
            for change in row.changes:
                value, low, high = (100 * end for end in change.value)
                x = change.k * shift
                axes.plot([x, x], [low, high], color=look.color, linewidth=1.3, gid=name)
                _dot(axes, x, value, look, name, size=3.8)
        _k_axis(axes, [change.k for row in rows for change in row.changes])
        axes.set_ylabel("change in points")
        axes.yaxis.set_major_formatter(FuncFormatter(_signed_tick))

    return draw


def forest_panel(result: SectionResult, k: int, looks: Looks) -> Draw:
    """The change of pass@k of every method with its interval: filled where it may be claimed, hollow elsewhere."""
    rows = [(row, change) for row in result.rows if (change := row.change(k)) is not None]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=AXIS, linewidth=1)
        for place, (row, change) in enumerate(rows):
            look, name = looks[row.arm.method], mark(row.arm.method)
            value, low, high = (100 * end for end in change.value)
            axes.plot([low, high], [place, place], color=look.color, linewidth=2.2, gid=name)
            _dot(axes, value, place, look, name, hollow=not change.stands, size=6.5)
        axes.set_yticks(range(len(rows)), [row.arm.method.label for row, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("change in points")
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed_tick))

    return draw


def frontier_panel(result: SectionResult, looks: Looks) -> Draw:
    """Accuracy against pass@k at the large k: a path an arm over its evaluations, the last one large."""

    def draw(axes: Axes) -> None:
        k = result.top_k
        for arm in result.section.trained:
            for member in arm.members:
                found = [
                    (evaluation.accuracy.estimate, value)
                    for evaluation in member.run.evaluations
                    if (value := mean_pass_at_k(evaluation, k)) is not None
                ]
                _path(axes, found, looks[arm.method], mark(arm.method))
        base = result.section.base
        for member in base.members if base else ():
            value = mean_pass_at_k(member.evaluation, k)
            assert base is not None and value is not None
            look = looks[base.method]
            _dot(axes, member.evaluation.accuracy.estimate, value, look, mark(base.method), hollow=True, size=8)
        axes.set_xlabel("accuracy")
        axes.set_ylabel(f"pass@{k}")
        axes.margins(0.1)
        _percent(axes, "x")
        _percent(axes)

    return draw


def divergence_panel(result: SectionResult, k: int, looks: Looks) -> Draw:
    """pass@k of every evaluation against how far the policy is from its base."""

    def draw(axes: Axes) -> None:
        for arm in result.section.trained:
            for member in arm.members:
                distance = points(member.run.mechanism, lambda record: record.get("kl_base"))
                found = [
                    (distance[evaluation.step], value)
                    for evaluation in member.run.evaluations
                    if evaluation.step in distance and (value := mean_pass_at_k(evaluation, k)) is not None
                ]
                _path(axes, found, looks[arm.method], mark(arm.method))
        axes.set_xlabel("KL from the base, nats a token")
        axes.set_ylabel("accuracy" if k == 1 else f"pass@{k}")
        axes.margins(0.1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        _percent(axes)

    return draw


def metric_panel(arms: Sequence[Arm], name: str, looks: Looks, *, unit: str = "", percent: bool = False) -> Draw:
    """A metric of the training steps: each seed thin, the mean over seeds thick and smoothed."""
    return _curves_panel(
        [(arm, metric_curve(arm, name)) for arm in arms], looks, unit=unit, percent=percent, smoothed=True
    )


def evaluation_panel(arms: Sequence[Arm], measure: str, looks: Looks, *, unit: str = "", percent: bool = False) -> Draw:
    """A number of the evaluations over the steps: `entropy`, or `distinct_correct` for its mean."""

    def value(evaluation: object) -> float | None:
        found = getattr(evaluation, measure)
        return found.mean if measure == "distinct_correct" else found

    return _curves_panel([(arm, evaluation_curve(arm, value)) for arm in arms], looks, unit=unit, percent=percent)


def mechanism_panel(arms: Sequence[Arm], path: tuple[str, ...], looks: Looks, *, unit: str) -> Draw:
    """A number of the mechanism over the steps."""
    return _curves_panel(
        [(arm, mechanism_curve(arm, *path)) for arm in arms], looks, unit=unit, zero="change" in path[-1]
    )


def mass_panel(arms: Sequence[Arm], kind: str, looks: Looks) -> Draw:
    """Where the probability went by the last evaluation, for right or for wrong samples: sampled, top, tail."""
    groups = (("sampled", "sampled"), ("top", "rest of top 5"), ("tail", "tail"))

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=AXIS, linewidth=1)
        width = 0.8 / max(1, len(arms))
        for place, (name, _) in enumerate(groups):
            for index, arm in enumerate(arms):
                found = mechanism_curve(arm, kind, f"{name}_change")
                if found.is_empty:
                    continue
                x = place + (index - (len(arms) - 1) / 2) * width
                look = looks[arm.method]
                axes.bar(x, 100 * found.mean[-1], 0.86 * width, color=look.color, gid=mark(arm.method))
        axes.set_xticks(range(len(groups)), [label for _, label in groups])
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("change in points of probability")

    return draw


def verdicts_panel(arm: Arm) -> Draw:
    """Shares of the verdicts over the training steps, stacked, the right ones at the bottom."""

    def draw(axes: Axes) -> None:
        names = list(VERDICT_COLORS)
        curves = [metric_curve(arm, f"verdict_{name}") for name in names]
        steps = sorted(set.intersection(*(set(found.steps.tolist()) for found in curves)))
        values = [smooth(found.mean[np.isin(found.steps, steps)]) if steps else np.array([]) for found in curves]
        if len(steps) == 1:  # an area of one step has no width
            steps, values = [steps[0] - 0.5, steps[0] + 0.5], [np.repeat(value, 2) for value in values]
        if steps:
            axes.stackplot(steps, values, colors=list(VERDICT_COLORS.values()), linewidth=0.6, edgecolor=PAPER)
            axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(0, 1)
        axes.grid(visible=False)
        _step_axis(axes)
        _percent(axes)

    return draw


def strip_panel(values: Sequence[tuple[Arm, Sequence[tuple[float, bool]]]], looks: Looks, label: str) -> Draw:
    """A share of each method, one dot a seed: hollow before the training, filled after it."""

    def draw(axes: Axes) -> None:
        for place, (arm, found) in enumerate(values):
            look, name = looks[arm.method], mark(arm.method)
            for value, after in found:
                _dot(axes, value, place, look, name, hollow=not after, size=6.5)
        axes.set_yticks(range(len(values)), [arm.method.label for arm, _ in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.margins(x=0.1)
        _percent(axes, "x")

    return draw


def _curves_panel(
    curves: Sequence[tuple[Arm, Curve]],
    looks: Looks,
    *,
    unit: str,
    percent: bool = False,
    smoothed: bool = False,
    zero: bool = False,
) -> Draw:
    def draw(axes: Axes) -> None:
        if zero:
            axes.axhline(0, color=AXIS, linewidth=1)
        for arm, found in curves:
            look, name = looks[arm.method], mark(arm.method)
            if smoothed or len(found.seeds) > 1:
                for steps, values in found.seeds:
                    axes.plot(steps, values, color=look.color, linewidth=0.7, alpha=0.28, gid=name)
            if found.is_empty:
                continue
            mean = smooth(found.mean) if smoothed else found.mean
            few: dict[str, Any] = {"marker": look.marker, "markersize": 3.5} if len(mean) <= 12 else {}
            axes.plot(found.steps, mean, **look.line, **few, gid=name)
        _step_axis(axes)
        axes.margins(y=0.1)
        axes.set_ylabel(unit)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if percent:
            _within_shares(axes)
            _percent(axes)

    return draw


def _path(axes: Axes, found: Sequence[tuple[float, float]], look: Look, name: str) -> None:
    """The way of a run through its evaluations, with its end large."""
    if not found:
        return
    x, y = np.array(found).T
    axes.plot(x, y, **look.thin, alpha=0.55, gid=name)
    axes.plot(x[:-1], y[:-1], ".", markersize=4, color=look.color, gid=name)
    _dot(axes, x[-1], y[-1], look, name, size=7)


def _within_shares(axes: Axes) -> None:
    """Show no room outside of 0% to 100%, and no less than a few points."""
    low, high = axes.get_ylim()
    middle = min(max((low + high) / 2, 0.05), 0.95)
    low, high = min(low, middle - 0.05), max(high, middle + 0.05)
    room = 0.03 * (high - low)  # for the markers
    axes.set_ylim(max(low, -room), min(high, 1 + room))


def _dot(axes: Axes, x: float, y: float, look: Look, name: str, *, hollow: bool = False, size: float = 5) -> None:
    fill = PAPER if hollow else look.color
    axes.plot(x, y, look.marker, markersize=size, color=look.color, markerfacecolor=fill, markeredgewidth=1.3, gid=name)


def _signed_tick(value: float, place: int) -> str:
    del place
    return signed(value, decimals=0 if float(value).is_integer() else 1)


def _k_axis(axes: Axes, ks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(ks))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("k, samples of a puzzle")


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def _percent(axes: Axes, which: str = "y") -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0 if high - low > 0.05 else 1))
