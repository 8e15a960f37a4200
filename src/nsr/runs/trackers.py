"""Trackers: metrics sent elsewhere than to the run's files, for looking at. A tracker that fails never stops a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

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
