"""What every command that samples needs, made from its settings: puzzles, prompts, policy and engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nsr.config import MIN_TOKENS, RunConfig
from nsr.memory.estimate import SAMPLING_BATCH, sampling_batch
from nsr.memory.preflight import ModelShape, Setup, check_context, check_device
from nsr.models.registry import LoadedPolicy, load_config, load_policy, load_tokenizer, prompt_encoder, resolve
from nsr.models.sampling_mask import Support
from nsr.rollout.choice import choose_engine
from nsr.rollout.engine import Engine
from nsr.rollout.native.engine import LocalEngine
from nsr.tasks.countdown.puzzle import Puzzle

_LONGEST_LOOKED_AT = 64
_TESTED = Puzzle(numbers=(44, 19, 35), target=98)  # its prompt is that of vLLM's self-test


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A policy, the engine that samples from it, and how a puzzle becomes a prompt."""

    policy: LoadedPolicy
    engine: Engine
    support: Support
    encode: Callable[[Puzzle], tuple[int, ...]]


def compute_dtype(config: RunConfig) -> torch.dtype:
    """The type of --dtype: for "auto" bfloat16 on a GPU, and float32 on a CPU, where many have no quick bfloat16."""
    if config.dtype == "auto":
        return torch.bfloat16 if config.device.startswith("cuda") else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def check_setup(config: RunConfig, puzzles: Sequence[Puzzle], engine: str | None = None) -> Setup:
    """Check device, engine and context length, and find the sizes of model and prompts, before any weights are loaded.

    Args:
        config: the settings.
        puzzles: all that a prompt will be made of.
        engine: the engine to take in place of that of the settings, such as the one that a run began with.

    Raises:
        ValueError: no such device, engine or model, or prompt and response are longer than the model's context.
    """
    check_device(config.device)
    choice = choose_engine(engine or config.engine, config.device)
    model_config = load_config(config.model_id)
    encode = prompt_encoder(load_tokenizer(config.model_id), config.max_tokens, config.thinking)
    # Prompts differ in their numbers alone, so the one with most tokens is among those with most digits.
    longest = sorted(puzzles, key=lambda puzzle: len(puzzle.key), reverse=True)[:_LONGEST_LOOKED_AT]
    prompt_tokens = max(len(encode(puzzle)) for puzzle in longest)
    check_context(
        config.max_tokens, prompt_tokens=prompt_tokens, context_length=int(model_config.max_position_embeddings)
    )
    shape, width = ModelShape.from_config(model_config), compute_dtype(config).itemsize
    vllm = choice.name == "vllm"
    on_cpu = not config.device.startswith("cuda")
    packs_weights = not vllm and not config.exact and on_cpu
    columns = prompt_tokens + config.max_tokens
    return Setup(
        shape=shape,
        prompt_tokens=prompt_tokens,
        weight_bytes=width,
        sampling_batch=0 if vllm else sampling_batch(shape, columns, width, on_cpu=packs_weights),
        on_cpu=on_cpu,
        packs_weights=packs_weights,
        engine=choice.name,
        engine_reason=choice.reason,
        vllm_sleeps=vllm and config.device.startswith("cuda"),
        vllm_bytes=_vllm_bytes(config, shape, prompt_tokens + config.max_tokens, width) if vllm else 0,
    )


def build_sampler(config: RunConfig, setup: Setup, model_id: str | None = None) -> Sampler:
    """Load the policy of `config` (or `model_id` in its place, such as a checkpoint's folder) and its engine.

    Raises:
        ValueError: the model cannot be loaded, or the engine cannot run it.
    """
    policy = load_policy(model_id or config.model_id, device=config.device, dtype=compute_dtype(config))
    support = Support.of(policy.model, policy.tokenizer, MIN_TOKENS)
    encode = prompt_encoder(policy.tokenizer, config.max_tokens, config.thinking)
    if setup.engine == "vllm":
        from nsr.rollout.vllm import VLLMEngine

        engine: Engine = VLLMEngine(
            policy.model,
            policy.tokenizer,
            support,
            model=resolve(policy.model_id),
            max_model_len=max(setup.prompt_tokens, len(encode(_TESTED))) + config.max_tokens,
            tested_prompt=encode(_TESTED),
            gpu_mem_util=config.gpu_mem_util,
        )
    else:
        engine = LocalEngine(
            policy.model, policy.tokenizer, support, max_batch_size=setup.sampling_batch, exact=config.exact
        )
    return Sampler(policy=policy, engine=engine, support=support, encode=encode)


def _vllm_bytes(config: RunConfig, shape: ModelShape, tokens: int, width: int) -> int:
    """What vLLM takes: its share of a GPU, or on a CPU its copy of the weights and the cache of a whole batch."""
    if config.device.startswith("cuda"):
        return round(config.gpu_mem_util * torch.cuda.mem_get_info(config.device)[1])
    return width * (shape.parameters + SAMPLING_BATCH * tokens * shape.layers * 2 * shape.kv_width)
