"""What tells a run to end: ctrl-C, SIGTERM (a scheduler) and SIGHUP (a terminal that goes away).

The first one ends the run where it can be ended: at once while nothing would be lost, else after the step that is under
way. A second one ends it at once. A signal that is ignored where the run starts, as by `nohup`, stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = "\x1b[?25h"  # a live bar hides it, and the second signal leaves no time to undo that


class Interrupted(KeyboardInterrupt):
    """The run was told to end, and has ended in order. Its text says what is saved."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.number = number
        """The signal that told it."""

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended: 130 for ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class StopSignals:
    """Takes the signals while it is entered, in the main thread. By default the first raises `Interrupted` at once."""

    def __init__(self) -> None:
        """Nothing is changed before it is entered."""
        self.requested: int | None = None
        """The signal that came, if one came."""
        self._holding = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Start taking them."""
        if threading.current_thread() is threading.main_thread():
            for number in _TOLD:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was there."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def hold(self) -> Generator[None, None, None]:
        """In here a signal is only noted, in `requested`: whoever holds it ends the run at the next good place."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    @contextmanager
    def release(self) -> Generator[None, None, None]:
        """Inside, a signal raises `Interrupted` at once, also one that came before. Afterwards all is as it was."""
        held, self._holding = self._holding, False
        try:
            if self.requested is not None:
                raise Interrupted(self.requested)
            yield
        finally:
            self._holding = held

    def _note(self, number: int, _: FrameType | None) -> None:
        self.requested = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)  # a second one ends the process, whatever it is doing
        if not self._holding:
            raise Interrupted(number)
        name = signal.Signals(number).name
        _tell(f"{name}: the step under way is finished and saved, then the run ends. A second signal ends it at once.")


def _tell(text: str) -> None:
    """Write past Python's streams, which may be in use where the signal came."""
    cursor = _SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError):  # nobody reads it
        os.write(2, f"{cursor}\n{text}\n".encode())
