"""Checkpoints on the disk: which there are, and whether one is whole. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from nsr.runs.files import read_json
from nsr.runs.progress import printable

_LOGGER = logging.getLogger(__name__)

ASIDE = ".unfinished"
"""Ending of a checkpoint's folder while it is written."""


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
    return int(json.loads((path / "state.json").read_text())["step"])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, by step."""
    return sorted(
        path
        for path in folder.glob("step_*")
        if path.is_dir() and not path.is_symlink() and not path.name.endswith(ASIDE)
    )


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    try:
        manifest = read_json(path / "manifest.json")
        if not manifest:
            return "its manifest.json names no file"
        if not (path / "state.json").is_file():
            return "state.json is missing"
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if digest(file) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest.json cannot be read"
    return None


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()
