"""How methods and verdicts look in a report: one colour each, everywhere, in light and in dark.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart, and each objective has a marker of
its own besides; variants of one objective share its hue and marker and differ by shade and dashes. In the page a colour
is a CSS variable, so that each theme has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nsr.report.figures import METHOD_COLORS
from nsr.report.methods import Method
from nsr.tasks.countdown.grader import Verdict

EXTRA_COLORS = ("#7a5195", "#8c6d31", "#b0a100", "#637939", "#843c39", "#3f7f93")
"""Of objectives that are not listed, in the order in which they turn up."""

DARK_COLORS = {
    "#5f5f5f": "#a9adb3",
    "#0072b2": "#4da3dc",
    "#e69f00": "#f0b429",
    "#009e73": "#2bbf93",
    "#d55e00": "#f08143",
    "#cc79a7": "#dd94bc",
    "#56b4e9": "#7cc6f0",
    "#7a5195": "#b18ccc",
    "#8c6d31": "#c4a25f",
    "#b0a100": "#cfc22e",
    "#637939": "#9bb36b",
    "#843c39": "#c9807d",
    "#3f7f93": "#78b7ca",
}
"""The shade of each colour on a dark ground."""

_SHADES = ((0, 0.0), (0, 0.4), (255, 0.4))
"""Of variants: what a colour is mixed with (0 black, 255 white; on a dark ground the other) and how much of it."""

VERDICT_COLORS = {
    Verdict.CORRECT.value: "#2a9d8f",
    Verdict.WRONG_VALUE.value: "#e3b341",
    Verdict.WRONG_NUMBERS.value: "#e07a5f",
    Verdict.DIVISION_BY_ZERO.value: "#81578a",
    Verdict.MALFORMED.value: "#6b8fb5",
    Verdict.NO_ANSWER.value: "#9aa0a6",
}

INK, SOFT, AXIS, GRID, PAPER = "#2b2f36", "#6a707a", "#8b919b", "#e4e6ea", "#ffffff"
PAGE_VARIABLES = {
    INK: ("ink", "#e4e7ec"),
    SOFT: ("soft", "#9aa3b0"),
    AXIS: ("axis", "#6b7380"),
    GRID: ("grid", "#2c323b"),
    PAPER: ("paper", "#14171c"),
}
"""CSS variable and dark shade of each colour that is no data."""

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 8,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": AXIS,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # labels may hold anything
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "nsr",  # else the ids in an SVG are random
}

DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.8), (1.4, 1.4), (6, 1.6, 1.4, 1.6), (3, 1.2), (8, 2.4))
MARKERS = {"base": "o", "RLVR": "D", "PSR": "s", "NSR": "^", "W_REINFORCE": "v", "SHUFFLED": "P", "RLOO": "p"}
OTHER_MARKER = "X"


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colour, dashes and marker of a method."""

    color: str
    dashes: tuple[float, ...]
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """For matplotlib's `plot`."""
        return {"color": self.color, "linestyle": (0, self.dashes) if self.dashes else "-"}

    @property
    def thin(self) -> dict[str, Any]:
        """As `line`, for a way and not for a result."""
        return {**self.line, "linewidth": 1.0}


def looks(methods: Sequence[Method]) -> dict[Method, Look]:
    """The look of each method of a report."""
    others = list(dict.fromkeys(method.objective for method in methods if method.objective not in METHOD_COLORS))
    extra = {name: EXTRA_COLORS[index % len(EXTRA_COLORS)] for index, name in enumerate(others)}
    return {
        method: Look(
            color=shade(METHOD_COLORS.get(method.objective) or extra[method.objective], method.variant),
            dashes=DASHES[method.variant % len(DASHES)],
            marker=MARKERS.get(method.objective, OTHER_MARKER),
        )
        for method in methods
    }


def shade(color: str, variant: int, *, on_dark: bool = False) -> str:
    """The shade of a colour for a variant of an objective; after some of them they come again, with other dashes."""
    ground, amount = _SHADES[variant % len(_SHADES)]
    ground = 255 - ground if on_dark else ground
    mixed = [round((1 - amount) * int(color[i : i + 2], 16) + amount * ground) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def css_variables() -> tuple[dict[str, str], dict[str, str]]:
    """The values of all CSS variables of the figures, in light and in dark."""
    light = {name: color for color, (name, _) in PAGE_VARIABLES.items()}
    dark = dict(PAGE_VARIABLES.values())
    for color, dark_color in _DATA_COLORS.items():
        light[data_variable(color)] = color
        dark[data_variable(color)] = dark_color
    return light, dark


def data_variable(color: str) -> str:
    """The CSS variable of a colour of a method."""
    return f"c-{color[1:]}"


def page_color(color: str) -> str:
    """A colour as the page writes it: a variable where a theme has its own shade, else as it is."""
    color = color.lower()
    if color in PAGE_VARIABLES:
        return f"var(--{PAGE_VARIABLES[color][0]})"
    return f"var(--{data_variable(color)})" if color in _DATA_COLORS else color


_DATA_COLORS = {
    shade(color, variant): shade(dark_color, variant, on_dark=True)
    for color, dark_color in DARK_COLORS.items()
    for variant in range(len(_SHADES))
}
