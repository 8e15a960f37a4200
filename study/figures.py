"""The figures of the write-up. The same data give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from nsr.report.figures import METHOD_COLORS, STYLE, running_mean, save
from study.keep import Kept, KeptTraining
from study.numbers import LARGE_K, LARGE_K_VALUES, curve, curve_differences, models_of
from study.runs import METHODS

LABELS = {"base": "base", "W_REINFORCE_0.1": "W-REINFORCE, lambda 0.1", "W_REINFORCE_0.3": "W-REINFORCE, lambda 0.3"}
CONTROLS = ("SHUFFLED",)
BANDS = ("PSR", "NSR")
"""Methods whose changes have a band: those that the question is about. With all of them, none could be read."""
_SMOOTHED_OVER = 9
_MISTAKES = {
    "verdict_no_answer": "no answer",
    "verdict_wrong_value": "wrong value",
    "verdict_wrong_numbers": "wrong numbers",
    "verdict_malformed": "malformed",
}


def label(method: str) -> str:
    """A method as figures and tables call it."""
    return LABELS.get(method, method)


def pass_at_k_figure(measured: Mapping[str, Kept], path: Path) -> list[Path]:
    """pass@k of every method on the set of many samples, and how it differs from base."""
    k_values = LARGE_K_VALUES
    base = models_of(measured, "base")
    with mpl.rc_context(STYLE):
        figure = _figure(12.4, 4.8)
        left, right = figure.subplots(1, 2)
        _curve(left, k_values, np.array(curve(base, k_values)), "base")
        for method in _present(measured):
            models = models_of(measured, method)
            _curve(left, k_values, np.array(curve(models, k_values)), method, band=False)
            changes = 100 * np.array(curve_differences(base, models, k_values))
            _curve(right, k_values, changes, method, band=method in BANDS)
        left.set_title("pass@k")
        left.set_ylabel("puzzles with a right one among k")
        left.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        left.legend(loc="lower right", handlelength=2.6)
        right.set_title("change from base")
        right.set_ylabel("points, paired by puzzle")
        right.axhline(0, color=METHOD_COLORS["base"], linewidth=1.2)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(k_values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.set_xlabel("k, samples of a puzzle")
        one = base[0]
        seeds = max(len(models_of(measured, method)) for method in _present(measured))
        _note(
            figure,
            f"{len(one.correct)} puzzles x {one.num_samples} samples at temperature 1, {seeds} seeds a method; "
            "bands: 95% intervals of each k by itself, over seeds and puzzles (left base, right PSR and NSR)",
        )
        return save(figure, path)


def training_figure(trainings: Mapping[str, KeptTraining], path: Path) -> list[Path]:
    """What the rollouts of the compared trainings looked like, step by step: means over the seeds."""
    panels = (
        ("correct_ratio", "right samples", True),
        ("entropy", "entropy of a token, nats", False),
        ("response_length", "tokens of a response", False),
    )
    with mpl.rc_context(STYLE):
        figure = _figure(12.4, 7.6)
        grid = figure.add_gridspec(2, 12)
        for column, (name, title, percent) in enumerate(panels):
            axes = figure.add_subplot(grid[0, 4 * column : 4 * column + 4])
            for method in _trained(trainings):
                _over_steps(axes, trainings, method, name, label(method))
            axes.set_title(title)
            if percent:
                axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            if column == 0:
                figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=6, handlelength=2.6)
        for column, (name, title) in enumerate(_MISTAKES.items()):
            axes = figure.add_subplot(grid[1, 3 * column : 3 * column + 3])
            for method in _trained(trainings):
                _over_steps(axes, trainings, method, name, label(method))
            axes.set_title(f"verdict: {title}")
            axes.set_xlabel("training step")
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        _note(figure, f"rollouts of training, mean over seeds and over {_SMOOTHED_OVER} steps")
        return save(figure, path)


def heating_figure(measured: Mapping[str, Kept], path: Path) -> list[Path]:
    """pass@1 against pass@256: base at several temperatures as a line, the methods as points."""
    bases = sorted((one for one in measured.values() if one.method == "base"), key=lambda one: one.temperature)
    ends = (1, LARGE_K)
    with mpl.rc_context(STYLE):
        figure = _figure(7.2, 5.2)
        axes = figure.subplots()
        points = np.array([[interval.estimate for interval in curve([one], ends)] for one in bases])
        axes.plot(*points.T, "o-", color=METHOD_COLORS["base"], markersize=5, label="base, by temperature")
        for one, (x, y) in zip(bases, points, strict=True):
            axes.annotate(f"T {one.temperature:g}", (x, y), textcoords="offset points", xytext=(7, -12), fontsize=8.5)
        for method in _present(measured):
            pair = [curve([one], ends) for one in models_of(measured, method)]
            of_seeds = np.array([[interval.estimate for interval in two] for two in pair])
            color, marker = _color(method), "s" if method.endswith("0.3") else "o"
            axes.plot(*of_seeds.T, marker, color=color, markersize=4, alpha=0.35)
            axes.plot(*of_seeds.mean(axis=0), marker, color=color, markersize=9, label=label(method))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1))
        axes.set_xlabel("pass@1")
        axes.set_ylabel(f"pass@{LARGE_K}")
        axes.legend(loc="best", fontsize=8.5)
        _note(figure, "small: one seed; large: mean over seeds")
        return save(figure, path)


def _figure(width: float, height: float) -> Figure:
    return Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, rect=(0, 0.04, 1, 0.96))
    )


def _note(figure: Figure, text: str) -> None:
    figure.text(0.008, 0.01, text, fontsize=8.5, color="#777777")


def _present(measured: Mapping[str, Kept]) -> list[str]:
    return [method.name for method in METHODS if models_of(measured, method.name)]


def _trained(trainings: Mapping[str, KeptTraining]) -> list[str]:
    known = {one.method for one in trainings.values() if one.part == "main"}
    return [method.name for method in METHODS if method.name in known]


def _color(method: str) -> str:
    return METHOD_COLORS[method.rpartition("_")[0] or method]


def _dashes(method: str) -> str:
    return "--" if method.endswith("0.3") else ":" if method in CONTROLS else "-"


def _curve(
    axes: Axes, k_values: Sequence[int], intervals_K3: NDArray[np.float64], method: str, band: bool = True
) -> None:
    estimate, low, high = intervals_K3.T
    color = _color(method)
    if band:
        axes.fill_between(k_values, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        k_values,
        estimate,
        color=color,
        linestyle=_dashes(method),
        linewidth=2,
        marker="o",
        markersize=4,
        label=label(method),
    )


def _over_steps(axes: Axes, trainings: Mapping[str, KeptTraining], method: str, name: str, shown: str) -> None:
    of_method = [one for one in trainings.values() if one.method == method and one.part == "main"]
    zero = [0.0] * len(next(iter(of_method[0].metrics.values())))
    mean = np.mean([one.metrics.get(name, zero) for one in of_method], axis=0)
    steps = np.arange(1, len(mean) + 1)
    axes.plot(
        steps,
        running_mean(mean, _SMOOTHED_OVER),
        color=_color(method),
        linestyle=_dashes(method),
        linewidth=2,
        label=shown,
    )
