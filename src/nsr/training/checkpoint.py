"""Checkpoints: written aside, checked, then renamed in one step, so that a folder is either whole or not there.

A checkpoint is an ordinary `transformers` model folder with three files more: `optimizer.pt` (state of the optimizer
and of the global random generators), `state.json` (the step, and what the next steps depend on: settings, puzzles,
seed) and `manifest.json` (size and SHA-256 of every file). Sampling has no state of its own: every random stream is
keyed by seed, purpose and step, and the order of the puzzles follows from seed and step.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from nsr.memory.preflight import size
from nsr.runs.checkpoints import ASIDE, MANIFEST, STATE, manifest_of, prune, remove, remove_unfinished
from nsr.runs.files import CannotWrite, cannot_write, sync_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nsr.training.optimizer import PolicyOptimizer

OPTIMIZER = "optimizer.pt"

_OVERHEAD = 2**17
"""Bytes for what is in the files beside the tensors: headers and names."""


def save_checkpoint(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: PolicyOptimizer,
    *,
    keep: int,
    state: Mapping[str, object] | None = None,
    accuracies: Mapping[int, float] | None = None,
) -> Path:
    """Write the checkpoint `folder/step_000010`, then delete all but the newest `keep` and the best.

    Args:
        folder: of all checkpoints of the run.
        step: training steps behind the weights.
        model: the policy.
        tokenizer: its tokenizer.
        optimizer: of the policy's parameters.
        keep: how many of the newest are kept.
        state: what goes into state.json beside the step.
        accuracies: accuracy of the evaluation after each step that has one; they say which checkpoint is the best.

    Raises:
        CannotWrite: the disk is full, or does not take it; the other checkpoints are as they were.
    """
    path = folder / f"step_{step:06d}"
    with _whole_or_not_there(path) as aside:
        _save_model(aside, model, tokenizer, others=(saved := _optimizer_state(optimizer)))
        with (aside / OPTIMIZER).open("wb") as file:  # a file of Python's says why it cannot be written
            torch.save(saved, file)
        write_json(aside / STATE, {"step": step, **(state or {})})
        _sync(aside)
        write_json(aside / MANIFEST, manifest_of(aside))
        if path.exists():  # a broken one, which the run passed over; it comes by here again
            remove(path)
    prune(folder, step, keep=keep, accuracies=accuracies or {})
    return path


def save_model(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write an ordinary model folder in one step, in place of what was there. Raises CannotWrite."""
    with _whole_or_not_there(path) as aside:
        _save_model(aside, model, tokenizer)
        _sync(aside)
        if path.exists():
            shutil.rmtree(path)


def load_optimizer(path: Path, optimizer: PolicyOptimizer) -> None:
    """Continue `optimizer` and the global random generators where the checkpoint `path` was taken.

    The model itself is loaded from the checkpoint like from any model folder, before its optimizer is built.
    """
    saved = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"]["cpu"])
    if len(saved["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])
    if "python" in saved["random"]:  # checkpoints of older versions have no more than torch's
        version, numbers, gauss = saved["random"]["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, position, has_gauss, cached = saved["random"]["numpy"]
        state = (name, np.array(keys, dtype=np.uint32), position, has_gauss, cached)
        np.random.set_state(state)  # noqa: NPY002  no step of nsr draws from it; a library might


def seed_everything(seed: int) -> None:
    """Seed the global random generators. Steps use streams of their own; what a library draws repeats too."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def _optimizer_state(optimizer: PolicyOptimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    # Pickle writes a string that it has met before as a reference. One that came from a file is another object with the
    # same letters: interned, it is the same one again, and a resumed run writes the same bytes.
    state["kind"] = sys.intern(state["kind"])
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "optimizer": state,
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "python": random.getstate(),
            "numpy": (name, np.asarray(keys).tolist(), *rest),
        },
    }


@contextmanager
def _whole_or_not_there(path: Path) -> Generator[Path, None, None]:
    """A new folder beside `path` that takes its name when the context ends, and goes away at an error."""
    aside = path.with_name(path.name + ASIDE)
    try:
        remove_unfinished(path.parent)
        aside.mkdir(parents=True)
        yield aside
        sync_folder(aside)
        aside.rename(path)
        sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, CannotWrite):
            raise
        # What libraries raise where a file cannot be written: tokenizers a plain Exception, torch a RuntimeError.
        if isinstance(error, (OSError, SafetensorError, RuntimeError)) or type(error) is Exception:
            raise cannot_write(path, error) from error
        raise


def _save_model(aside: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, others: object = ()) -> None:
    """Write tokenizer and model, if there is room for the model and for the tensors in `others`."""
    tokenizer.save_pretrained(aside)
    needed = sum(map(_tensor_bytes, _tensors([list(model.parameters()), others]))) + _OVERHEAD
    free = shutil.disk_usage(aside).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {size(needed)}")
    model.save_pretrained(aside)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _tensor_bytes(tensor: Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:  # made of others, as torchao's 8-bit moments are
        names, _ = flatten()
        return sum(_tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _sync(folder: Path) -> None:
    """Have every file of a folder on the disk."""
    for file in folder.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
