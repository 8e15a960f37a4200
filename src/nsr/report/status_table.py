"""The table of runs that `nsr suite` and `nsr watch` show: what fits into the terminal, the most telling first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nsr.report.status import RunStatus, State
from nsr.runs.progress import printable

STYLES: dict[State, str] = {
    "running": "bold cyan",
    "failed": "bold red",
    "collapsed": "red",
    "interrupted": "yellow",
    "waiting": "dim",
    "complete": "green",
}
"""The states, those that want to be seen first, and how each is shown."""

_MANY = 1000  # columns: as wide as a table wants to be


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its head, and what it says of a run."""

    head: str
    cell: Callable[[RunStatus], str]
    right: bool = True
    needed: bool = True
    """False: left out where the terminal is narrow, the last such column first."""


def steps(status: RunStatus) -> str:
    """Steps made, of how many: "12/40"."""
    return f"{status.step}/{status.total}" if status.total else ""


def accuracy(status: RunStatus) -> str:
    """Accuracy of the latest evaluation, "38.2%", or about that of the recent steps, "~38.2%"."""
    if status.accuracy is None:
        return ""
    return f"{'' if status.low is not None else '~'}{100 * status.accuracy:.1f}%"


def remaining(status: RunStatus) -> str:
    """Hours, minutes and seconds to the end."""
    return "" if status.remaining is None else duration(status.remaining)


def duration(seconds: float) -> str:
    """Hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))


def interval(status: RunStatus) -> str:
    """The 95% interval of the latest evaluation in percent, and the step it was made after: "[35.1, 41.2] at 20"."""
    if status.low is None or status.high is None:
        return ""
    place = f" at {status.evaluated}" if status.total else ""
    return f"[{100 * status.low:.1f}, {100 * status.high:.1f}]{place}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


NAME = Column(head="run", cell=lambda status: printable(status.name).plain, right=False)
STATE = Column(head="state", cell=lambda status: status.state, right=False)
STEPS = Column(head="step", cell=steps)
ACCURACY = Column(head="accuracy", cell=accuracy)
ETA = Column(head="ETA", cell=remaining)

BRIEF = (NAME, STATE, STEPS, ACCURACY, ETA)
"""The columns of a suite."""

FULL = (
    *BRIEF[:-1],
    Column(head="95% interval", cell=interval, right=False, needed=False),
    ETA,
    Column(head="s/step", cell=lambda status: _number(status.step_seconds, ".1f"), needed=False),
    Column(head="reward", cell=lambda status: _number(status.reward, "+.3f"), needed=False),
    Column(head="entropy", cell=lambda status: _number(status.entropy, ".3f"), needed=False),
    Column(head="length", cell=lambda status: _number(status.length, ".0f"), needed=False),
)
"""The columns of `nsr watch`."""


class StatusTable:
    """A table that fits itself into where it is shown, also when that changes; every column and row where it may.

    Rows go first where they are complete or waiting, columns where they are not `needed`; what is left out is counted.
    """

    def __init__(
        self,
        statuses: Sequence[RunStatus],
        columns: Sequence[Column],
        notes: Sequence[RenderableType] = (),
        *,
        live: bool = False,
    ) -> None:
        """Show runs, and notes below them. A live view cannot scroll: rows that it has no room for are left out."""
        self.statuses = statuses
        self.columns = columns
        self.notes = notes
        self.live = live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out for the width and, live, the height that there is now."""
        columns, hidden = list(self.columns), list[str]()
        while _width(console, options, _table(self.statuses, columns)) > options.max_width:
            spare = [column for column in columns if not column.needed]
            if not spare:
                break
            columns.remove(spare[-1])
            hidden.insert(0, spare[-1].head)
        notes = list(self.notes)
        if hidden:
            notes.append(Text(f"A wider terminal also shows: {', '.join(hidden)}.", "dim"))
        rows = list(self.statuses)
        if self.live:
            height = sum(len(console.render_lines(note, options.reset_height())) for note in notes)
            room = max(1, options.max_height - height - 1)  # 1: the heads
            if len(rows) > room:
                rows, rest = choose_rows(rows, max(0, room - 1))
                notes.insert(0, Text(f"and {rest}; a taller terminal shows them", "dim"))
        yield Group(_table(rows, columns), *notes)


def choose_rows(statuses: Sequence[RunStatus], room: int) -> tuple[list[RunStatus], str]:
    """The `room` runs that want to be seen first, in their order, and how many of what state are left out."""
    urgency = list(STYLES)

    def rank(index: int) -> tuple[int, int]:
        status = statuses[index]
        # Of the complete ones the last are of interest, of those that wait the first.
        return urgency.index(status.state), -index if status.state == "complete" else index

    chosen = set(sorted(range(len(statuses)), key=rank)[:room])
    return [status for index, status in enumerate(statuses) if index in chosen], counts(
        [status for index, status in enumerate(statuses) if index not in chosen]
    )


def counts(statuses: Sequence[RunStatus]) -> str:
    """How many runs are in which state: "2 running, 5 waiting"."""
    found = Counter(status.state for status in statuses)
    return ", ".join(f"{found[state]} {state}" for state in STYLES if found[state])


def status_line(status: RunStatus) -> str:
    """What a table would say of a run, as one line: "NSR_160  running  20/40  38.2%  ETA 0:01:12"."""
    eta = remaining(status)
    parts = [NAME.cell(status), status.state, steps(status), accuracy(status), f"ETA {eta}" if eta else ""]
    return "  ".join(part for part in parts if part)


def _table(statuses: Sequence[RunStatus], columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in columns:
        # Where it is too narrow even so, the names give way.
        table.add_column(column.head, justify="right" if column.right else "left", no_wrap=column is not NAME)
    for status in statuses:
        table.add_row(*(_cell(column, status) for column in columns))
    return table


def _cell(column: Column, status: RunStatus) -> Text:
    style = STYLES[status.state] if column is STATE else ""
    return Text(column.cell(status), style, no_wrap=True, overflow="ellipsis")


def _width(console: Console, options: ConsoleOptions, table: Table) -> int:
    return Measurement.get(console, options.update(width=_MANY), table).maximum
