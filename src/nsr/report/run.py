"""What a run left in its folder, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsr.errors import UserError
from nsr.evaluation.evaluate import Evaluation
from nsr.runs.folder import evaluation_paths, read_config, read_evaluation, read_events, read_metrics


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its files tell it."""

    path: Path
    config: Mapping[str, Any]
    """The settings, as in config.json."""
    metrics: Sequence[Mapping[str, Any]]
    """One record a training step."""
    evaluations: Sequence[Evaluation]
    """In the order of their steps, without samples."""
    name: str = ""
    """How a report calls it: its folder, below what all runs of the report have in common."""
    mechanism: Sequence[Mapping[str, Any]] = ()
    """One record an evaluation of the probe, where there is one."""
    timings: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    """What the run met: signs of a collapse."""
    environment: Mapping[str, Any] | None = None
    """Versions, commit and hardware; None where they are not known."""
    complete: bool = False

    @property
    def method(self) -> str:
        """The objective, or "base" for a model as it is."""
        return str(self.config.get("objective", "base"))

    @property
    def seed(self) -> int:
        """Its seed, which also decides the puzzles."""
        return int(self.config["seed"])

    def evaluation(self, step: int) -> Evaluation | None:
        """The evaluation after `step` steps; None where there is none."""
        return next((evaluation for evaluation in self.evaluations if evaluation.step == step), None)


def read_run(path: Path) -> RunRecord:
    """Read the folder of a run that is complete or on its way.

    Raises:
        ValueError: a file holds something else than it should, in a sentence that names it.
    """
    if not (path / "config.json").exists():
        raise UserError(f"{path} holds no run: give a folder that has a config.json.")
    return RunRecord(
        path=path,
        config=read_config(path),
        metrics=read_metrics(path),
        events=read_events(path),
        evaluations=[Evaluation.from_json(read_evaluation(path, step)) for step in evaluation_paths(path)],
    )
