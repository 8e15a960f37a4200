"""Figures of runs, made with matplotlib. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from nsr.evaluation.evaluate import Evaluation, difference

METHOD_COLORS = {
    "base": "#5f5f5f",
    "RLVR": "#0072b2",
    "PSR": "#e69f00",
    "NSR": "#009e73",
    "W_REINFORCE": "#d55e00",
    "SHUFFLED": "#cc79a7",
    "RLOO": "#56b4e9",
}
"""One colour a method, in every figure: the palette of Okabe and Ito, which colour-blind readers can tell apart."""

OTHER_COLOR = "#000000"
"""Of a method that is not listed."""

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "nsr",  # else the ids in an SVG are random
}
"""Of every figure: `with mpl.rc_context(STYLE)`."""

_SMOOTHED_OVER = 5


def method_color(method: str) -> str:
    """The colour of a method."""
    return METHOD_COLORS.get(method, OTHER_COLOR)


def demo_figure(
    evaluations: Sequence[Evaluation], metrics: Sequence[Mapping[str, Any]], method: str, path: Path
) -> list[Path]:
    """Draw what a training run did: pass@k before and after, accuracy and entropy over the steps.

    Args:
        evaluations: at least two, of the same puzzles; the first is before the training, the last after it.
        metrics: one record a step with "step", "correct_ratio" and, where the engine tells it, "entropy".
        method: the objective; decides the colour.
        path: where to write; its ending is replaced by .png and .svg.

    Returns:
        The files written.
    """
    assert len(evaluations) >= 2, "before and after"
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, rect=(0, 0.05, 1, 0.95))
        figure = Figure(figsize=(12.4, 4.1), layout=layout)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        _draw_pass_at_k(left, evaluations[0], evaluations[-1], method)
        _draw_accuracy(middle, evaluations, metrics, method)
        _draw_entropy(right, evaluations, metrics, method)
        count, samples = len(evaluations[0].puzzles), evaluations[0].num_samples
        note = f"{count} puzzles x {samples} samples at temperature {evaluations[0].temperature:g}; "
        note += "bands and bars: 95% bootstrap intervals over puzzles; hollow: rough, k is above half the samples"
        figure.text(0.008, 0.012, note, fontsize=8.5, color="#777777")
        return save(figure, path)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `figure` as .png and .svg without anything that changes from one time to the next."""
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    figure.savefig(png, dpi=160, facecolor="white", metadata={"Software": None})
    figure.savefig(svg, facecolor="white", metadata={"Date": None, "Creator": None})
    return [png, svg]


def _draw_pass_at_k(axes: Axes, before: Evaluation, after: Evaluation, method: str) -> None:
    axes.set_title("pass@k")
    for evaluation, color, label in (
        (after, method_color(method), f"after {after.step} steps of {method}"),
        (before, method_color("base"), "before"),
    ):
        k = [point.k for point in evaluation.pass_at_k]
        estimate, low, high = np.array([point.value for point in evaluation.pass_at_k]).T
        axes.fill_between(k, low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(k, estimate, color=color, linewidth=2.2, label=label)
        for point in evaluation.pass_at_k:
            fill = "white" if point.rough else color
            axes.plot(point.k, point.value.estimate, "o", markersize=5.5, color=color, markerfacecolor=fill)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([point.k for point in before.pass_at_k]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("k, samples of a puzzle")
    axes.set_ylabel("puzzles with a right one among k")
    _in_percent(axes)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)  # from 0: room for the words below the curves
    axes.legend(loc="upper left")
    # The bands overlap also where the change is clear: what the puzzles add to both is in both bands.
    ends = sorted({1, before.pass_at_k[-1].k})
    changes = [f"pass@{k}: {difference(before, after, k).points()}" for k in ends]
    text = "\n".join(["change, paired by puzzle", *changes])
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
    axes.text(0.98, 0.04, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=9.5, bbox=box)


def _draw_accuracy(
    axes: Axes, evaluations: Sequence[Evaluation], metrics: Sequence[Mapping[str, Any]], method: str
) -> None:
    axes.set_title("accuracy")
    _draw_steps(axes, metrics, "correct_ratio", method)
    steps = [evaluation.step for evaluation in evaluations]
    estimate, low, high = np.array([evaluation.accuracy for evaluation in evaluations]).T
    axes.errorbar(
        steps,
        estimate,
        yerr=[estimate - low, high - estimate],
        color="#222222",
        fmt="o",
        markersize=5.5,
        elinewidth=1.4,
        capsize=3,
        label="evaluations",
        zorder=3,
    )
    _in_percent(axes)
    _finish_steps(axes, "right samples")


def _draw_entropy(
    axes: Axes, evaluations: Sequence[Evaluation], metrics: Sequence[Mapping[str, Any]], method: str
) -> None:
    axes.set_title("entropy of a token")
    _draw_steps(axes, metrics, "entropy", method)
    known = [(evaluation.step, evaluation.entropy) for evaluation in evaluations if evaluation.entropy is not None]
    if known:
        steps, values = zip(*known, strict=True)
        axes.plot(steps, values, "o", markersize=5.5, color="#222222", label="evaluations", zorder=3)
    _finish_steps(axes, "nats")


def _draw_steps(axes: Axes, metrics: Sequence[Mapping[str, Any]], name: str, method: str) -> None:
    """A metric over the steps: each value thin, a running mean thick."""
    known = [(record["step"], record[name]) for record in metrics if record.get(name) is not None]
    if not known:
        return
    steps, values = np.array(known, dtype=np.float64).T
    color = method_color(method)
    axes.plot(steps, values, color=color, linewidth=1, alpha=0.35)
    axes.plot(
        steps,
        running_mean(values, _SMOOTHED_OVER),
        color=color,
        linewidth=2.2,
        label=f"rollouts, mean of {_SMOOTHED_OVER} steps",
    )


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over the `window` values (an odd number) around each one, and over fewer near the ends."""
    ones = np.ones(window)
    return (
        np.convolve(values, ones, "full")[window // 2 :][: len(values)]
        / (np.convolve(np.ones_like(values), ones, "full")[window // 2 :][: len(values)])
    )


def _finish_steps(axes: Axes, label: str) -> None:
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    axes.margins(y=0.18)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
