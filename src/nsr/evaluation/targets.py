"""What a model given on the command line is: where its weights lie, how many training steps are behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsr.errors import UserError
from nsr.runs.checkpoints import checkpoint_step, fault, newest_checkpoint
from nsr.runs.files import read_json
from nsr.runs.folder import is_complete, read_config

_CHOICES = "give a hub id, `tiny`, or the folder of a model, of a training run or of a checkpoint"
_UNFIT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.=+-]+")
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model to measure."""

    given: str
    """As it was named."""
    model_id: str
    """What its weights are loaded from: a hub id, `tiny`, or a folder."""
    step: int = 0
    """Training steps behind the weights; 0 for a model that no run of nsr trained."""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the run that trained it, where it comes from one."""


def find_target(given: str) -> Target:
    """Find the weights behind a name: of a run its final model, or the newest checkpoint of one under way.

    Whether a hub id exists, and whether a folder holds a model that can be loaded, is seen when it is loaded.

    Raises:
        ValueError: a run that left no weights, or a checkpoint that is broken.
    """
    path = Path(given)
    if (path / "state.json").exists() and (path / "manifest.json").exists():
        return _checkpoint(given, path)
    if (path / "config.json").exists() and "command" in read_json(path / "config.json"):
        return _run(given, path)
    return Target(given=given, model_id=given)


def target_names(targets: Sequence[Target]) -> list[str]:
    """A short name for each, fit for a folder and different from the others: the end of what was given."""
    for parts in range(1, 20):
        names = [_name(target.given, parts) for target in targets]
        if len(set(names)) == len(names):
            return names
    return [f"{number}_{_name(target.given, 1)}" for number, target in enumerate(targets, start=1)]


def _name(given: str, parts: int) -> str:
    path = Path(given)
    if path.exists():
        path = path.resolve()
        # A checkpoint's folder has the step alone for a name.
        names = [name for name in path.parts[1:] if name != "checkpoints"]
        parts += (path / "state.json").exists()
    else:
        names = list(path.parts)
    return _UNFIT_IN_NAMES.sub("-", "-".join(names[-parts:]))[-_LONGEST_NAME:].lstrip(".-+=") or "model"


def _checkpoint(given: str, path: Path) -> Target:
    what = fault(path)
    if what is not None:
        raise UserError(f"the checkpoint {given!r} is broken ({what}): give another one, or its run's folder.")
    run = path.absolute().parent.parent
    training = read_config(run) if (run / "config.json").exists() else {}
    return Target(given=given, model_id=given, step=checkpoint_step(path), training=training)


def _run(given: str, path: Path) -> Target:
    training = read_config(path)
    if is_complete(path) and (path / "model").is_dir():
        step = int(read_json(path / "done.json")["step"])
        return Target(given=given, model_id=str(path / "model"), step=step, training=training)
    newest = newest_checkpoint(path / "checkpoints")
    if newest is not None:
        return Target(given=given, model_id=str(newest[1]), step=newest[0], training=training)
    if "objective" in training:
        raise UserError(f"the run {given!r} has neither a final model nor a whole checkpoint yet: {_CHOICES}.")
    measured = training.get("model_id")
    raise UserError(f"the run {given!r} trained no model, it measured {measured!r}: name that one, or {_CHOICES}.")
