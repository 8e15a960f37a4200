"""Checkpoints: written aside, then renamed in one step, so that a folder is either whole or not there.

A checkpoint is an ordinary `transformers` model folder with three files more: `optimizer.pt` (state of the optimizer
and of torch's random numbers), `state.json` (the step) and `manifest.json` (size and SHA-256 of every file). The order
of the puzzles and every other random number follow from seed and step, so the step is the cursor.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nsr.learning.optimizer import PolicyOptimizer

_LOGGER = logging.getLogger(__name__)
_ASIDE = ".unfinished"


def save_checkpoint(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: PolicyOptimizer,
    *,
    keep: int,
) -> Path:
    """Write the checkpoint `folder/step_000010`, then delete all but the newest `keep`."""
    path = folder / f"step_{step:06d}"
    aside = folder / (path.name + _ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    random_state = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    torch.save({"optimizer": optimizer.state_dict(), "random": random_state}, aside / "optimizer.pt")
    (aside / "state.json").write_text(json.dumps({"step": step}) + "\n")
    files = sorted(file for file in aside.rglob("*") if file.is_file())
    manifest = {
        file.relative_to(aside).as_posix(): {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in files
    }
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if path.exists():  # a run that went on from an earlier step comes by here again
        shutil.rmtree(path)
    aside.rename(path)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Step and folder of the newest whole checkpoint; a broken newer one is named in a warning and passed over."""
    for path in reversed(_checkpoints(folder)):
        fault = _fault(path)
        if fault is None:
            return int(json.loads((path / "state.json").read_text())["step"]), path
        _LOGGER.warning("checkpoint %s is passed over: %s.", path, fault)
    return None


def load_optimizer(path: Path, optimizer: PolicyOptimizer) -> None:
    """Continue `optimizer` and torch's random numbers where the checkpoint `path` was taken.

    The model itself is loaded from the checkpoint like from any model folder, before its optimizer is built.
    """
    saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"]["cpu"])
    if len(saved["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and not path.name.endswith(_ASIDE))


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if _digest(file) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest.json cannot be read"
    return None


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
