"""What every command that samples needs, made from its settings: puzzles, prompts, policy and engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nsr.config import MIN_TOKENS, RunConfig
from nsr.models.catalog import LoadedPolicy, load_config, load_policy, load_tokenizer, prompt_encoder
from nsr.runs.preflight import ModelShape, Setup, check_context, check_device
from nsr.sampling.engine import Engine
from nsr.sampling.local import LocalEngine
from nsr.sampling.support import Support
from nsr.task.puzzle import Puzzle

SAMPLING_BATCH = 128
"""Sequences that the local engine samples at a time."""
_LONGEST_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A policy, the engine that samples from it, and how a puzzle becomes a prompt."""

    policy: LoadedPolicy
    engine: Engine
    support: Support
    encode: Callable[[Puzzle], tuple[int, ...]]


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 on a GPU; float32 on a CPU, where many have no quick bfloat16."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def check_setup(config: RunConfig, puzzles: Sequence[Puzzle]) -> Setup:
    """Check device, engine and context length, and find the sizes of model and prompts, before any weights are loaded.

    Raises:
        ValueError: no such device, engine or model, or prompt and response are longer than the model's context.
    """
    check_device(config.device)
    if config.engine == "vllm":
        raise ValueError("--engine is 'vllm', which this version does not have yet: use `--engine local`.")
    model_config = load_config(config.model_id)
    encode = prompt_encoder(load_tokenizer(config.model_id), config.max_tokens, config.thinking)
    # Prompts differ in their numbers alone, so the one with most tokens is among those with most digits.
    longest = sorted(puzzles, key=lambda puzzle: len(puzzle.key), reverse=True)[:_LONGEST_LOOKED_AT]
    prompt_tokens = max(len(encode(puzzle)) for puzzle in longest)
    check_context(
        config.max_tokens, prompt_tokens=prompt_tokens, context_length=int(model_config.max_position_embeddings)
    )
    return Setup(
        shape=ModelShape.from_config(model_config),
        prompt_tokens=prompt_tokens,
        weight_bytes=compute_dtype(config.device).itemsize,
        sampling_batch=SAMPLING_BATCH,
    )


def build_sampler(config: RunConfig, model_id: str | None = None) -> Sampler:
    """Load the policy of `config` (or `model_id` in its place, such as a checkpoint's folder) and its engine."""
    policy = load_policy(model_id or config.model_id, device=config.device, dtype=compute_dtype(config.device))
    support = Support.of(policy.model, policy.tokenizer, MIN_TOKENS)
    return Sampler(
        policy=policy,
        engine=LocalEngine(policy.model, policy.tokenizer, support, max_batch_size=SAMPLING_BATCH),
        support=support,
        encode=prompt_encoder(policy.tokenizer, config.max_tokens, config.thinking),
    )
