"""Runs that meet a fault: what is written, what is said, and how they go on."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from micro_model import micro_config, save_micro_model
from safetensors import safe_open
from safetensors.torch import load_file

from nsr.cli import main
from nsr.config import TrainConfig
from nsr.report.status import read_status
from nsr.runs.checkpoints import newest_checkpoint
from nsr.runs.folder import is_complete, read_events, read_metrics
from nsr.suite.lists import to_words
from nsr.training import step as update_module
from nsr.training.collapse import CollapsedRun
from nsr.training.loop import train
from nsr.training.spikes import NonFiniteUpdate

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_model(tmp_path_factory.mktemp("model"))


def files(path: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "mechanism.jsonl", "model/model.safetensors", "evaluations/step_000004.json")
    return {name: (path / name).read_bytes() for name in names}


def test_a_loss_that_is_not_finite_stops_before_the_step_and_the_run_can_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(micro_config(model, tmp_path / "whole"))
    config = micro_config(model, tmp_path / "cut")
    real, calls = update_module.clipped_surrogate, []

    def nan_in_step_3(*arguments: object) -> object:
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) > 4 else 1.0)  # type: ignore[arg-type]  two parts a step

    monkeypatch.setattr(update_module, "clipped_surrogate", nan_in_step_3)
    with pytest.raises(NonFiniteUpdate) as stopped:
        train(config)
    monkeypatch.undo()
    path = config.run_path
    batch = path / "faults" / "step_000003.safetensors"
    text = str(stopped.value)
    assert text.startswith("step 3 was not taken. The loss is nan and the gradient norm nan. Its batch is in ")
    assert str(batch) in text
    assert "The checkpoint of step 2 is as it was." in text
    assert "--lr (it is 0.001)" in text
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    assert newest_checkpoint(path / "checkpoints") == (2, path / "checkpoints" / "step_000002")
    shown = run_documented_lines(batch)
    assert "NaN" not in shown["about"]
    about = json.loads(shown["about"])
    assert (about["step"], about["loss"], about["grad_norm"]) == (3, "nan", "nan")
    assert len(shown["tensors"]["weights"]) == 16
    assert shown["tensors"]["policy_log_probs"].isfinite().all()
    train(dataclasses.replace(config, resume=True))
    assert files(path) == files(whole)


def run_documented_lines(batch: Path) -> dict[str, object]:
    """What docs/reliability.md says of how to look at a batch, run as it stands there."""
    (block,) = [part for part in DOCUMENT.read_text("utf-8").split("```python\n")[1:] if "safe_open" in part]
    code = block.partition("```")[0]
    assert 'PATH = "output/NSR_256/faults/step_000012.safetensors"' in code
    names: dict[str, object] = {}
    exec(code.replace("output/NSR_256/faults/step_000012.safetensors", str(batch)), names)
    with safe_open(batch, "pt") as file:
        about = file.metadata()["about"]  # the text: `names` has what is in it
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    return {**names, "about": about, "tensors": tensors}


def test_the_command_ends_in_a_sentence(model: Path, tmp_path: Path) -> None:
    """At a learning rate of 1 the first step would be larger than the model. A real process, as a user starts it."""
    config = micro_config(model, tmp_path, lr=1.0)
    done = subprocess.run([sys.executable, "-m", "nsr", *to_words(config)], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 1 was not taken. The optimizer's step has the norm ")
    assert "There is no checkpoint yet." in line
    assert "Traceback" not in done.stderr
    assert (config.run_path / "faults" / "step_000001.safetensors").exists()
    assert not (config.run_path / "metrics.jsonl").exists()


COLLAPSING = {"lr": 0.16, "n_train_steps": 12, "save_every": 4, "keep": 1}
"""At this rate the entropy of this model is halved within about 9 steps."""


def test_a_collapse_is_told_and_stops_where_that_is_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = micro_config(model, tmp_path / "stopped", stop_on_collapse=True, **COLLAPSING)
    with pytest.raises(CollapsedRun) as ended:
        train(config)
    path = config.run_path
    collapse, stopped = read_events(path)
    fired = collapse["step"]  # a step sooner or later by rounding, which differs between machines
    assert 7 <= fired <= 11
    message = rf"ended it after step {fired}: entropy .* --resume and without --stop_on_coll"
    assert re.search(message, str(ended.value))
    assert (collapse["event"], collapse["kind"]) == ("collapse", "entropy")
    assert stopped == {"step": fired, "event": "stopped", "reason": collapse["reason"]}
    assert capsys.readouterr().out.count(f"! collapse at step {fired}: entropy ") == 1
    assert len(read_metrics(path)) == fired
    assert not is_complete(path)
    # The checkpoint of the end, and the one before it, which may be the better one.
    before = (fired - 1) // 2 * 2
    kept = [one.name for one in sorted((path / "checkpoints").iterdir())]
    assert kept == [f"step_{step:06d}" for step in (before, fired)]
    status = read_status(path)
    assert status is not None
    assert (status.state, status.step) == ("collapsed", fired)
    assert status.warning == f"collapse at step {fired}: {collapse['reason']}"

    # With the flag it has nothing to do but to say so again.
    assert main([*to_words(config), "--resume"]) == 3
    assert "error: the run has collapsed" in capsys.readouterr().err
    assert read_events(path) == [collapse, stopped]
    # Without it, it goes on, and is what it would have been.
    go_on = dataclasses.replace(config, stop_on_collapse=False, resume=True)
    train(go_on)
    assert is_complete(path, 12)
    warned = train(micro_config(model, tmp_path / "warned", **COLLAPSING))
    names = ("metrics.jsonl", "model/model.safetensors")
    assert [(path / name).read_bytes() for name in names] == [(warned / name).read_bytes() for name in names]
    assert read_events(warned) == [event for event in read_events(path) if event["event"] == "collapse"]
    found = read_status(path)
    assert found is not None
    assert found.state == "complete"


def test_a_collapse_that_is_made_again_is_told_once(model: Path, tmp_path: Path) -> None:
    """A run killed after the warning and before the next checkpoint goes on from before it."""
    whole = train(micro_config(model, tmp_path / "whole", **COLLAPSING))
    config = micro_config(model, tmp_path / "cut", **{**COLLAPSING, "keep": 9})
    cut = train(config)
    for name in ("done.json", "checkpoints/step_000012/manifest.json"):
        (cut / name).unlink()
    train(dataclasses.replace(config, resume=True))
    assert (cut / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()


def test_updates_without_signal_are_counted_and_told_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: TrainConfig = micro_config(model, tmp_path, objective="PSR", eval_puzzles=2)  # noise is never right
    assert main(to_words(config)) == 0
    out = capsys.readouterr().out
    assert out.count("no sample has a weight under PSR") == 1
    assert "! 4 of 4 steps had updates without signal, 4 in all" in out
    assert [record["updates_without_signal"] for record in read_metrics(config.run_path)] == [1.0] * 4
    before, after = (load_file(folder / "model.safetensors") for folder in (model, config.run_path / "model"))
    assert all((before[name] == after[name]).all() for name in before)
