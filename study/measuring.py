"""Which model is sampled on which puzzles, as lists of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsr.config import BaselineConfig, with_preset
from study.runs import Training
from study.sets import BIG, DEV, FAR, FIVE, REAL, WIDE, PuzzleSet

TEMPERATURES = (0.7, 0.85, 1.15, 1.3)
"""Of base, beside 1: is NSR only heating, PSR only cooling?"""
EVALUATION_SEED = 0
"""Of the random streams, the same for all models: what luck adds to two of them cancels in their difference."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model at one temperature on one set."""

    puzzles: PuzzleSet
    training: Training | None
    """What made the model; None for base."""
    config: BaselineConfig

    @property
    def model(self) -> str:
        """Name of the model, with the temperature where it is not 1."""
        return self.config.run_name


def development(root: Path, tried: Sequence[Training]) -> list[Measurement]:
    """Base and every try on the development puzzles."""
    return [_measurement(root, DEV, training) for training in (None, *tried)]


def final(root: Path, made: Sequence[Training]) -> list[Measurement]:
    """The look at the test sets: what the primary comparison needs first, the side tables last."""
    main: list[Training | None] = [None, *(training for training in made if training.part == "main")]
    real = [REAL] if REAL.path(root).exists() else []
    return [
        *(_measurement(root, one, training) for one in (BIG, WIDE, *real, FIVE, FAR) for training in main),
        *(_measurement(root, one, None, temperature) for one in (BIG, WIDE) for temperature in TEMPERATURES),
        *(_measurement(root, WIDE, training) for training in made if training.part in ("equal", "kept")),
    ]


def _measurement(root: Path, puzzles: PuzzleSet, training: Training | None, temperature: float = 1.0) -> Measurement:
    name = "base" if training is None else training.name
    config = dataclasses.replace(
        with_preset(BaselineConfig, "tiny"),
        model_id="tiny" if training is None else str(training.config.run_path / "model"),
        data=puzzles.source(root),
        eval_puzzles=puzzles.num_puzzles,
        eval_samples=puzzles.num_samples,
        temperature=temperature,
        seed=EVALUATION_SEED,
        output_dir=str(root / "measured" / puzzles.name),
        exp_name=name if temperature == 1.0 else f"{name}_T{temperature:g}",
        resume=True,
    )
    return Measurement(puzzles=puzzles, training=training, config=config)
