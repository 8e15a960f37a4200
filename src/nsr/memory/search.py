"""Does a training fit on a device, and which flags make it fit: the memory model, asked for many settings.

Pure arithmetic. The search changes what costs least first: more microbatches and vLLM's share (neither changes a
gradient), then checkpointing (a third more work in learning), then the 8-bit optimizer (another rounding), and last
the length of responses (another experiment).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nsr.config.fit import FitConfig
from nsr.memory.estimate import (
    Item,
    ModelShape,
    Optimizer,
    Phase,
    Setup,
    Work,
    microbatch_rows,
    peak,
    phase_total,
    sampling_batch,
    sampling_items,
    size,
    training_items,
)

CUDA_CONTEXT = 500 * 10**6
"""What CUDA and its libraries hold on the device beside tensors. Assumed: it depends on card and driver."""
PROCESS = 550 * 10**6
"""What Python, the libraries and their kernels hold in a CPU process beside tensors. Measured."""
LOST = {"cuda": 0.05, "cpu": 0.10}
"""Share of the tensors' peak that allocators lose between blocks: assumed on CUDA, measured on a CPU."""
VLLM_OVERHEAD = 1500 * 10**6
"""What vLLM needs beside weights and cache: activations of its batches and CUDA graphs. Assumed."""
_LEAST_ROWS = 8  # sequences at a time below which vLLM is not worth its memory
_SHORTEST = 64


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The sum for one case."""

    config: FitConfig
    optimizer: Optimizer
    items: tuple[Item, ...]
    total: int
    """Memory of the device in bytes."""
    vllm_needs: int
    """Least that vLLM works with; 0 without it."""

    @property
    def peak(self) -> int:
        """Most memory at one time."""
        return peak(self.items)

    @property
    def vllm_is_held(self) -> bool:
        """Whether vLLM's share is as much as it needs."""
        return self.config.gpu_mem_util * self.total >= self.vllm_needs

    @property
    def fits(self) -> bool:
        """Whether both the sum and vLLM have room."""
        return self.peak <= self.total and self.vllm_is_held


def work_out(config: FitConfig, shape: ModelShape, total: int, optimizer: Optimizer) -> Fit:
    """The sum of one case with an optimizer ("auto" decided) on a device of `total` bytes."""
    cuda, with_vllm = config.device == "cuda", config.samples_with_vllm
    columns, width = config.prompt_tokens + config.max_tokens, 2 if cuda else 4
    setup = Setup(
        shape=shape,
        weight_bytes=width,
        prompt_tokens=config.prompt_tokens,
        sampling_batch=0 if with_vllm else sampling_batch(shape, columns, width, on_cpu=not cuda),
        on_cpu=not cuda,
        packs_weights=not cuda,
        vllm_bytes=round(config.gpu_mem_util * total) if with_vllm else 0,
        vllm_sleeps=with_vllm and cuda,
    )
    work = Work(
        sequences=microbatch_rows(config.rollout_batch_size, 1, config.grad_acc_steps),
        max_tokens=config.max_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    items = training_items(setup, work, optimizer, f"--gpu_mem_util {config.gpu_mem_util:g}")
    tensors = peak(training_items(dataclasses.replace(setup, vllm_bytes=0), work, optimizer))
    held, lost = CUDA_CONTEXT if cuda else PROCESS, LOST[config.device]
    name, words = ("CUDA", "its context and libraries") if cuda else ("process", "Python, libraries and their kernels")
    items = (
        *items,
        Item(name=name, size=held, sum=words),
        Item(name="between blocks", size=round(lost * tensors), sum=f"{lost:.0%} of the tensors' most"),
    )
    if setup.vllm_sleeps:
        kept = "its activations' buffers and CUDA graphs, which stay while it sleeps; assumed"
        items = (*items, Item(name="vLLM asleep", size=VLLM_OVERHEAD, sum=kept))
    rows = min(config.rollout_batch_size, _LEAST_ROWS)
    cache = sampling_items(dataclasses.replace(setup, sampling_batch=rows), config.max_tokens)[0].size
    needs = shape.parameters * setup.weight_bytes + cache + VLLM_OVERHEAD if with_vllm else 0
    return Fit(config=config, optimizer=optimizer, items=items, total=total, vllm_needs=needs)


def as_given(config: FitConfig, shape: ModelShape, total: int) -> Fit:
    """The case with the flags as they are; `auto` takes float32 AdamW if it fits, else the 8-bit one."""
    if config.optimizer != "auto":
        return work_out(config, shape, total, config.optimizer)
    first = work_out(config, shape, total, "adamw")
    return first if first.fits else work_out(config, shape, total, "adamw8bit")


def find_fit(config: FitConfig, shape: ModelShape, total: int) -> Fit | None:
    """The first case that fits, with the flags that cost least changed first; None where nothing helps."""
    cases = (work_out(changed, shape, total, optimizer) for changed, optimizer in _candidates(config, shape, total))
    return next((case for case in cases if case.fits), None)


def changes(given: FitConfig, found: Fit) -> list[str]:
    """What is different in the case that was found, as flags with what they were: `--grad_acc_steps 16 -> 32`."""
    names = ("grad_acc_steps", "gpu_mem_util", "max_tokens")
    pairs = [(name, getattr(given, name), getattr(found.config, name)) for name in names]
    flags = [f"--{name} {before:g} -> {after:g}" for name, before, after in pairs if before != after]
    if found.config.gradient_checkpointing and not given.gradient_checkpointing:
        flags.append("--gradient_checkpointing")
    if found.optimizer != ("adamw" if given.optimizer == "auto" else given.optimizer):
        flags.append(f"--optimizer {given.optimizer} -> {found.optimizer}")
    return flags


def machine_memory() -> tuple[int, str, bool]:
    """Memory of this machine's first GPU, or its own where there is none: bytes, in words, and whether it is a GPU."""
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        mib, _, name = done.stdout.partition("\n")[0].partition(",")
        if done.returncode == 0 and mib.strip().isdigit():
            return int(mib) * 2**20, name.strip(), True
    import psutil

    return int(psutil.virtual_memory().total), "this machine's memory (no GPU was found)", False


def table(fit: Fit) -> list[str]:
    """The sum as lines: the parts by moment, and what they come to."""
    lines: list[str] = []
    phases: dict[Phase, None] = dict.fromkeys(item.phase for item in fit.items)
    for phase in phases:
        lines.append("always" if phase == "always" else f"while {phase}")
        lines += [f"  {item.name:<22} {size(item.size):>10}  {item.sum}" for item in fit.items if item.phase == phase]
        lines.append(f"  {'together':<22} {size(phase_total(fit.items, phase)):>10}")
    lines.append(f"{'at most':<24} {size(fit.peak):>10}  of {size(fit.total)}: always, and the largest of the others")
    return lines


def verdict(given: Fit, found: Fit | None) -> list[str]:
    """Whether it fits, and what to do where it does not."""
    config = given.config
    if given.fits:
        chosen = f"--optimizer {given.optimizer}" + (" (auto)" if config.optimizer == "auto" else "")
        return [f"It fits, with {chosen}; {size(given.total - given.peak)} are left."]
    lines: list[str] = []
    if not given.vllm_is_held:
        share = size(round(config.gpu_mem_util * given.total))
        lines.append(f"vLLM gets {share} and needs {size(given.vllm_needs)} for weights, cache and itself.")
    if given.peak > given.total:
        lines.append(f"It does not fit: {size(given.peak - given.total)} are missing.")
    if found is None:
        return [*lines, "No flag makes it fit: use a smaller model, or a device with more memory."]
    flags = ", ".join(changes(config, found))
    return [*lines, f"It fits with {flags}: {size(found.peak)} of {size(found.total)}."]


def report(config: FitConfig, shape: ModelShape, total: int) -> list[str]:
    """Everything that `nsr fit` says of a case."""
    given = as_given(config, shape, total)
    return [*table(given), *verdict(given, None if given.fits else find_fit(config, shape, total))]


def cell(config: FitConfig, shape: ModelShape, total: int) -> str:
    """One cell of docs/hardware.md: `yes`, the flags that make it fit, or `no`."""
    given = as_given(config, shape, total)
    if given.fits and given.optimizer == "adamw":
        return "yes"
    found = find_fit(config, shape, total)
    return "no" if found is None else ", ".join(_short(flag) for flag in changes(config, found))


CARDS = (8, 12, 16, 24, 40, 80)
LAPTOPS = (4, 8, 16, 32)


def document_tables(shapes: Mapping[str, ModelShape]) -> str:
    """The tables of docs/hardware.md, as Markdown: models by memory, on a GPU beside vLLM and on a CPU."""
    parts: list[str] = []
    tables: dict[Literal["cuda", "cpu"], tuple[int, ...]] = {"cuda": CARDS, "cpu": LAPTOPS}
    for device, sizes in tables.items():
        rows = [["model", "parameters", *(f"{gb} GB" for gb in sizes)], ["---"] * (len(sizes) + 2)]
        for name, shape in shapes.items():
            config = FitConfig(model_id=name, device=device)
            cells = [cell(config, shape, gb * 10**9) for gb in sizes]
            rows.append([f"`{name}`", f"{shape.parameters / 10**9:.3g} billion", *cells])
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts)


def _short(flag: str) -> str:
    name, _, values = flag.removeprefix("--").partition(" ")
    value = values.rpartition(" ")[2]
    return {
        "grad_acc_steps": f"{value} microbatches",
        "gpu_mem_util": f"vLLM {value}",
        "max_tokens": f"{value} tokens",
        "gradient_checkpointing": "checkpointing",
        "optimizer": "8-bit",
    }[name]


def _candidates(config: FitConfig, shape: ModelShape, total: int) -> Iterator[tuple[FitConfig, Optimizer]]:
    optimizers: Sequence[Optimizer] = ("adamw8bit",) if config.optimizer == "adamw8bit" else ("adamw", "adamw8bit")
    checkpointing = (True,) if config.gradient_checkpointing else (False, True)
    microbatches = [n for n in _divisors(config.rollout_batch_size) if n >= config.grad_acc_steps]
    for max_tokens, optimizer, again in itertools.product(_lengths(config.max_tokens), optimizers, checkpointing):
        changed = dataclasses.replace(config, max_tokens=max_tokens, gradient_checkpointing=again)
        for share, count in itertools.product(_shares(changed, shape, total), microbatches):
            yield dataclasses.replace(changed, gpu_mem_util=share, grad_acc_steps=count), optimizer


def _lengths(max_tokens: int) -> list[int]:
    lengths = [max_tokens]
    while lengths[-1] // 2 >= _SHORTEST:
        lengths.append(lengths[-1] // 2)
    return lengths


def _shares(config: FitConfig, shape: ModelShape, total: int) -> list[float]:
    """The share that was given, and the least that vLLM works with, in steps of 0.05."""
    if not config.samples_with_vllm:
        return [config.gpu_mem_util]
    needs = work_out(config, shape, total, "adamw").vllm_needs
    least = math.ceil(needs / total * 20) / 20
    return [config.gpu_mem_util, least] if least <= 1.0 else [config.gpu_mem_util]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
