"""Memory that is free goes back to the system."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from nsr.runs.malloc_trim import trim


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is nothing to trim elsewhere")
def test_what_is_free_between_what_is_held_goes_back() -> None:
    process = psutil.Process()
    blocks = [np.ones(30_000, dtype=np.uint8) for _ in range(4000)]  # small enough for the heap, 120 MB
    held = blocks[::40]
    full = process.memory_info().rss
    del blocks
    trim()
    assert process.memory_info().rss < full - 60_000_000
    assert all(block[0] == 1 for block in held)
