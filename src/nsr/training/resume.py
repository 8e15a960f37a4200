"""Taking up a run: from which checkpoint, whether it is one of these settings and puzzles, and what to say of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsr import __version__
from nsr.config import TrainConfig, compared_settings, settings_diff
from nsr.errors import UserError
from nsr.runs.checkpoints import newest_checkpoint, read_state
from nsr.runs.files import Record, read_json
from nsr.runs.folder import RunFolder, read_resolved
from nsr.tasks.countdown.data import Splits
from nsr.tasks.countdown.puzzle import Puzzle

_ADVICE = "restore it, or start another run with another --exp_name"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts: at its beginning, or at a checkpoint."""

    step: int = 0
    """Steps that are made."""
    checkpoint: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The checkpoint's state.json."""
    resolved: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What an earlier start of the run chose where a setting left the choice."""
    lines: tuple[str, ...] = ()
    """What to tell the user."""

    def puzzles(self, config: TrainConfig) -> int:
        """How many training puzzles to load: also as many as the checkpoint knew, to compare them."""
        known = self.state.get("data", {}).get("train_puzzles", 0)
        return max(config.n_train_steps * config.puzzles_per_step, known)

    def check_data(self, config: TrainConfig, splits: Splits) -> None:
        """Raise ValueError where the puzzles are not those that the checkpoint was made with."""
        known = self.state.get("data")  # checkpoints of older versions do not tell
        if known is None:
            return
        now = {
            "training": fingerprint(splits.train[: known["train_puzzles"]]),
            "evaluation": fingerprint(splits.evaluation),
        }
        changed = [kind for kind in now if now[kind] != known[f"{kind}_sha256"]]
        if changed:
            raise UserError(
                f"--data {config.data} no longer gives the {' and '.join(changed)} puzzles that {self.checkpoint} was "
                f"made with: {_ADVICE}."
            )


def find_start(config: TrainConfig, *, interrupted: bool) -> Start:
    """Where the run of `config` starts, whose folder `check_folder` has looked at.

    Raises:
        ValueError: the newest whole checkpoint is of other settings, or of more steps than are asked for.
    """
    path = config.run_path
    if not interrupted:
        return Start()
    resolved = read_resolved(path)
    found = newest_checkpoint(path / "checkpoints")
    if found is None:
        return Start(resolved=resolved, lines=(f"{path} holds no whole checkpoint: the run starts over, from step 0.",))
    step, checkpoint = found
    state = read_state(checkpoint)
    differences = settings_diff(state["settings"], compared_settings(config)) if "settings" in state else []
    if differences:
        raise UserError(f"{checkpoint} was made with other settings ({', '.join(differences)}): {_ADVICE}.")
    if step > config.n_train_steps:
        raise UserError(
            f"--n_train_steps is {config.n_train_steps} but must be at least {step} here, the steps behind "
            f"{checkpoint}: ask for that many or more, or choose another --exp_name."
        )
    line = f"going on after step {step}, from {checkpoint}"
    return Start(step=step, checkpoint=checkpoint, state=state, resolved=resolved, lines=(line,))


def state_of(config: TrainConfig, splits: Splits, step: int, optimizer: str) -> Record:
    """What a checkpoint's state.json says beside its step: all that the next steps depend on and that has no file."""
    return {
        "cursor": {"puzzles": step * config.puzzles_per_step},
        "random": {"seed": config.seed, "step": step, "keyed_by": "seed, purpose, step, puzzle, sample"},
        "data": {
            "source": config.data,
            "train_puzzles": len(splits.train),
            "training_sha256": fingerprint(splits.train),
            "evaluation_sha256": fingerprint(splits.evaluation),
        },
        "optimizer": optimizer,
        "settings": compared_settings(config),
        "nsr": __version__,
    }


def fingerprint(puzzles: Iterable[Puzzle]) -> str:
    """SHA-256 of the puzzles' keys in their order."""
    return hashlib.sha256("\n".join(puzzle.key for puzzle in puzzles).encode()).hexdigest()


def changed_environment(path: Path, now: Mapping[str, object]) -> str | None:
    """A line that says what is another than at the last start of the run, None where nothing is."""
    file = path / "environment.json"
    if not file.exists():
        return None
    before = read_json(file)
    before.pop("earlier", None)
    changes = list(_changes("", before, now))
    if not changes:
        return None
    return (
        f"since the last start: {', '.join(changes)}. The run goes on, but it may differ in the last digits from one "
        "that was not interrupted (environment.json keeps both)."
    )


def _changes(name: str, before: object, now: object) -> Iterable[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _changes(f"{name} {key}".strip(), before.get(key), now.get(key))
    elif before != now:
        yield f"{name} {before} -> {now}"


def missing_lines(folder: RunFolder, step: int) -> str | None:
    """A line that says which steps metrics.jsonl has lost, None where it has lost none."""
    missing = folder.missing_steps(step)
    if not missing:
        return None
    shown = ", ".join(str(number) for number in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return f"warning: {folder.path / 'metrics.jsonl'} has no line of step {shown}, which this run made before."
