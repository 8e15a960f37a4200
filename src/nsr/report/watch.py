"""A view of the runs below some folders, in a terminal, while they go. Reads files only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from nsr.config import WatchConfig
from nsr.report.status import RunStatus, find_runs, read_status
from nsr.report.status_table import FULL, StatusTable, counts
from nsr.runs.progress import printable

REFRESH_SECONDS = 1.0


def watch(config: WatchConfig, console: Console | None = None) -> None:
    """Show the runs below the folders of `config` until ctrl-C; once where that is asked for, or without a terminal."""
    console = console or Console(highlight=False)
    if config.once or not console.is_terminal or console.is_dumb_terminal:
        console.print(view(config.folders))
        return
    hint = Text("ctrl-C ends this view; the runs go on.", "dim")
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(config.folders, hint, live=True), refresh=True)
                time.sleep(REFRESH_SECONDS)
    except KeyboardInterrupt:
        console.print(view(config.folders))


def view(folders: Sequence[str], *hints: RenderableType, live: bool = False) -> StatusTable:
    """The table of all runs below the folders as they are now, with one sentence for each thing that is wrong."""
    statuses: list[RunStatus] = []
    problems: list[str] = []
    for folder in folders:
        below, wrong = _look_below(Path(folder), several=len(folders) > 1)
        statuses += below
        problems += wrong
    found = f"1 run: {counts(statuses)}" if len(statuses) == 1 else f"{len(statuses)} runs: {counts(statuses)}"
    notes = [Text(found if statuses else "no runs", "bold")]
    if any(status.accuracy is not None and status.low is None for status in statuses):
        notes.append(Text("~ mean of the last steps' training puzzles, where there is no evaluation yet", "dim"))
    warnings = [f"{status.name}: {status.warning}" for status in statuses if status.warning]
    notes += [Text.assemble(("! ", "bold red"), printable(problem)) for problem in [*problems, *warnings]]
    return StatusTable(statuses, FULL, [Text(), *notes, *hints], live=live)


def _look_below(folder: Path, *, several: bool) -> tuple[list[RunStatus], list[str]]:
    if not folder.is_dir():
        return [], [f"{folder} is not a folder, or not there yet."]
    statuses: list[RunStatus] = []
    problems: list[str] = []
    for path in find_runs(folder):
        # Named by the way that leads to it from the folder that was given; from here, where there are several.
        name = str(path) if several or path == folder else str(path.relative_to(folder))
        try:
            status = read_status(path, name)
        except FileNotFoundError:
            continue  # it has vanished
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror}).")
        except ValueError as error:
            problems.append(str(error))
        else:
            if status is not None:
                statuses.append(status)
    return statuses, problems
