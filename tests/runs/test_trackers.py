from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from nsr.runs.trackers import TensorBoard, Trackers


class Recorder:
    """A tracker that notes what it gets, and fails from a step on."""

    def __init__(self, fails_from: int = 1000) -> None:
        self.logged: dict[int, dict[str, float]] = {}
        self.closed = False
        self.fails_from = fails_from

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.fails_from:
            raise OSError("no space left")
        self.logged[step] = dict(values)

    def close(self) -> None:
        if self.fails_from == 0:
            raise OSError("no space left")
        self.closed = True


def test_a_failing_tracker_warns_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Recorder(), Recorder(fails_from=2)
    with Trackers({"bad": lambda: bad, "good": lambda: good}) as trackers:
        for step in range(1, 5):
            trackers.log(step, {"loss": 0.5})
    assert good.logged == {step: {"loss": 0.5} for step in (1, 2, 3, 4)}
    assert good.closed
    assert list(bad.logged) == [1]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "bad does not work (OSError: no space left)" in caplog.text


def test_a_tracker_that_cannot_start_or_end_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> Recorder:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    good = Recorder()
    with Trackers({"first": missing, "last": lambda: Recorder(fails_from=0), "good": lambda: good}):
        pass
    assert good.closed
    assert len(caplog.records) == 2


def events(folder: Path) -> dict[int, float]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder))
    reader.Reload()
    return {event.step: event.value for event in reader.Scalars("loss")}


def test_tensorboard_holds_the_values_and_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    with Trackers({"TensorBoard": lambda: TensorBoard(tmp_path)}) as trackers:
        for step in (1, 2, 3):
            trackers.log(step, {"loss": step / 4})
    assert events(tmp_path) == {1: 0.25, 2: 0.5, 3: 0.75}
    with Trackers({"TensorBoard": lambda: TensorBoard(tmp_path, resumed_at=1)}) as trackers:
        trackers.log(2, {"loss": 1.0})
    assert events(tmp_path) == {1: 0.25, 2: 1.0}
