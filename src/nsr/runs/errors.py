"""A run that ends before its last step for a reason of its own."""

from __future__ import annotations

from typing import ClassVar


class StoppedRun(RuntimeError):
    """A run has ended before its last step. The message is for the user: what happened, and what to do."""

    status: ClassVar[int] = 1
    """Exit code of the command."""
