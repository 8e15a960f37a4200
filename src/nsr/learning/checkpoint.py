"""Checkpoints: written aside, then renamed in one step, so that a folder is either whole or not there.

A checkpoint is an ordinary `transformers` model folder with three files more: `optimizer.pt` (state of the optimizer
and of torch's random numbers), `state.json` (the step) and `manifest.json` (size and SHA-256 of every file). The order
of the puzzles and every other random number follow from seed and step, so the step is the cursor.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nsr.runs.checkpoints import ASIDE, checkpoints, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nsr.learning.optimizer import PolicyOptimizer


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
    aside = folder / (path.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    random_state = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    torch.save({"optimizer": optimizer.state_dict(), "random": random_state}, aside / "optimizer.pt")
    (aside / "state.json").write_text(json.dumps({"step": step}) + "\n")
    files = sorted(file for file in aside.rglob("*") if file.is_file())
    manifest = {
        file.relative_to(aside).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files
    }
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if path.exists():  # a run that went on from an earlier step comes by here again
        shutil.rmtree(path)
    aside.rename(path)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_optimizer(path: Path, optimizer: PolicyOptimizer) -> None:
    """Continue `optimizer` and torch's random numbers where the checkpoint `path` was taken.

    The model itself is loaded from the checkpoint like from any model folder, before its optimizer is built.
    """
    saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"]["cpu"])
    if len(saved["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])
