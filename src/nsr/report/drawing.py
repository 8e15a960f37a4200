"""Panels -> files and inline SVG. The same panels give the same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nsr.report.methods import Method
from nsr.report.panels import Panel
from nsr.report.theme import STYLE, VERDICT_COLORS, Look, page_color
from nsr.runs.files import write_atomic

PANEL_WIDTH = {1: 4.6, 2: 4.6, 3: 3.8}
"""In inches, by the number of columns: so that their text has about one size in the page."""
_NO_DATE = {"Date": None, "Creator": None}
_FILES: dict[str, Any] = {"png": {"dpi": 200, "metadata": {"Software": None}}, "svg": {"metadata": _NO_DATE}}
_COLOR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font: (?:(\w+) )??([\d.]+)px [^;\"]*")
_ID = re.compile(r' id="([\w.-]+)"')
_USED = re.compile(r'(?:href="#|url\(#)([\w.-]+)')
_MARKED = re.compile(r'<g id="[\w-]*?(m\d+)"')
_PROLOG = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_BREAK = re.compile(r"\s*\n\s*")
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'(<svg [^>]*?) ?(?:width|height)="[^"]*"')
_DEFAULT_STYLE = re.compile(r"\s*<style type=\"text/css\">[^<]*</style>")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of a report: panels that belong together."""

    name: str
    """Of its files; plain letters, digits and hyphens."""
    title: str
    caption: str
    panels: tuple[Panel, ...]
    methods: tuple[Method, ...] = ()
    """For the legend; none where the panels name them."""
    verdicts: bool = False
    """Whether its legend is that of the verdicts."""
    columns: int = 2


def inline(plot: Plot) -> list[Markup]:
    """The panels of a figure, each an SVG element for the page: it scales, and its colours are the page's."""
    return [
        _inline(panel, f"{plot.name}-{number}", PANEL_WIDTH[min(plot.columns, len(plot.panels))])
        for number, panel in enumerate(plot.panels)
    ]


def write_files(plot: Plot, looks: Mapping[Method, Look], folder: Path) -> list[Path]:
    """All panels of a figure in one picture with a legend, as `NAME.png` and `NAME.svg`, for papers."""
    columns = min(plot.columns, len(plot.panels))
    rows = math.ceil(len(plot.panels) / columns)
    heights = [max(panel.height for panel in plot.panels[row * columns :][:columns]) for row in range(rows)]
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        figure = Figure(figsize=(PANEL_WIDTH[columns] * columns, sum(heights) + 0.45), layout=layout)
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid.flat, plot.panels, strict=False):
            axes.set_title(panel.title)
            panel.draw(axes)
        for axes in grid.flat[len(plot.panels) :]:
            axes.set_visible(False)
        handles = _legend(plot, looks)
        if handles:
            labels = [str(handle.get_label()) for handle in handles]
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(handles), 3 * columns))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for both files
        return _save(figure, folder / plot.name)


def swatch(look: Look, name: str) -> Markup:
    """A short line with the marker of a method, as a symbol with the id `name` that the page's legends use."""
    with mpl.rc_context({**STYLE, "svg.fonttype": "none"}):
        figure = Figure(figsize=(0.42, 0.16))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.plot([0.03, 0.97], [0.5, 0.5], **look.line)
        axes.plot(0.5, 0.5, look.marker, markersize=5, color=look.color)
        svg = _to_element(_svg(figure), name)
        svg = re.sub(r"^<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<symbol id="{name}" \1>', svg)
        return Markup(svg.replace("</svg>", "</symbol>"))  # noqa: S704


def _legend(plot: Plot, looks: Mapping[Method, Look]) -> Sequence[Line2D | Patch]:
    if plot.verdicts:
        return [Patch(color=color, label=name.replace("_", " ")) for name, color in VERDICT_COLORS.items()]
    return [
        Line2D([], [], **looks[method].line, marker=looks[method].marker, markersize=4.5, label=method.label)
        for method in plot.methods
    ]


def _inline(panel: Panel, prefix: str, width: float) -> Markup:
    with mpl.rc_context({**STYLE, "svg.fonttype": "none"}):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
        figure = Figure(figsize=(width, panel.height), layout=layout)
        axes = figure.add_subplot()
        panel.draw(axes)
        svg = _to_element(_svg(figure), prefix)
        return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(panel.title)}" ', 1))  # noqa: S704


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_DATE)
    return buffer.getvalue()


def _to_element(svg: str, prefix: str) -> str:
    """SVG of matplotlib as an element among others: own ids, the page's fonts and colours, no fixed size.

    What comes from outside (labels) is text in it, which matplotlib escapes; nothing is taken out of its escaping here.
    """
    svg = _METADATA.sub("", _PROLOG.sub("", svg, count=1))
    svg = _BREAK.sub(" ", _DEFAULT_STYLE.sub("", svg))
    for _ in range(2):
        svg = _SIZE.sub(r"\1", svg, count=1)
    svg = _MARKED.sub(r'<g class="m \1"', svg)
    used = set(_USED.findall(svg))
    svg = _ID.sub(lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", svg)
    svg = _USED.sub(lambda match: match[0].replace("#", f"#{prefix}-", 1), svg)
    svg = _COLOR.sub(lambda match: page_color(match[0]), svg)
    return _FONT.sub(r"font-size: \2px", svg)


def _save(figure: Figure, path: Path) -> list[Path]:
    written: list[Path] = []
    for ending, options in _FILES.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, facecolor="white", **options)
        target = path.with_name(f"{path.name}.{ending}")
        write_atomic(target, buffer.getvalue())
        written.append(target)
    return written
