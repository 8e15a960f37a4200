"""What a run shows while it goes: a live bar in a terminal, plain lines elsewhere; and model text made safe to show."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text


def printable(text: str) -> Text:
    r"""Text from outside (a model, a file) for rich to print: nothing in it is markup or controls the terminal.

    Control characters (so also the start of every ANSI code), marks that change the direction of writing, and other
    characters without a glyph are shown as escapes such as `\x1b`; newline and tab stay. `.plain` is the string.
    """
    return Text("".join(char if _is_visible(char) else _escape(char) for char in text))


def _is_visible(char: str) -> bool:
    # C*: control, format, surrogate, private, unassigned. Zl, Zp: line and paragraph separators.
    category = unicodedata.category(char)
    return char in "\n\t" or not (category[0] == "C" or category in ("Zl", "Zp"))


def _escape(char: str) -> str:
    return ascii(char)[1:-1]


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """What is shown of a step."""

    step: int
    """The step, from 1."""
    seconds: float
    """How long it took."""
    accuracy: float
    """Share of right samples among its rollouts."""
    reward: float
    """Mean reward."""
    entropy: float | None
    """Mean token entropy in nats, where the engine tells."""
    length: float
    """Mean response length in tokens."""
    right: float
    """Share of groups in which every sample is right."""
    mixed: float
    """Share of groups with right and wrong samples."""
    wrong: float
    """Share of groups in which every sample is wrong."""

    def line(self, n_steps: int, remaining: float) -> str:
        """One line of text; `remaining` is the time to the end in seconds."""
        entropy = "?" if self.entropy is None else f"{self.entropy:.3f}"
        return (
            f"step {self.step}/{n_steps}  {self.seconds:.1f} s  accuracy {self.accuracy:.1%}  "
            f"reward {self.reward:+.3f}  entropy {entropy}  length {self.length:.0f}  "
            f"groups right {self.right:.0%} mixed {self.mixed:.0%} wrong {self.wrong:.0%}  ETA {_duration(remaining)}"
        )


class RunProgress:
    """Shows how far a run is. A context manager: the bar goes away at its end, also at an error."""

    def __init__(
        self,
        n_steps: int = 0,
        *,
        done: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A run of `n_steps` steps (0: evaluations only), `done` of which an earlier start made.

        `console` decides whether there is a terminal; by default it is the standard output.
        """
        self.console = console or Console(highlight=False)
        self._n_steps = n_steps
        self._done = done
        self._clock = clock
        self._started = clock()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=self.console,
        )
        self._status = Text(no_wrap=False)
        self._steps: TaskID | None = None
        if n_steps:
            self._steps = self._bars.add_task("training", total=n_steps, completed=done)
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(Group(self._status, self._bars), console=self.console, refresh_per_second=4)

    def __enter__(self) -> RunProgress:
        """Start showing, and counting the time."""
        self._started = self._clock()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print lines, above the bar where there is one. Text from outside must have gone through `printable`."""
        self.console.print(Text(text), soft_wrap=True)

    def step(self, status: StepStatus) -> None:
        """Show a step that is finished: in a terminal in place of the one before, elsewhere as a line."""
        made = max(status.step - self._done, 1)
        per_step = (self._clock() - self._started) / made
        line = status.line(self._n_steps, per_step * (self._n_steps - status.step))
        if self._live is None:
            self.say(line)
        else:
            self._status.plain = line
        if self._steps is not None:
            self._bars.update(self._steps, completed=status.step)

    @contextmanager
    def evaluation(self, name: str, total: int) -> Generator[Callable[[int], None], None, None]:
        """Show an evaluation of `total` samples while it goes. Gives a function to call with the number of new samples.

        Elsewhere than in a terminal there is a line at every quarter.
        """
        bar = self._bars.add_task(name, total=total)
        shown = 0
        count = 0

        def advance(samples: int) -> None:
            nonlocal shown, count
            count += samples
            self._bars.update(bar, completed=count)
            quarter = 4 * count // total
            if self._live is None and quarter > shown:
                self.say(f"{name}: {count}/{total} samples")
            shown = max(shown, quarter)

        try:
            yield advance
        finally:
            self._bars.remove_task(bar)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
