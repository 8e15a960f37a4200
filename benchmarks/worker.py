"""One contender in a process of its own, which takes its turn when it is told to.

    python -m benchmarks.worker NAME WORK    (WORK: the fields of `benchmarks.work.Work`, as JSON)

It writes one line of JSON for each thing that happens: `{"ready": true, ...}` once it has loaded its model, and for
every line that it is sent, one with what its next repetition took. At the end of its input it ends. While it waits it
computes nothing: `idle_cpu` says what it took nevertheless, in cores.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from benchmarks.work import Work

MEMORY_IS_SHORT = 70.0
"""Percent of the memory in use, of the machine's or of the GPU's."""

Contender = Callable[[Work, "Turns"], None]


@dataclass
class Turns:
    """A worker's side of the talk with the driver."""

    orders: TextIO
    replies: TextIO
    device: str
    before: int = 0
    """Resident bytes before there was a model."""
    _started: float = 0.0
    _started_cpu: float = 0.0
    _waited_cpu: float = 0.0
    _waited: float = field(default=1.0)

    def before_model(self) -> None:
        """Called by the contender when it has imported what it needs and loaded no weights yet."""
        self.before = resident_bytes()["VmRSS"]

    def ready(self) -> None:
        """Called by the contender when it could begin."""
        self.say({"ready": True})

    def begin(self) -> bool:
        """Wait for the driver; False if there is nothing more to do."""
        leave_memory(self._on_cuda)
        start, cpu = time.perf_counter(), cpu_seconds()
        if not self.orders.readline():
            return False
        self._waited, self._waited_cpu = time.perf_counter() - start, cpu_seconds() - cpu
        self._synchronize()
        if self._on_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._started, self._started_cpu = time.perf_counter(), cpu_seconds()
        return True

    def end(self, **measures: float) -> None:
        """Report the repetition that `begin` began: its seconds and its processor time, memory, and `measures`."""
        self._synchronize()
        times = {"seconds": time.perf_counter() - self._started, "cpu": cpu_seconds() - self._started_cpu}
        idle = self._waited_cpu / self._waited if self._waited > 1.0 else 0.0
        memory = {"peak": peak_bytes(), "before": self.before}
        if self._on_cuda:
            import torch

            memory |= {"cuda_peak": torch.cuda.max_memory_allocated()}
        self.say({**times, "idle_cpu": idle, **memory, **measures})

    def say(self, message: dict[str, Any]) -> None:
        """Send a line."""
        print(json.dumps(message), file=self.replies, flush=True)

    @property
    def _on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def _synchronize(self) -> None:
        if self._on_cuda:
            import torch

            torch.cuda.synchronize()


def leave_memory(on_cuda: bool) -> None:
    """Give back what is free, where memory is short: the others need theirs while this one waits.

    Not elsewhere: to take it again costs time.
    """
    import psutil

    from nsr.runs.malloc_trim import trim

    if psutil.virtual_memory().percent > MEMORY_IS_SHORT:
        trim()
    if on_cuda:
        import torch

        free, whole = torch.cuda.mem_get_info()
        if 100 * (1 - free / whole) > MEMORY_IS_SHORT:
            torch.cuda.empty_cache()


def resident_bytes(pid: int | str = "self") -> dict[str, int]:
    """VmRSS and VmHWM of a process in bytes, from Linux; 0 elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    values = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: int(values[name][0]) * 1024 if name in values else 0 for name in ("VmRSS", "VmHWM")}


def peak_bytes() -> int:
    """Most that this process and its children have held, in bytes: the sum of what each held at its most."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return resident_bytes()["VmHWM"] + sum(resident_bytes(child.pid)["VmHWM"] for child in children)


def cpu_seconds() -> float:
    """Processor time of this process and its children that run."""
    import psutil

    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


CONTENDERS: dict[str, tuple[str, str | None]] = {
    "machine": ("benchmarks.machine:measure", None),
    "local": ("benchmarks.ours:sample_local", None),
    "vllm": ("benchmarks.ours:sample_vllm", "vllm"),
    "generate": ("benchmarks.theirs:sample_generate", None),
    "vllm_alone": ("benchmarks.theirs:sample_vllm", "vllm"),
    "learn": ("benchmarks.ours:learn", None),
    "step": ("benchmarks.ours:step", None),
    "step_vllm": ("benchmarks.ours:step_vllm", "vllm"),
    "step_as_in_a_run": ("benchmarks.ours:step_as_in_a_run", None),
    "profile": ("benchmarks.ours:profile", None),
    "trl": ("benchmarks.theirs:step_trl", "trl"),
    "trl_autocast": ("benchmarks.theirs:step_trl_autocast", "trl"),
    "trl_defaults": ("benchmarks.theirs:step_trl_defaults", "trl"),
}
"""Contenders, as module:function, with the package that each needs beside nsr."""


def main(name: str, work: str) -> None:
    """Be the contender `name` until the input ends."""
    given = Work(**json.loads(work))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # what libraries print is no reply
        turns = Turns(sys.stdin, replies, given.device)
        try:
            take_part(name, given, turns)
        except Exception as error:
            turns.say({"error": f"{type(error).__name__}: {error}"[:500]})
            raise


def take_part(name: str, work: Work, turns: Turns) -> None:
    """Let the contender take its turns, if there is what it needs."""
    place, package = CONTENDERS.get(name, (name, None))  # a name that is in no list is a place itself
    if package is not None and importlib.util.find_spec(package) is None:
        turns.say({"missing": package})
        return
    module, _, function = place.partition(":")
    contender: Contender = getattr(import_module(module), function)
    contender(work, turns)


if __name__ == "__main__":
    main(*sys.argv[1:])
