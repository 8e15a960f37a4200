"""What the machine can do at best: matrix products and copies, in float32 and bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.work import Work
from benchmarks.worker import Turns

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Rows and columns of the square matrices that are multiplied: the quickest counts."""
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes of what is copied: far more than a cache holds."""
SECONDS = 0.3
"""How long each is repeated; the quickest repetition counts."""


def measure(work: Work, turns: Turns) -> None:
    """Each turn measures them all anew."""
    turns.before_model()
    turns.ready()
    while turns.begin():
        turns.end(**measures(work.device))


def measures(device: str) -> dict[str, float]:
    """matmul_TYPE: operations a second, two for each multiplied pair. copy_TYPE: bytes a second, read and written."""
    found: dict[str, float] = {}
    kind = device.split(":", maxsplit=1)[0]
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[f"matmul_{name}"] = max(peak_of_product(size, dtype, device) for size in SIZES[kind])
        source = torch.ones(COPIED[kind] // dtype.itemsize, dtype=dtype, device=device)
        target = torch.empty_like(source)
        seconds = quickest(lambda s=source, t=target: t.copy_(s), device)
        found[f"copy_{name}"] = 2 * COPIED[kind] / seconds
    return found


def peak_of_product(size: int, dtype: torch.dtype, device: str) -> float:
    """Operations a second of a product of two square matrices, by the quicker of torch's libraries."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ways: list[Callable[[], Tensor]] = [lambda: left @ right.t()]
    if device == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))  # noqa: SLF001
    return 2 * size**3 / min(quickest(way, device) for way in ways)


def quickest(function: Callable[[], object], device: str) -> float:
    """Seconds of the quickest of many calls."""
    function()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
