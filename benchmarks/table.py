"""What was measured -> rows -> one Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.driver import Outcome

HEAD = ("what", "median", "smallest", "largest", "unit", "target", "goal")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure over the rounds."""

    part: str
    what: str
    unit: str
    values: tuple[float, ...] = ()
    note: str = ""
    """What stands there if there are no values."""
    target: str = ""
    goal: str = ""

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        if not self.values:
            return (escaped(self.what), escaped(self.note) or "-", "", "", "", self.target, self.goal)
        numbers = [number(f(self.values)) for f in (statistics.median, min, max)]
        return (escaped(self.what), *numbers, self.unit, self.target, self.goal)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"part": self.part, "what": self.what, "unit": self.unit, "values": self.values, "note": self.note}


def row_of(
    part: str, what: str, unit: str, outcome: Outcome, values: Sequence[float], *, target: str = "", goal: str = ""
) -> Row:
    """A row of one contender's values; without any it says why there are none."""
    note = "" if values else outcome.trouble or "not measured"
    return Row(part=part, what=what, unit=unit, values=tuple(values), note=note, target=target, goal=goal)


def rates(outcome: Outcome) -> list[float]:
    """Tokens a second in each round."""
    return [
        tokens / seconds for tokens, seconds in zip(outcome.values("tokens"), outcome.values("seconds"), strict=True)
    ]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below within each round that both have: what the machine did meanwhile met both."""
    return [a / b for a, b in zip(above, below, strict=False)]


def escaped(text: str) -> str:
    """A cell's text: a bar would end the cell, and a new line the row."""
    return " ".join(text.split()).replace("|", "\\|")


def number(value: float) -> str:
    """Three digits that count, and all before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as one table, in columns that line up in a terminal too; a part's name stands above its rows."""
    lines: list[tuple[str, ...]] = [HEAD]
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines.append((f"**{part}**", *[""] * (len(HEAD) - 1)))
        lines.append(row.cells())
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    shown = [rule if index == 1 else line for index, line in enumerate([lines[0], (), *lines[1:]])]
    return "\n".join("| " + " | ".join(_aligned(cells, widths)) + " |" for cells in shown)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
