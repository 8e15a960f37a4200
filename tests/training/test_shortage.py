"""Out of memory in a step: one message, with the flags that help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from nsr import cli
from nsr.config import TrainConfig, with_preset
from nsr.training import loop as trainer
from nsr.training.out_of_memory import shortage


def test_running_out_of_memory_in_an_update_names_the_flags_and_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def update(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has\na total")

    monkeypatch.setattr(trainer, "update", update)
    flags = "--rollout_batch_size 8 --group_size 4 --grad_acc_steps 2 --max_tokens 40 --log_to none"
    small = "--n_train_steps 1 --eval_puzzles 1 --eval_samples 1 --eval_every 0"
    words = ["train", "--preset", "tiny", *flags.split(), *small.split(), "--output_dir", str(tmp_path)]
    assert cli.main(words) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "ran out of memory (CUDA out of memory): the last checkpoint is as it was" in error
    assert "--grad_acc_steps 2 -> 4, --gradient_checkpointing, --gpu_mem_util 0.4 -> 0.2 (vLLM's share), " in error
    assert "--optimizer auto -> adamw8bit, --max_tokens 40 -> 20. `nsr fit`" in error
    assert "Traceback" not in error


def test_only_flags_that_still_help_are_named() -> None:
    config = dataclasses.replace(
        with_preset(TrainConfig, "tiny"),
        engine="local",
        optimizer="adamw8bit",
        gradient_checkpointing=True,
        grad_acc_steps=128,
        max_tokens=6,
    )
    assert "least: a smaller --model_id. `nsr fit`" in shortage(config, "")
    # 12 has no divisor 10, so the next is taken; 12 at once where there is none between
    config = dataclasses.replace(config, rollout_batch_size=12, group_size=4, grad_acc_steps=2)
    assert "--grad_acc_steps 2 -> 4." in shortage(config, "x")
    assert "--grad_acc_steps 4 -> 12." in shortage(dataclasses.replace(config, grad_acc_steps=4), "x")
