"""Trackers: metrics sent elsewhere than to the run's files, for looking at. A tracker that fails never stops a run."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from nsr.config import TrainConfig, to_record
from nsr.runs.folder import RunFolder

PROJECT = "nsr"

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

        purge_step = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar a value, tagged with its name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


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
            raise ValueError(
                f"--log_to names {name}, which is not installed: install it with `pip install {name}`, or leave it out."
            )


def tracker_makers(config: TrainConfig, folder: RunFolder, resumed_at: int) -> dict[str, Callable[[], Tracker]]:
    """What makes each tracker of --log_to, for `Trackers`; `resumed_at` is the step that the run goes on after."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": functools.partial(TensorBoard, folder.tensorboard, resumed_at),
        "trackio": functools.partial(Trackio, config, resumed_at),
        "wandb": functools.partial(WandB, config, resumed_at),
    }
    return {name: makers[name] for name in config.trackers}


class Trackers:
    """Any number of trackers. One that fails is dropped with one warning, and the run goes on. A context manager."""

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]]) -> None:
        """Make the trackers; `makers` holds a function for each, by the name that the warning uses."""
        self._trackers: dict[str, Tracker] = {}
        for name, make in makers.items():
            try:
                self._trackers[name] = make()
            except Exception as error:  # noqa: BLE001  whatever a tracker raises
                _warn(name, error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step in each tracker."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, values)
            except Exception as error:  # noqa: BLE001  whatever a tracker raises
                del self._trackers[name]
                _warn(name, error)

    def __enter__(self) -> Trackers:
        """The trackers themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close each tracker."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            try:
                tracker.close()
            except Exception as failure:  # noqa: BLE001  whatever a tracker raises
                _warn(name, failure)


def _warn(name: str, error: Exception) -> None:
    _LOGGER.warning("%s does not work (%s: %s); the run goes on without it.", name, type(error).__name__, error)
