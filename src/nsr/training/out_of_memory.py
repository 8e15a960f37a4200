"""Out of memory on a GPU: one message that names the flags that help, and what they were."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

from nsr.config import MIN_TOKENS, TrainConfig
from nsr.errors import UserError

_Result = TypeVar("_Result")


def explains_shortage(function: Callable[[TrainConfig], _Result]) -> Callable[[TrainConfig], _Result]:
    """The same function; where it runs out of GPU memory, a ValueError says what to change."""

    @functools.wraps(function)
    def explained(config: TrainConfig) -> _Result:
        try:
            return function(config)
        except torch.OutOfMemoryError as error:
            raise UserError(shortage(config, str(error))) from error

    return explained


def shortage(config: TrainConfig, reason: str) -> str:
    """What is said of a run that ran out of memory: what helps, what costs least first, and what it was."""
    flags: list[str] = []
    rollouts, cuts = config.rollout_batch_size, config.grad_acc_steps
    more = next((n for n in range(2 * cuts, rollouts + 1) if rollouts % n == 0), rollouts)
    if more > cuts:
        flags.append(f"--grad_acc_steps {cuts} -> {more}")
    if not config.gradient_checkpointing:
        flags.append("--gradient_checkpointing")
    if config.engine != "local":
        flags.append(f"--gpu_mem_util {config.gpu_mem_util:g} -> {config.gpu_mem_util / 2:g} (vLLM's share)")
    if config.optimizer != "adamw8bit":
        flags.append(f"--optimizer {config.optimizer} -> adamw8bit")
    if config.max_tokens >= 2 * MIN_TOKENS:
        flags.append(f"--max_tokens {config.max_tokens} -> {config.max_tokens // 2}")
    advice = ", ".join(flags) if flags else "a smaller --model_id"
    first = next(iter(reason.strip().splitlines()), "out of memory").partition(". ")[0].rstrip(".")
    return (
        f"{config.device} ran out of memory ({first}): the last checkpoint is as it was; what helps, first what costs "
        f"least: {advice}. `nsr fit` works out what fits."
    )
