"""Checkpoints on the disk: which there are, whether one is whole, which is the best, which go. Needs no torch.

Nothing here asks for the time or for a file's date: checkpoints are ordered by the step in their names.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsr.runs.files import Record, read_json
from nsr.runs.progress import printable

_LOGGER = logging.getLogger(__name__)

ASIDE = ".unfinished"
"""Ending of a checkpoint's folder while it is written, and while it is deleted."""
MANIFEST, STATE = "manifest.json", "state.json"

_NAME = re.compile(r"step_(\d{6,})")


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Step and folder of the newest whole checkpoint; a broken newer one is named in a warning and passed over."""
    for path in reversed(checkpoints(folder)):
        found = fault(path)
        if found is None:
            return checkpoint_step(path), path
        _LOGGER.warning("checkpoint %s is passed over: %s.", path, printable(found).plain)
    return None


def checkpoint_step(path: Path) -> int:
    """Training steps behind a whole checkpoint."""
    return int(read_state(path)["step"])


def read_state(path: Path) -> Record:
    """What a whole checkpoint says of itself: its step, and what the steps after it depend on."""
    return read_json(path / STATE)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, by step."""
    found = [
        path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(found, key=_step_in_name)


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    found = damage(path)
    if found:
        return found
    try:
        if STATE not in read_json(path / MANIFEST):
            return f"its {MANIFEST} does not name {STATE}"
        step = read_state(path)["step"]
    except (OSError, ValueError, KeyError):
        return f"its {STATE} cannot be read"
    if _NAME.fullmatch(path.name) and step != _step_in_name(path):
        return f"its {STATE} is of step {step}"
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest: a file of it is missing or changed. None if it is whole."""
    try:
        manifest = read_json(folder / MANIFEST)
        if not manifest:
            return f"its {MANIFEST} names no file"
        for name, expected in manifest.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if digest(file) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    return None


def manifest_of(path: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a folder, by name."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files}


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def best_checkpoint(folder: Path, accuracies: Mapping[int, float]) -> Path | None:
    """The checkpoint with the best evaluation, of equal ones the earliest; None where none was evaluated.

    Args:
        folder: of the checkpoints.
        accuracies: accuracy of the evaluation after each step that has one.
    """
    evaluated = [path for path in checkpoints(folder) if _step_in_name(path) in accuracies]
    return max(evaluated, key=lambda path: (accuracies[_step_in_name(path)], -_step_in_name(path)), default=None)


def prune(folder: Path, step: int, *, keep: int, accuracies: Mapping[int, float]) -> None:
    """Delete all checkpoints but the newest `keep` up to `step`, which has just been saved, and the best.

    Later ones are of no use any more: the run passed them over, because they are broken, and comes by there again.
    """
    upto = [path for path in checkpoints(folder) if _step_in_name(path) <= step]
    best = best_checkpoint(folder, {at: value for at, value in accuracies.items() if at <= step})
    for path in checkpoints(folder):
        if path not in upto[-keep:] and path != best:
            remove(path)


def remove(path: Path) -> None:
    """Delete a checkpoint, by renaming it first: a kill leaves no folder that looks like a broken one."""
    aside = path.with_name(f"{path.name}.old{ASIDE}")
    _delete(aside)
    path.rename(aside)
    _delete(aside)


def remove_unfinished(folder: Path) -> None:
    """Delete what a process left that was ended while it wrote or deleted a checkpoint."""
    for path in folder.glob(f"*{ASIDE}"):
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _step_in_name(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])
