"""The figure of `nsr explain`: which logits each objective raises and lowers, at tokens of real samples."""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nsr.report.figures import STYLE, method_color, save
from nsr.runs.progress import printable

_FONT = "DejaVu Sans Mono"  # comes with matplotlib
_SHOWN_CONTEXT = 16
_SHOWN_TOKEN = 14
_NOTE = (
    "Gradient of w log π(sampled) by the logit of each token v: w (1[v = sampled] − π(v)) / T.\n"
    "In percent: π(v), the probability when it was drawn. Bold: the token that was sampled."
)


def quoted(text: str, limit: int, has_glyph: Callable[[str], bool] = lambda _: True) -> str:
    """Model text on one line, in quotes: nothing in it breaks the line or controls what shows it.

    Of a text that takes more than `limit` characters the end is kept. What has no glyph is shown as an escape.
    """
    shown: list[str] = []
    room = limit
    for char in reversed(text):
        piece = printable(json.dumps(char, ensure_ascii=False)[1:-1]).plain if has_glyph(char) else ascii(char)[1:-1]
        room -= len(piece)
        if room < 0:
            break
        shown.append(piece)
    dots = "" if len(shown) == len(text) else "..."
    return f'{dots}"{"".join(reversed(shown))}"'


def percent(share: float) -> str:
    """A share in percent, to as many digits as small ones need: "31%", "2.4%", "<0.1%"."""
    if share < 0.001:
        return "<0.1%"
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"


def weights_line(sample: Mapping[str, Any]) -> str:
    """Which weight each objective gives to a sample."""
    weighed = [f"{name} {weight:+.2g}" for name, weight in sample["weights"].items() if weight]
    without = [name for name, weight in sample["weights"].items() if not weight]
    parts = [f"weight w: {', '.join(weighed)}"] if weighed else []
    if without:
        parts.append(f"{', '.join(without)} 0 (learns nothing from it)")
    return "; ".join(parts)


def explain_figure(record: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw what `nsr explain` found: one row a sample, one panel a token.

    Args:
        record: what explain.json holds.
        path: where to write; its ending is replaced by .png and .svg.

    Returns:
        The files written.
    """
    samples: Sequence[Mapping[str, Any]] = record["samples"]
    columns = max(len(sample["tokens"]) for sample in samples)
    lines = 1 + max(len(token["candidates"]) for sample in samples for token in sample["tokens"])
    width, height = max(8.0, 0.4 + 3.9 * columns), 1.15 + (1.2 + 0.34 * lines) * len(samples)
    with mpl.rc_context(STYLE):
        bottom, top = 0.5 / height, 0.6 / height
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.04, rect=(0, bottom, 1, 1 - bottom - top))
        figure = Figure(figsize=(width, height), layout=layout)
        rows: Sequence[SubFigure] = figure.subfigures(len(samples), 1, squeeze=False)[:, 0].tolist()
        for row, sample in zip(rows, samples, strict=True):
            _draw_sample(row, sample, record["objectives"], columns, _ends(record), width)
        left = 0.1 / width
        title = f"What each objective asks of the logits, on {record['puzzle'].replace('=', ' = ')}"
        figure.text(left, 1 - 0.1 / height, title, fontsize=13, fontweight="bold", va="top", parse_math=False)
        handles = [Patch(color=method_color(name), label=name) for name in record["objectives"]]
        figure.legend(
            handles=handles,
            ncols=len(handles),
            loc="upper left",
            bbox_to_anchor=(left, 1 - 0.34 / height),
            borderpad=0,
            borderaxespad=0,
            handlelength=1.2,
        )
        figure.text(left, 0.1 / height, _NOTE, fontsize=8.5, color="#666666", va="bottom", parse_math=False)
        return save(figure, path)


def _ends(record: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest gradient that is drawn, with room around them: all panels share their scale."""
    values = [
        value
        for sample in record["samples"]
        for token in sample["tokens"]
        for bar in (*token["candidates"], token["tail"])
        for value in bar["gradients"].values()
    ]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room


def _draw_sample(
    row: SubFigure,
    sample: Mapping[str, Any],
    objectives: Sequence[str],
    columns: int,
    ends: tuple[float, float],
    width: float,
) -> None:
    verdict = "" if sample["kind"] == "right" else f" ({sample['verdict'].replace('_', ' ')})"
    label = f"{sample['kind'].capitalize()} sample{verdict}; {weights_line(sample)}"
    label = textwrap.fill(label.replace(" -", " −"), int(10 * width))
    row.suptitle(label, x=0.1 / width, ha="left", fontsize=10.5, color="#333333", parse_math=False)
    drawn = [name for name in objectives if sample["weights"][name]]
    all_axes: Sequence[Axes] = row.subplots(1, columns, sharex=True, squeeze=False)[0].tolist()
    for axes, token in zip(all_axes, sample["tokens"], strict=False):
        _draw_token(axes, token, drawn)
        axes.set_xlim(*ends)
    for axes in all_axes[len(sample["tokens"]) :]:
        axes.set_axis_off()


def _draw_token(axes: Axes, token: Mapping[str, Any], objectives: Sequence[str]) -> None:
    bars = [*token["candidates"], token["tail"]]
    center = np.arange(len(bars))
    thickness = 0.8 / max(1, len(objectives))
    for number, name in enumerate(objectives):
        axes.barh(
            center + (number - (len(objectives) - 1) / 2) * thickness,
            [bar["gradients"][name] for bar in bars],
            height=0.9 * thickness,
            color=method_color(name),
        )
    axes.axvline(0.0, color="#555555", linewidth=0.8)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    names = [quoted(bar["text"], _SHOWN_TOKEN, _has_glyph) for bar in token["candidates"]]
    names.append(f"{token['tail']['ids']:,} others")
    labels = [f"{name} {percent(bar['probability']):>5}" for name, bar in zip(names, bars, strict=True)]
    axes.set_yticks(center.tolist(), labels, fontfamily=_FONT, fontsize=9, color="#222222", parse_math=False)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.set_xlabel("lowered  ←  logit  →  raised", fontsize=9, color="#555555")
    context = quoted(token["before"], _SHOWN_CONTEXT, _has_glyph)
    axes.set_title(
        f"token {token['position']}, after {context}",
        fontfamily=_FONT,
        fontsize=8.5,
        fontweight="normal",
        pad=5,
        parse_math=False,
    )


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(FT2Font(findfont(_FONT)).get_charmap())


def _has_glyph(char: str) -> bool:
    """Whether the figure's font can draw a character. Line ends and the like are escaped elsewhere."""
    return ord(char) in _characters() or char in "\n\t\r"
