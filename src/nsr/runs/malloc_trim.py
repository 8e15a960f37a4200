"""Memory that the C library keeps although nobody uses it."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def trim() -> None:
    """Give free memory back to the system, on Linux with glibc; nothing elsewhere.

    Tensors of many sizes come and go in a step, and small objects that stay between them keep the heap from shrinking:
    without this a training grows by some percent in a few hundred steps, although it holds no more.
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    if not sys.platform.startswith("linux"):
        return lambda _: None
    try:
        return ctypes.CDLL(None).malloc_trim  # of glibc alone
    except (OSError, AttributeError):
        return lambda _: None
