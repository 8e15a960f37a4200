"""Checkpoints: whole or not there, the newest whole one is found, and the optimizer goes on bit for bit."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from nsr.memory.estimate import ModelShape, Setup
from nsr.memory.preflight import checkpoint_bytes
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer
from nsr.models.registry import load_policy
from nsr.runs.checkpoints import fault, newest_checkpoint
from nsr.runs.files import CannotWrite
from nsr.training.checkpoint import load_optimizer, save_checkpoint, seed_everything
from nsr.training.optimizer import PolicyOptimizer, build_optimizer

TOKENIZER = build_tiny_tokenizer()


def small_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build_tiny_model(len(TOKENIZER), TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    for weight in model.parameters():  # buffers stay in float32, as in a model that is loaded
        weight.data = weight.data.to(dtype)
    return model


def take_step(model: PreTrainedModel, optimizer: PolicyOptimizer, seed: int) -> None:
    tokens = torch.randint(0, 100, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_going_on_from_a_checkpoint_is_bit_identical(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model(dtype)
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    take_step(model, optimizer, 1)
    save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=1)
    drawn = torch.rand(3)
    take_step(model, optimizer, 2)

    found = newest_checkpoint(tmp_path)
    assert found == (1, tmp_path / "step_000001")
    resumed = load_policy(str(found[1]), device="cpu", dtype=dtype).model
    resumed_optimizer = build_optimizer(resumed, lr=1e-3, kind="adamw")
    load_optimizer(found[1], resumed_optimizer)
    assert torch.equal(torch.rand(3), drawn)
    take_step(resumed, resumed_optimizer, 2)
    for weight, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_as_large_as_is_said(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model(dtype)
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    take_step(model, optimizer, 1)
    path = save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=1)
    files = sum((path / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    setup = Setup(
        shape=ModelShape.from_config(model.config),
        weight_bytes=dtype.itemsize,
        prompt_tokens=1,
        sampling_batch=0,
        on_cpu=True,
    )
    assert files == pytest.approx(checkpoint_bytes(setup, "adamw"), rel=0.01)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, model, TOKENIZER, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000015"]


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    accuracies = {0: 0.9, 2: 0.3, 4: 0.5, 5: 0.9, 6: 0.5, 8: 0.1}  # of 0 and 5 there is no checkpoint
    kept: list[list[int]] = []
    for step in (2, 4, 6, 8):
        known = {at: value for at, value in accuracies.items() if at <= step}
        save_checkpoint(tmp_path, step, model, TOKENIZER, optimizer, keep=1, accuracies=known)
        kept.append([int(path.name[-1]) for path in sorted(tmp_path.iterdir())])
    # Of two that are as good the earlier is the best.
    assert kept == [[2], [4], [4, 6], [4, 8]]


def test_a_broken_later_one_does_not_push_out_what_was_just_saved(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    for step in (4, 6):
        save_checkpoint(tmp_path, step, model, TOKENIZER, optimizer, keep=2)
    (tmp_path / "step_000006" / "manifest.json").unlink()
    # The run goes on from step 4, which says nothing of the folder of step 6 until step 5 is saved.
    save_checkpoint(tmp_path, 5, model, TOKENIZER, optimizer, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    for name in ("step_000003.unfinished", "step_000001.old.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, 2, model, TOKENIZER, optimizer, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_too_little_room_is_told_before_the_weights_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    take_step(model, optimizer, 1)
    before = save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=1)
    # Weights and two moments in float32, and something for what is beside them.
    tensors = 12 * sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr(model, "save_pretrained", lambda _: pytest.fail("it was begun"))
    usage = type("Usage", (), {"free": tensors})
    monkeypatch.setattr("nsr.training.checkpoint.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        CannotWrite, match=r"step_000002 could not be written \(it needs 50\.\d MB.*are free\): make room"
    ):
        save_checkpoint(tmp_path, 2, model, TOKENIZER, optimizer, keep=1)
    assert list(tmp_path.iterdir()) == [before]
    assert fault(before) is None


def test_a_manifest_that_names_nothing_is_no_whole_checkpoint(tmp_path: Path) -> None:
    model = small_model()
    path = save_checkpoint(tmp_path, 1, model, TOKENIZER, build_optimizer(model, lr=1e-3, kind="adamw"), keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {"state.json", "optimizer.pt", "model.safetensors", "tokenizer.json", "config.json"} <= manifest.keys()
    (path / "manifest.json").write_text("{}")
    assert fault(path) == "its manifest.json names no file"
    state = manifest.pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert fault(path) == "its manifest.json does not name state.json"
    manifest["state.json"] = state
    path.rename(tmp_path / "step_000007")
    (tmp_path / "step_000007" / "manifest.json").write_text(json.dumps(manifest))
    assert fault(tmp_path / "step_000007") == "its state.json is of step 1"


def draw() -> list[float]:
    return [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002


def test_the_global_random_generators_go_on(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    seed_everything(5)
    path = save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=1)
    drawn = draw()
    seed_everything(6)
    load_optimizer(path, optimizer)
    assert draw() == drawn


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_broken_newer_checkpoint_is_named_and_passed_over(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=2)
    broken = save_checkpoint(tmp_path, 2, model, TOKENIZER, optimizer, keep=2)
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[:-1])
    elif damage == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        (broken / "optimizer.pt").unlink()
    else:
        (broken / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == (1, tmp_path / "step_000001")
    assert "step_000002" in caplog.text


def test_what_was_left_unfinished_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step_000003.unfinished").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
