"""Runs as processes: what each gets of the machine, how it is told to end, and what its log says."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from nsr.config import RunConfig
from nsr.runs.environment import cores
from nsr.runs.progress import printable
from nsr.suite.lists import to_words

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
GPUS = "CUDA_VISIBLE_DEVICES"

_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = tuple(128 + number for number in _TOLD)
"""Exit codes of a run that was told to end, and saved its last step."""
_LOG_BYTES, _LOG_LINES, _LINE_LENGTH = 8192, 6, 400


@dataclass(kw_only=True)
class Job:
    """A run that is under way in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Where in the log this start begins: earlier ones stand before it."""
    started: float = field(default_factory=time.monotonic)
    told: int = -1
    """The last of the signals to end that it was sent, by its place among them."""

    @classmethod
    def start(cls, run: RunConfig, log: Path, environment: Mapping[str, str]) -> Job:
        """Start a run. Its output is appended to `log`; ctrl-C in the terminal does not reach it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(['nsr', *to_words(run)])}\n".encode())
            file.flush()
            process = subprocess.Popen(
                command(run),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            return cls(process=process, log=log, log_start=file.tell())

    @property
    def seconds(self) -> float:
        """How long it has been going."""
        return time.monotonic() - self.started

    def tell(self, level: int) -> None:
        """Tell it to end: in its own time at level 0, now at level 1, and without asking at level 2. Once a level."""
        while self.told < level:
            self.told += 1
            try:
                os.killpg(self.process.pid, _signals()[self.told])
            except ProcessLookupError:
                return

    def last_words(self) -> list[str]:
        """The last lines that it wrote, safe to show: from its own sentence on, where it ended with one."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_start, size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        shown = [printable(line).plain[:_LINE_LENGTH] for line in lines if line.strip()][-_LOG_LINES:]
        sentences = [index for index, line in enumerate(shown) if line.startswith("error: ")]
        return shown[sentences[-1] :] if sentences else shown


def command(run: RunConfig) -> list[str]:
    """What starts a run."""
    return [sys.executable, "-m", "nsr", *to_words(run)]


def ending(code: int) -> str:
    """An exit code in words: "exit code 2", "ended by SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def environment(base: Mapping[str, str], *, slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of the run in a slot, 0 to `jobs` - 1.

    Several jobs divide the threads of this process evenly, at least one each, and take the GPUs in turn.
    """
    # A log is no terminal, whatever this one may be taken for.
    result = {name: value for name, value in base.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    result["PYTHONUNBUFFERED"] = "1"
    if jobs > 1:
        share = str(max(1, _threads(base) // jobs))
        result |= dict.fromkeys(THREADS, share)
        if len(gpus) > 1:
            result[GPUS] = gpus[slot % len(gpus)]
    return result


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Imports torch."""
    import torch

    named = os.environ.get(GPUS)
    if named:
        return [name.strip() for name in named.split(",")][: torch.cuda.device_count()]
    return [str(index) for index in range(torch.cuda.device_count())]


class Interruption:
    """Counts ctrl-C, SIGTERM and SIGHUP while it is entered, in place of what they do. What is ignored stays so."""

    def __init__(self) -> None:
        """Nothing is changed before it is entered."""
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Start counting."""
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

    def _note(self, *_: object) -> None:
        self.count += 1


def _signals() -> tuple[int, ...]:
    """What tells a run to end, the politest first. Where ctrl-C is ignored here, its processes inherit that."""
    polite = signal.SIGTERM if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else signal.SIGINT
    return polite, signal.SIGTERM, signal.SIGKILL


def _threads(base: Mapping[str, str]) -> int:
    given = base.get(THREADS[0], "")
    return int(given) if given.isdecimal() and int(given) > 0 else cores()
