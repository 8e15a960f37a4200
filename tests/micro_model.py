"""A model folder so small that a run takes a second: nsr's own tokenizer, and a Qwen3 of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsr.config import TrainConfig


def save_micro_model(folder: Path) -> Path:
    """Write it; its answers are noise."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from nsr.models.embedded import build_tiny_tokenizer
    from nsr.models.registry import special_token_ids

    tokenizer = build_tiny_tokenizer()
    end, pad = special_token_ids(tokenizer)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def micro_config(model: Path, output: Path, **changes: Any) -> TrainConfig:
    """A run of it: 8 puzzles x 2 samples a step."""
    values: dict[str, Any] = {
        "model_id": str(model),
        "device": "cpu",
        "data": "synthetic:3",
        "max_tokens": 8,
        "temperature": 1.0,
        "eval_puzzles": 4,
        "eval_samples": 2,
        "n_train_steps": 4,
        "lr": 1e-3,
        "rollout_batch_size": 16,
        "group_size": 2,
        "grad_acc_steps": 2,
        "eval_every": 0,
        "save_every": 2,
        "keep": 9,
        "log_to": "none",
        "output_dir": str(output),
        "exp_name": "run",
        **changes,
    }
    return TrainConfig(**values)
