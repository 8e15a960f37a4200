"""Standard output and error that never stop a run: whoever reads them may go away, and the disk behind them be full."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO


class Tolerant(io.TextIOBase):
    """A stream in front of another one. When that fails, the rest is dropped."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream` as long as it takes it."""
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        """Write, or drop, all of it."""
        if not self._gone:
            try:
                self._stream.write(text)
            except UnicodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
            except (OSError, ValueError):  # a closed file is a ValueError
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Hand on what is held back."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""
        return not self._gone and self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor behind it."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding behind it."""
        return self._stream.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Also what is held back, and would be written at the end of the process, has nowhere to go."""
        self._gone = True
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def tolerant_output() -> Generator[None, None, None]:
    """Let nothing that is printed meanwhile stop what goes on here."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tolerant(sys.stdout), Tolerant(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def prepare_output() -> None:
    """Let characters that the terminal's encoding lacks be shown as escapes, and streams that are closed be none.

    A descriptor that is closed from the start would be given to the first file that is opened.
    """
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                if opened != descriptor:
                    os.dup2(opened, descriptor)
                    os.close(opened)
            setattr(sys, name, open(os.devnull, "r" if descriptor == 0 else "w"))  # noqa: PTH123, SIM115  for good
        elif descriptor and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # where another file has taken the descriptor's place
                stream.reconfigure(errors="backslashreplace")
