"""Trackers: metrics sent elsewhere than to the run's files, for looking at. A tracker that fails never stops a run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from nsr.config import TrainConfig, to_record
from nsr.errors import UserError
from nsr.runs.folder import RunFolder
from nsr.runs.progress import printable

PROJECT = "nsr"

MOST_WAITING = 1000
"""Calls that may wait for a slow tracker."""
PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for its trackers, all together."""

_LOGGER = logging.getLogger(__name__)


class Tracker(Protocol):
    """Somewhere that shows metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        """Write into `folder`; events after the step `resumed_at`, of a run that is taken up there, are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        _hush_its_thread()
        purge_step = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar a value, tagged with its name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


@functools.cache
def _hush_its_thread() -> None:
    """TensorBoard's own thread prints a traceback when it cannot write, beside raising it again at the next call."""
    others = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            others(failure)

    threading.excepthook = hook


class Trackio:
    """A run of the project `nsr` in Trackio, which keeps it on this machine: `trackio show --project nsr`."""

    def __init__(self, config: TrainConfig, resumed_at: int) -> None:
        """Start a run, or go on with the newest one of that name where the run goes on after a step."""
        trackio: Any = importlib.import_module("trackio")
        self._run: Any = trackio.init(
            project=PROJECT, name=config.run_name, config=to_record(config), resume="allow" if resumed_at else "never"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is stored."""
        self._run.finish()


class WandB:
    """A run of the project `nsr` in Weights & Biases; its local files lie in the run's folder."""

    def __init__(self, config: TrainConfig, resumed_at: int) -> None:
        """Start a run, or go on with the run of this folder where the run goes on after a step.

        Steps that are made again after that have the same values: those that it has already, it leaves out.
        """
        wandb: Any = importlib.import_module("wandb")
        folder = config.run_path.absolute()
        self._run: Any = wandb.init(
            project=PROJECT,
            name=config.run_name,
            id=hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest(),
            resume="allow" if resumed_at else None,
            config=to_record(config),
            dir=str(folder),
            settings=wandb.Settings(console="off"),  # what the run prints is its own
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is sent, or written where there is no network (WANDB_MODE=offline)."""
        self._run.finish()


def check_trackers(config: TrainConfig) -> None:
    """Raise ValueError where a tracker of --log_to is not installed. Imports none of them."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--log_to names {name}, which is not installed: install it with `pip install {name}`, or leave it out."
            )


def tracker_makers(config: TrainConfig, folder: RunFolder, resumed_at: int) -> dict[str, Callable[[], Tracker]]:
    """What makes each tracker of --log_to, for `Trackers`; `resumed_at` is the step that the run goes on after."""
    if "tensorboard" in config.trackers:
        with contextlib.suppress(Exception):  # here, since on a busy machine it takes long; what is wrong shows later
            importlib.import_module("torch.utils.tensorboard")
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": functools.partial(TensorBoard, folder.tensorboard, resumed_at),
        "trackio": functools.partial(Trackio, config, resumed_at),
        "wandb": functools.partial(WandB, config, resumed_at),
    }
    return {name: makers[name] for name in config.trackers}


class Trackers:
    """Any number of trackers. One that fails is dropped with one warning, and the run goes on. A context manager.

    Each lives in a thread of its own, from its making to its end, so that one that hangs (a server that does not
    answer, a disk that is gone) does not hold the run up: up to `MOST_WAITING` calls wait for it, and at the end of the
    run it has `PATIENCE_SECONDS`. What it keeps is its own: the run's files are complete in any case.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]]) -> None:
        """Start making the trackers; `makers` holds a function for each, by the name that the warning uses."""
        self._workers = [_Worker(name, make) for name, make in makers.items()]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Have the values of a step shown in each tracker, soon."""
        for worker in self._workers:
            worker.log(step, dict(values))

    def __enter__(self) -> Trackers:
        """The trackers themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close each tracker, and wait for that a while."""
        for worker in self._workers:
            worker.end()
        end = time.monotonic() + PATIENCE_SECONDS
        for worker in self._workers:
            worker.wait(max(0.0, end - time.monotonic()))


class _Worker:
    """A tracker in its thread."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._make = make
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MOST_WAITING)
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._dropped:
            return
        try:
            self._waiting.put_nowait((step, values))
        except queue.Full:
            self._drop(f"{MOST_WAITING} calls wait for it")

    def end(self) -> None:
        """No more calls come."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    def wait(self, seconds: float) -> None:
        """Wait for the tracker's end."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._drop(f"it has not ended within {PATIENCE_SECONDS:g} seconds")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (call := self._waiting.get()) is not None:
                tracker.log(*call)
            tracker.close()
        except Exception as error:  # noqa: BLE001  whatever a tracker raises
            self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            _LOGGER.warning("%s does not work (%s); the run goes on without it.", self._name, printable(why).plain)
