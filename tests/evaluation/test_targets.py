from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from nsr.config import BaselineConfig, TrainConfig
from nsr.evaluation.targets import find_target, target_names
from nsr.runs.checkpoints import digest
from nsr.runs.folder import RunFolder


def write_checkpoint(run: Path, step: int) -> Path:
    path = run / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "qwen3"}')
    (path / "state.json").write_text(json.dumps({"step": step}))
    files = {
        name: {"bytes": (path / name).stat().st_size, "sha256": digest(path / name)}
        for name in ("config.json", "state.json")
    }
    (path / "manifest.json").write_text(json.dumps(files))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run after step 20, with two checkpoints."""
    config = TrainConfig(output_dir=str(tmp_path), objective="PSR", exp_name="psr", seed=3)
    RunFolder.open(config, environment={}).close()
    for step in (10, 20):
        write_checkpoint(config.run_path, step)
    return config.run_path


def test_a_hub_id_and_a_model_folder_are_as_given(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    for given in ("tiny", "Qwen/Qwen3-1.7B", str(tmp_path), "./nowhere"):
        target = find_target(given)
        assert (target.given, target.model_id, target.step, target.training) == (given, given, 0, {})


def test_of_a_run_under_way_the_newest_whole_checkpoint(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = find_target(str(run))
    assert (target.model_id, target.step) == (str(run / "checkpoints" / "step_000020"), 20)
    assert (target.training["objective"], target.training["seed"]) == ("PSR", 3)
    (run / "checkpoints" / "step_000020" / "config.json").write_text("{}")
    assert find_target(str(run)).step == 10
    assert "step_000020" in caplog.text
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="neither a final model nor a whole checkpoint yet"):
        find_target(str(run))


def test_of_a_complete_run_its_final_model(run: Path) -> None:
    (run / "model").mkdir()
    assert find_target(str(run)).step == 20  # not complete yet: that model may be of an earlier end
    (run / "done.json").write_text('{"step": 30}')
    target = find_target(str(run))
    assert (target.model_id, target.step, target.training["objective"]) == (str(run / "model"), 30, "PSR")


def test_a_checkpoint(run: Path) -> None:
    path = run / "checkpoints" / "step_000010"
    target = find_target(str(path))
    assert (target.model_id, target.step, target.training["objective"]) == (str(path), 10, "PSR")
    moved = shutil.move(path, run.parent / "kept")
    assert (find_target(moved).step, find_target(moved).training) == (10, {})
    (Path(moved) / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is broken \(config.json has 2 bytes"):
        find_target(moved)


def test_a_run_that_trained_nothing_names_its_model(tmp_path: Path) -> None:
    config = BaselineConfig(output_dir=str(tmp_path), model_id="tiny")
    RunFolder.open(config, environment={}).close()
    with pytest.raises(ValueError, match="trained no model, it measured 'tiny'"):
        find_target(str(config.run_path))


def test_names_are_short_different_and_fit_for_a_folder(run: Path, tmp_path: Path) -> None:
    def names(*given: str) -> list[str]:
        return target_names([find_target(one) for one in given])

    assert names("tiny", "Qwen/Qwen3-1.7B", str(run)) == ["tiny", "Qwen3-1.7B", "psr"]
    steps = [str(run / "checkpoints" / f"step_{step:06d}") for step in (10, 20)]
    assert names(*steps) == ["psr-step_000010", "psr-step_000020"]
    other = TrainConfig(output_dir=str(tmp_path / "other"), exp_name="psr")
    RunFolder.open(other, environment={}).close()
    write_checkpoint(other.run_path, 1)
    assert names(str(run), str(other.run_path)) == [f"{tmp_path.name}-psr", "other-psr"]
    assert names("a/model", "b/model") == ["a-model", "b-model"]
    assert names("../x y*z") == ["x-y-z"]
    assert names("a" * 200) == ["a" * 80]
    for name in names("tiny", str(run), *steps, "..", "-x", "a" * 200):
        dataclasses.replace(BaselineConfig(), exp_name=f"{name}_T0.7")
