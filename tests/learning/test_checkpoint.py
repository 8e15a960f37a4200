"""Checkpoints: whole or not there, the newest whole one is found, and the optimizer goes on bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nsr.learning.checkpoint import load_optimizer, save_checkpoint
from nsr.learning.optimizer import PolicyOptimizer, build_optimizer
from nsr.models.catalog import load_policy
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer
from nsr.runs.checkpoints import newest_checkpoint

TOKENIZER = build_tiny_tokenizer()


def small_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return build_tiny_model(len(TOKENIZER), TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)


def take_step(model: PreTrainedModel, optimizer: PolicyOptimizer, seed: int) -> None:
    tokens = torch.randint(0, 100, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def test_going_on_from_a_checkpoint_is_bit_identical(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    take_step(model, optimizer, 1)
    save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=1)
    drawn = torch.rand(3)
    take_step(model, optimizer, 2)

    found = newest_checkpoint(tmp_path)
    assert found == (1, tmp_path / "step_000001")
    resumed = load_policy(str(found[1]), device="cpu", dtype=torch.float32).model
    resumed_optimizer = build_optimizer(resumed, lr=1e-3, kind="adamw")
    load_optimizer(found[1], resumed_optimizer)
    assert torch.equal(torch.rand(3), drawn)
    take_step(resumed, resumed_optimizer, 2)
    for weight, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, model, TOKENIZER, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000015"]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing", "no manifest"])
def test_a_broken_newer_checkpoint_is_named_and_passed_over(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    save_checkpoint(tmp_path, 1, model, TOKENIZER, optimizer, keep=2)
    broken = save_checkpoint(tmp_path, 2, model, TOKENIZER, optimizer, keep=2)
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    if fault == "truncated":
        weights.write_bytes(content[:-1])
    elif fault == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "missing":
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
