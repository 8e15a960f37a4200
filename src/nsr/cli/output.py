"""What the command line says beside its results."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a message for the user, whatever is in it, on the standard error."""
    from nsr.runs.progress import printable

    print(printable(text).plain, file=sys.stderr)
