"""Folders as runs leave them, made without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsr.config import BaselineConfig, RunConfig, TrainConfig
from nsr.runs.folder import RunFolder

EVALUATION = {"accuracy": {"estimate": 0.25, "low": 0.2, "high": 0.31}, "response_length": 50.0}


def training(output: Path, name: str = "NSR", **changes: Any) -> TrainConfig:
    values = {"n_train_steps": 40, "eval_every": 20, "eval_puzzles": 10, "eval_samples": 4, "resume": True, **changes}
    return TrainConfig(output_dir=str(output), exp_name=name, **values)


def baseline(output: Path) -> BaselineConfig:
    return BaselineConfig(output_dir=str(output), exp_name="base")


def make(config: RunConfig, steps: int = 0, *, evaluations: tuple[int, ...] = (), complete: bool = False) -> RunFolder:
    """A run that made `steps` steps. It is open, as that of a run under way: close it."""
    folder = RunFolder.open(config, environment={})
    for step in range(1, steps + 1):
        folder.append_metrics(
            {
                "step": step,
                "correct_ratio": step / 100,
                "reward_mean": step / 50 - 1,
                "entropy": 0.5,
                "response_length": 60,
            }
        )
        folder.append_timings({"step": step, "step_seconds": 3.0, "sampling_tokens_per_second": 1000.0})
    for step in evaluations:
        folder.write_evaluation(step, EVALUATION)
    if complete:
        folder.mark_complete(steps)
    return folder
