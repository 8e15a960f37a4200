from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from nsr.config import TrainConfig
from nsr.runs import loggers as trackers
from nsr.runs.folder import RunFolder
from nsr.runs.loggers import TensorBoard, Trackers, check_trackers, tracker_makers


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


class Stuck(Recorder):
    """A tracker that hangs where it is told to, until the test lets it go."""

    def __init__(self, where: str, go_on: threading.Event) -> None:
        super().__init__()
        self.where, self.go_on = where, go_on
        self.hang("make")

    def hang(self, where: str) -> None:
        if where == self.where:
            self.go_on.wait(600)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.hang("log")

    def close(self) -> None:
        self.hang("close")


@pytest.mark.parametrize("where", ["make", "log", "close"])
def test_a_tracker_that_hangs_holds_nothing_up(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE_SECONDS", 0.2)
    go_on, good = threading.Event(), Recorder()
    try:
        with Trackers({"stuck": lambda: Stuck(where, go_on), "good": lambda: good}) as both:
            for step in range(5):
                both.log(step, {"loss": 0.5})
            while len(good.logged) < 5:
                time.sleep(0.01)
        assert caplog.text.count("stuck does not work (it has not ended within 0.2 seconds)") == 1
        assert len(caplog.records) == 1
    finally:
        go_on.set()


def test_calls_that_wait_for_a_tracker_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "MOST_WAITING", 3)
    go_on = threading.Event()
    try:
        with Trackers({"stuck": lambda: Stuck("make", go_on)}) as one:
            for step in range(50):
                one.log(step, {"loss": 0.5})
        assert [record.message for record in caplog.records] == [
            "stuck does not work (3 calls wait for it); the run goes on without it."
        ]
    finally:
        go_on.set()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nsr.runs.loggers import TensorBoard, Trackers
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))  # a write beyond it fails, as on a full disk
with Trackers({"tensorboard": lambda: TensorBoard(Path(sys.argv[1]))}) as trackers:
    for step in range(300):
        trackers.log(step, {"loss": 0.5, "entropy": 0.25})
print("it went on")
"""


def test_a_full_disk_under_tensorboard_stops_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "it went on\n", done.stderr
    assert done.returncode == 0
    assert done.stderr.count("tensorboard does not work (OSError: [Errno 27] File too large") == 1
    assert "Traceback" not in done.stderr


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


def training(tmp_path: Path, log_to: str) -> TrainConfig:
    return TrainConfig(output_dir=str(tmp_path), exp_name="mine", log_to=log_to)


@pytest.mark.parametrize("log_to", ["tensorbord", "tensorboard, wandb", "wandb,wandb", "", "none,wandb"])
def test_names_that_are_not_known(log_to: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--log_to is .* but must be none, or some of tensorboard, trackio, wandb"):
        training(tmp_path, log_to)


def test_what_is_asked_for_is_made(tmp_path: Path) -> None:
    for log_to, names in (("none", []), ("tensorboard", ["tensorboard"]), ("wandb,trackio", ["wandb", "trackio"])):
        config = training(tmp_path / log_to, log_to)
        with RunFolder.open(config, environment={}) as folder:
            assert list(tracker_makers(config, folder, 0)) == names


FAKE = """
import json, pathlib
class Settings:
    def __init__(self, **settings): pass
class Run:
    def __init__(self, settings): self.settings, self.logged, self.finished = settings, [], False
    def log(self, values, step): self.logged.append((step, values))
    def finish(self): self.finished = True
runs = []
def init(**settings):
    json.dumps(settings["config"])
    settings.pop("settings", None)
    runs.append(Run(settings))
    return runs[-1]
"""


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_others_get_the_run_and_its_values(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{name}.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    config = training(tmp_path / "output", name)
    check_trackers(config)
    for resumed_at in (0, 2):
        with (
            RunFolder.open(dataclasses.replace(config, resume=True), environment={}) as folder,
            Trackers(tracker_makers(config, folder, resumed_at)) as trackers,
        ):
            trackers.log(resumed_at + 1, {"loss": 0.5})
    module = sys.modules.pop(name)
    first, second = module.runs
    assert (first.logged, second.logged) == ([(1, {"loss": 0.5})], [(3, {"loss": 0.5})])
    assert first.finished and second.finished
    assert (first.settings["project"], first.settings["name"]) == ("nsr", "mine")
    assert first.settings["config"]["n_train_steps"] == 200
    assert first.settings["resume"] == {"trackio": "never", "wandb": None}[name]
    assert second.settings["resume"] == "allow"
    if name == "wandb":  # the same run again, and another folder's is another
        assert first.settings["id"] == second.settings["id"]
        assert first.settings["dir"] == str(tmp_path / "output" / "mine")


def test_one_that_is_not_installed_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsr.training.loop import train

    find = importlib.util.find_spec
    there = {"wandb": find("json"), "trackio": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there[name] if name in there else find(name))
    config = dataclasses.replace(training(tmp_path / "output", "wandb,trackio"), device="cpu")
    with pytest.raises(ValueError, match=r"--log_to names trackio, .*: install it with `pip install trackio`"):
        train(config)
    assert list(tmp_path.iterdir()) == []


REAL = """
import dataclasses, sys
from nsr.config import TrainConfig
from nsr.runs.folder import RunFolder
from nsr.runs.loggers import Trackers, check_trackers, tracker_makers
config = TrainConfig(output_dir=sys.argv[1], exp_name="mine", log_to="trackio,wandb", resume=True)
check_trackers(config)
for done in (0, 2):
    with RunFolder.open(config, environment={}) as folder, Trackers(tracker_makers(config, folder, done)) as trackers:
        for step in (done + 1, done + 2):
            trackers.log(step, {"loss": step / 4})
            trackers.log(step, {"evaluation/pass@1": 0.5})
"""


@pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None or importlib.util.find_spec("wandb") is None,
    reason="needs the extra `trackers`",
)
def test_the_real_libraries_take_it_without_a_network(tmp_path: Path) -> None:
    environment = os.environ | {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path / "output")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "does not work" not in done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "nsr.db")) as base:
        rows = base.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({run_id for run_id, _, _ in rows}) == 1
    losses = {step: json.loads(values)["loss"] for _, step, values in rows if "loss" in json.loads(values)}
    assert losses == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    files = sorted((tmp_path / "output" / "mine" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    assert all(b"evaluation/pass@1" in file.read_bytes() for file in files)
