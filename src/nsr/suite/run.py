"""Running a suite: what is complete is skipped, what failed does not stop the others, and one table shows it all."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nsr.config import RunConfig, SuiteConfig, TrainConfig
from nsr.memory.preflight import check_device
from nsr.report.status import RunStatus, State, planned_status, read_status
from nsr.report.status_table import BRIEF, Column, StatusTable, counts, duration, status_line
from nsr.runs.folder import check_folder, run_state
from nsr.runs.progress import printable
from nsr.suite.jobs import STOPPED, Interruption, Job, ending, environment, visible_gpus
from nsr.suite.lists import build_suite, suite_path, to_words

INTERRUPTED = 130

POLL_SECONDS = 0.5
PATIENCE_SECONDS = (1800.0, 10.0)
"""How long runs that are told to end may take, before they are told to end now, and before they are ended.

They finish and save the step under way, which takes minutes for a large model. ctrl-C again does not wait.
"""


def run_suite(config: SuiteConfig, changes: Mapping[str, Any] | None = None, console: Console | None = None) -> int:
    """Run a suite: skip runs that are complete, take up those that were interrupted, go on after one that failed.

    Args:
        config: which suite, with which seeds.
        changes: settings by name, in place of those of the list.
        console: what decides whether there is a terminal; by default the standard output.

    Returns:
        0 where every run is complete, 130 where the suite was interrupted before, and 1 otherwise.

    Raises:
        ValueError: the suite cannot be built, or this machine lacks its device; nothing is started then.
    """
    runs = build_suite(config, changes)
    console = console or Console(highlight=False)
    if config.dry_run:
        for run in runs:
            print(shlex.join(["nsr", *to_words(run)]))
        return 0
    return run_list(suite_path(config), runs, jobs=config.jobs, console=console)


def run_list(folder: Path, runs: list[RunConfig], *, jobs: int, console: Console | None = None) -> int:
    """Make the runs of a list: those that are complete are skipped, and so on as `run_suite` has it.

    Args:
        folder: where what the runs print is kept, in `logs/`; each run has its own folder for the rest.
        runs: at least one; no two with the same folder.
        jobs: runs at a time.
        console: what decides whether there is a terminal; by default the standard output.

    Returns:
        As `run_suite`.

    Raises:
        ValueError: this machine lacks a device that a run asks for; nothing is started then.
    """
    console = console or Console(highlight=False)
    for device in {run.device for run in runs}:
        check_device(device)
    suite = _Suite(folder, runs, jobs=min(jobs, len(runs)))
    with Interruption() as interruption, _Display(console) as display:
        suite.go(interruption, display)
    return suite.sum_up(console, interrupted=interruption.count > 0)


@dataclass(kw_only=True)
class _Entry:
    """A run of the suite, and what became of it."""

    config: RunConfig
    status: RunStatus
    job: Job | None = None
    slot: int = 0
    seconds: float | None = None
    """How long this start of it took."""
    reason: str = ""
    """Why it failed."""
    last_words: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        return self.status.state

    def look(self, state: State) -> None:
        """Read the run's folder again. One that cannot be read has no numbers: the run itself will complain of it."""
        planned = planned_status(self.config, state)
        try:
            found = read_status(self.config.run_path, self.config.run_name)
        except (OSError, ValueError):
            found = None
        # The steps that are asked for now may be more than those the folder was made for.
        self.status = planned if found is None else dataclasses.replace(found, state=state, total=planned.total)


class _Display:
    """Shows the suite while it goes: a live table in a terminal, elsewhere a line for whatever changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, screen=True, auto_refresh=False)
        self._shown: dict[str, tuple[State, int | None]] = {}

    def __enter__(self) -> _Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, entries: list[_Entry], table: StatusTable) -> None:
        if self._live is not None:
            self._live.update(table, refresh=True)
            return
        for number, entry in enumerate(entries, start=1):
            status = entry.status
            news = (status.state, status.evaluated)
            if status.state != "waiting" and self._shown.get(status.name) != news:
                self._shown[status.name] = news
                line = f"[{number}/{len(entries)}] {status_line(status)}"
                self._console.print(Text(line), soft_wrap=True)


class _Suite:
    """A suite under way."""

    def __init__(self, folder: Path, runs: list[RunConfig], *, jobs: int) -> None:
        self._folder = folder
        self._jobs = jobs
        self._started = time.monotonic()
        self._gpus = visible_gpus() if jobs > 1 and any(run.device == "cuda" for run in runs) else []
        self._level = -1
        self._level_since = 0.0
        self._entries = [_Entry(config=run, status=planned_status(run)) for run in runs]
        for entry in self._entries:
            entry.look(_state_before(entry.config))

    def go(self, interruption: Interruption, display: _Display) -> None:
        """Run until there is nothing left, or until every run that is under way has ended after an interruption."""
        try:
            while True:
                for entry in self._in_state("running"):
                    self._look_after(entry)
                if interruption.count:
                    self._tell(interruption.count - 1)
                else:
                    self._start_waiting()
                display.show(self._entries, self._table(interruption.count > 0))
                if not self._in_state("running") and (interruption.count or not self._in_state("waiting")):
                    return
                time.sleep(POLL_SECONDS)
        finally:  # whatever happens here, no process is left behind
            for entry in self._in_state("running"):
                assert entry.job is not None
                entry.job.tell(1)

    def sum_up(self, console: Console, *, interrupted: bool) -> int:
        """Print what became of each run, and what to do next; returns the exit code."""
        statuses = [entry.status for entry in self._entries]
        complete = sum(status.state == "complete" for status in statuses)
        console.print(StatusTable(statuses, self._columns(), [Text()]))
        others = counts([status for status in statuses if status.state != "complete"])
        took = duration(time.monotonic() - self._started)
        _say(console, f"{complete} of {len(statuses)} runs are complete{others and f', {others}'}; this took {took}.")
        for entry in self._in_state("failed"):
            _say(console, f"\n{entry.config.run_name} failed: {entry.reason}")
            if entry.last_words:
                _say(console, "\n".join(f"    {line}" for line in entry.last_words))
                _say(console, f"    (the whole log: {self._log(entry.config)})")
        for status in statuses:
            if status.warning:
                _say(console, f"\n{status.name}: {status.warning}")
        if any(status.state not in ("complete", "collapsed") for status in statuses):
            _say(console, f"\n{'Interrupted: t' if interrupted else 'T'}he same command goes on where this stopped.")
        if complete:
            _say(console, f"The report: {shlex.join(['nsr', 'report', str(self._folder)])}")
        if complete == len(statuses):
            return 0
        return INTERRUPTED if interrupted else 1

    def _in_state(self, state: State) -> list[_Entry]:
        return [entry for entry in self._entries if entry.state == state]

    def _log(self, run: RunConfig) -> Path:
        return self._folder / "logs" / f"{run.run_name}.log"

    def _start_waiting(self) -> None:
        """Start the next runs, as many as there is room for. One whose folder cannot be used fails without a start."""
        for entry in self._in_state("waiting"):
            taken = {other.slot for other in self._in_state("running")}
            free = [slot for slot in range(self._jobs) if slot not in taken]
            if not free:
                return
            try:
                check_folder(entry.config)
                entry.slot = free[0]
                settings = environment(os.environ, slot=entry.slot, jobs=self._jobs, gpus=self._gpus_of(entry.config))
                entry.job = Job.start(entry.config, self._log(entry.config), settings)
            except ValueError as error:
                entry.reason = str(error)
                entry.look("failed")
            except OSError as error:
                entry.reason = f"it cannot be started ({error})"
                entry.look("failed")
            else:
                entry.look("running")

    def _gpus_of(self, run: RunConfig) -> list[str]:
        return self._gpus if run.device == "cuda" else []  # one that names its GPU keeps it

    def _look_after(self, entry: _Entry) -> None:
        """See how far a run is, and what became of it where it has ended."""
        job = entry.job
        assert job is not None
        code = job.process.poll()
        if code is None:
            entry.look("running")
            return
        entry.seconds, entry.job = job.seconds, None
        if _is_complete(entry.config):
            entry.look("complete")
        elif _has_collapsed(entry.config):
            entry.look("collapsed")
        elif job.told >= 0 or code in STOPPED:
            entry.look("interrupted")
        else:
            entry.reason = ending(code) if code else "it ended without an error, but is not complete"
            entry.last_words = tuple(job.last_words())
            entry.look("failed")

    def _tell(self, repeated: int) -> None:
        """Tell the runs under way to end, less politely each time: when told again, and when patience is over."""
        now = time.monotonic()
        level = max(self._level, min(repeated, 2))
        if 0 <= level < 2 and level == self._level and now - self._level_since > PATIENCE_SECONDS[level]:
            level += 1
        if level > self._level:
            self._level, self._level_since = level, now
        for entry in self._in_state("running"):
            assert entry.job is not None
            entry.job.tell(level)

    def _columns(self) -> list[Column]:
        seconds = {entry.config.run_name: entry.job.seconds if entry.job else entry.seconds for entry in self._entries}

        def took(status: RunStatus) -> str:
            value = seconds[status.name]
            return "" if value is None else duration(value)

        return [*BRIEF, Column(head="time", cell=took, needed=False)]

    def _table(self, interrupted: bool) -> StatusTable:
        statuses = [entry.status for entry in self._entries]
        running = len(self._in_state("running"))
        took = duration(time.monotonic() - self._started)
        notes = [Text(), Text(f"{self._folder}: {counts(statuses)}; {took} so far", "bold")]
        if interrupted:
            notes.append(Text(f"Interrupted: {running} told to end; ctrl-C again does not wait for them.", "yellow"))
        else:
            notes.append(Text(f"Logs are in {self._folder / 'logs'}. ctrl-C interrupts; it can go on later.", "dim"))
        return StatusTable(statuses, self._columns(), notes, live=True)


def _state_before(run: RunConfig) -> State:
    return "complete" if _is_complete(run) else "collapsed" if _has_collapsed(run) else "waiting"


def _has_collapsed(run: RunConfig) -> bool:
    """Whether --stop_on_collapse has ended the run, and would again: then there is nothing left to do for it."""
    if not (isinstance(run, TrainConfig) and run.stop_on_collapse):
        return False
    try:
        found = read_status(run.run_path, run.run_name)
    except (OSError, ValueError):
        return False
    return found is not None and found.state == "collapsed"


def _is_complete(run: RunConfig) -> bool:
    try:
        return run_state(run) == "complete"
    except ValueError:  # its turn will come, and say what is wrong with its folder
        return False


def _say(console: Console, text: str) -> None:
    console.print(printable(text), soft_wrap=True)
