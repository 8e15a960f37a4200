"""`nsr fit`: the sum for one model on one device. No torch behind it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from nsr.config import FitConfig
from nsr.memory.estimate import ModelShape
from nsr.memory.search import machine_memory, report
from nsr.models.architecture import find_shape


def show_fit(config: FitConfig) -> None:
    """Print what a training takes, and whether and how it fits.

    Raises:
        ValueError: the model's sizes cannot be found.
    """
    shape, source = _given_shape(config) if config.hidden is not None else find_shape(config.model_id)
    if config.gpu_gb is not None:
        total, where = round(config.gpu_gb * 10**9), f"{config.gpu_gb:g} GB, {config.device}"
    else:
        total, name, is_gpu = machine_memory()
        if config.device == "cpu" or not is_gpu:
            engine = "local" if config.engine == "vllm" else config.engine
            config = dataclasses.replace(config, device="cpu", engine=engine)
        where = f"{total / 10**9:.1f} GB, {config.device}: {name}"
    name = "a model of this shape" if config.hidden is not None else config.model_id
    print(f"{name}: {shape.parameters:,} parameters, from {source}")
    print(f"device: {where}")
    rows = config.rollout_batch_size // config.grad_acc_steps
    print(
        f"a step: {config.rollout_batch_size} samples in microbatches of {rows}; "
        f"prompts of {config.prompt_tokens} and responses of at most {config.max_tokens} tokens"
    )
    print("\n".join(report(config, shape, total)))


def _given_shape(config: FitConfig) -> tuple[ModelShape, str]:
    named = SimpleNamespace(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate,
        vocab_size=config.vocab,
        tie_word_embeddings=config.tied,
    )
    return ModelShape.from_config(named), "the flags"
