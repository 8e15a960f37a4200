"""Before a run starts: does it fit into memory and on the disk, how long will it take, is there such a device.

Pure functions that spell the sum out (the memory's is in memory.py), and checks that refuse with that sum. What they
refuse cannot work with responses of full length; what they let through may be too much where memory is in pieces.
Sizes are in bytes, printed in powers of 1000.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import psutil

from nsr.config import RunConfig, TrainConfig
from nsr.errors import UserError
from nsr.memory.estimate import (
    Item,
    ModelShape,
    Optimizer,
    Setup,
    Work,
    evaluation_items,
    microbatch_rows,
    peak,
    per_parameter,
    size,
    state_items,
    training_items,
)

__all__ = ["Item", "ModelShape", "Optimizer", "Plan", "Setup", "size"]

_TEXT_BYTES_PER_TOKEN = 4  # of a compressed sample: text, token ids and log-probabilities
_SMALL_CHECKPOINT = 10**9
_LARGE_SAVE_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take."""

    memory: tuple[Item, ...]
    disk: tuple[Item, ...]

    @property
    def peak_memory(self) -> int:
        """Most memory at one time."""
        return peak(self.memory)

    @property
    def disk_space(self) -> int:
        """Most disk space at one time."""
        return sum(item.size for item in self.disk)

    def check(self, config: RunConfig, *, memory: int, disk: int) -> None:
        """Raise ValueError, with the sum, where `memory` or `disk` bytes that are free are too few."""
        if self.peak_memory > memory:
            advice = "use a smaller model, a smaller --max_tokens"
            if isinstance(config, TrainConfig):
                advice += ", more --grad_acc_steps, --gradient_checkpointing, --optimizer adamw8bit"
            raise UserError(
                f"--model_id {config.model_id} needs {size(self.peak_memory)} of memory on {config.device} "
                f"({_spell(self.memory)}) but {size(memory)} are free: {advice}, or another machine."
            )
        if self.disk_space > disk:
            raise UserError(
                f"--output_dir {config.output_dir} needs {size(self.disk_space)} of disk space "
                f"({_spell(self.disk)}) but {size(disk)} are free: make room, keep fewer checkpoints with --keep, "
                "or choose another --output_dir."
            )

    def table(self, *, memory: int, disk: int, seconds: float | None = None) -> str:
        """The sums as lines of text, with what is free and the time it takes where that is known."""
        lines = _rows("memory", self.memory, f"{size(self.peak_memory)} at most, of {size(memory)} that are free")
        lines += _rows("disk", self.disk, f"{size(self.disk_space)} at most, of {size(disk)} that are free")
        if seconds is not None:
            lines.append(f"{'time':<8} about {timedelta(seconds=round(seconds))} (hours:minutes:seconds)")
        return "\n".join(lines)


def plan_training(config: TrainConfig, setup: Setup, optimizer: Optimizer) -> Plan:
    """What a training run takes with an optimizer ("auto" decided)."""
    copies = config.keep + 2  # the best beside the newest, and a new one is whole before an old one goes
    checkpoint = checkpoint_bytes(setup, optimizer)
    disk = (
        Item(name="checkpoints", size=copies * checkpoint, sum=f"{copies} x {size(checkpoint)}"),
        per_parameter("final model", setup, setup.weight_bytes),
        _samples_item(config, evaluations(config)),
    )
    return Plan(memory=training_items(setup, work_of(config), optimizer, _share(config)), disk=disk)


def plan_baseline(config: RunConfig, setup: Setup) -> Plan:
    """What an evaluation alone takes."""
    memory = evaluation_items(setup, config.max_tokens, _share(config))
    return Plan(memory=memory, disk=(_samples_item(config, 1),))


def work_of(config: TrainConfig) -> Work:
    """What a step of a run does at a time."""
    return Work(
        sequences=microbatch_rows(config.rollout_batch_size, config.updates_per_rollout, config.grad_acc_steps),
        max_tokens=config.max_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
        exact=config.exact,
    )


def choose_optimizer(config: TrainConfig, setup: Setup, free: int) -> Optimizer:
    """The optimizer of --optimizer; for "auto" AdamW in float32 if `free` bytes hold it, else the 8-bit one."""
    if config.optimizer != "auto":
        return config.optimizer
    return "adamw" if plan_training(config, setup, "adamw").peak_memory <= free else "adamw8bit"


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError where the library of the 8-bit optimizer is not installed: before any weights are loaded."""
    if optimizer == "adamw8bit" and find_spec("torchao") is None:
        raise UserError(
            "--optimizer adamw8bit (or auto, where memory is short) needs torchao, which is not installed: "
            'pip install "nsr[gpu]", or make --optimizer adamw fit with --gradient_checkpointing or more '
            "--grad_acc_steps."
        )


def checkpoint_bytes(setup: Setup, optimizer: Optimizer) -> int:
    """Size of a checkpoint that a run can go on from: weights, their masters in full if there are any, and moments."""
    weights = setup.shape.parameters * setup.weight_bytes
    state = state_items(setup, optimizer)  # without the half of the masters that the weights are
    masters = any(item.name == "master weights" for item in state)
    return weights + sum(item.size for item in state) + (weights if masters else 0)


def save_every(config: TrainConfig, checkpoint: int) -> int:
    """Steps between checkpoints: --save_every, or what suits their size (0: at the end only).

    Small checkpoints (below 1 GB) are written with each evaluation, large ones every 50 steps.
    """
    if config.save_every is not None:
        return config.save_every
    return (config.eval_every or 10) if checkpoint < _SMALL_CHECKPOINT else _LARGE_SAVE_EVERY


def evaluations(config: TrainConfig) -> int:
    """Number of evaluations: before the first step, every `eval_every` steps, and after the last."""
    return 1 + (math.ceil(config.n_train_steps / config.eval_every) if config.eval_every else 1)


def training_seconds(
    config: TrainConfig, *, done: int, seconds_per_step: float, seconds_per_evaluation: float
) -> float:
    """How long the steps after `done` and their evaluations take."""
    every = config.eval_every or config.n_train_steps
    remaining = math.ceil(config.n_train_steps / every) - done // every
    return (config.n_train_steps - done) * seconds_per_step + remaining * seconds_per_evaluation


def step_seconds(config: TrainConfig, *, seconds_per_evaluation: float, learning_share: float = 1.0) -> float:
    """How long a step takes, from a first evaluation: learning takes `learning_share` of the time of sampling."""
    samples = config.eval_puzzles * config.eval_samples
    return config.rollout_batch_size / samples * seconds_per_evaluation * (1.0 + learning_share)


def check_context(max_tokens: int, *, prompt_tokens: int, context_length: int) -> None:
    """Raise ValueError where prompt and longest response do not fit into the model's context."""
    room = context_length - prompt_tokens
    if max_tokens > room:
        raise UserError(
            f"--max_tokens is {max_tokens} but must be at most {room}, which the model's context of {context_length} "
            f"leaves after the longest prompt ({prompt_tokens} tokens): use a smaller one or another --model_id."
        )


def check_device(device: str) -> None:
    """Raise ValueError where this machine does not have the device. Imports torch for a GPU only."""
    if not device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(
            f"--device is {device!r} but no CUDA GPU can be used here: "
            "use `--preset tiny`, which runs on two CPU cores, or `--device cpu`."
        )
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise UserError(f"--device is {device!r} but must be cuda:0 to cuda:{count - 1} here: choose one of them.")


def available_memory(device: str) -> int:
    """Free memory of a device. Call it before the model is loaded: what is in use already is not free."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_container_room()])


def free_disk(path: Path) -> int:
    """Free space on the disk on which a folder, which need not exist yet, will lie."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def room_for_run(path: Path) -> int:
    """Free space for a run in a folder: what is free on its disk, and what its own checkpoints hold already."""
    own = sum(file.stat().st_size for file in (path / "checkpoints").rglob("*") if file.is_file())
    return free_disk(path) + own


def _share(config: RunConfig) -> str:
    if config.device.startswith("cuda"):
        return f"--gpu_mem_util {config.gpu_mem_util:g}"
    return "its copy of the weights, and the cache of a batch"


def _samples_item(config: RunConfig, count: int) -> Item:
    samples = count * config.eval_puzzles * config.eval_samples
    return Item(
        name="samples",
        size=samples * config.max_tokens * _TEXT_BYTES_PER_TOKEN,
        sum=f"{samples:,} samples x {config.max_tokens} tokens x {_TEXT_BYTES_PER_TOKEN} bytes",
    )


def _spell(items: Iterable[Item]) -> str:
    parts: list[str] = []
    for item in items:
        when = "" if item.phase == "always" else f" while {item.phase}"
        parts.append(f"{item.name} {size(item.size)}{when}")
    return " + ".join(parts)


def _rows(title: str, items: Iterable[Item], total: str) -> list[str]:
    rows: list[str] = []
    for item in items:
        when = "" if item.phase == "always" else f"; while {item.phase}"
        rows.append(f"{title:<8} {item.name:<20} {size(item.size):>10}  {item.sum}{when}")
        title = ""
    return [*rows, f"{'':<8} {'together':<20} {total}"]


def _container_room(group: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a memory limit on this process's control group leaves, where there is one. Cached files can give way."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except (OSError, ValueError):  # no such group, or the limit is "max"
        return []
    cached = next((int(line[1]) for line in lines if line[0] == "inactive_file"), 0)
    return [max(limit - used + cached, 0)]
