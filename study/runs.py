"""Every training of the study, as settings. docs/results/plan.md says why each is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsr.config import TrainConfig, with_preset

RATES = (1e-5, 3e-5, 1e-4)
"""Learning rates that each method is tried with."""
TRIAL_SEED = 41
"""Of the tries, and of the development puzzles that choose between them."""
SEEDS = (42, 43, 44, 45, 46)
"""Of the trainings that are compared."""
SIDE_SEEDS = SEEDS[:3]
"""Of the two tables beside the comparison: at an equal rate, and averaged over what is kept."""
EQUAL_RATE = 3e-5

BEST: dict[str, Any] = {
    "objective": "RLVR",
    "max_tokens": 448,
    "n_train_steps": 200,
    "lr": 3e-5,
    "eval_every": 40,
    "eval_samples": 2,
}
"""Where the training beyond the comparison differs from `--preset tiny`. 448 tokens are what 512 positions leave."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the comparison, by the name that files give it."""

    name: str
    changes: Mapping[str, Any]
    """Settings in which it differs from the others."""


METHODS = (
    Method(name="RLVR", changes={"objective": "RLVR"}),
    Method(name="PSR", changes={"objective": "PSR"}),
    Method(name="NSR", changes={"objective": "NSR"}),
    Method(name="W_REINFORCE_0.1", changes={"objective": "W_REINFORCE", "lambda_psr": 0.1}),
    Method(name="W_REINFORCE_0.3", changes={"objective": "W_REINFORCE", "lambda_psr": 0.3}),
    Method(name="SHUFFLED", changes={"objective": "SHUFFLED"}),
)

WITH_ZEROS = ("RLVR", "PSR", "NSR")
"""Methods that give some samples the weight 0: only for these the average over what is kept is another one."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of the study, and what it is for."""

    method: str
    part: str
    """`tries`, `main`, `equal` or `kept`."""
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its folder's name, which no other training has."""
        return self.config.run_name


def tries(root: Path) -> list[Training]:
    """Every method at every learning rate, once: what the rates are chosen from."""
    return [
        _training(root, "tries", method, f"{method.name}_lr{rate:g}", lr=rate, seed=TRIAL_SEED, eval_every=0)
        for method in METHODS
        for rate in RATES
    ]


def trainings(root: Path, rates: Mapping[str, float]) -> list[Training]:
    """What follows once every method has its learning rate, seed by seed: the comparison, then the two side tables."""
    return [
        *(
            _training(root, "main", method, f"{method.name}_seed{seed}", lr=rates[method.name], seed=seed)
            for seed in SEEDS
            for method in METHODS
        ),
        *_side_tables(root, rates),
    ]


def _side_tables(root: Path, rates: Mapping[str, float]) -> Iterator[Training]:
    for seed in SIDE_SEEDS:
        for method in METHODS:
            if rates[method.name] != EQUAL_RATE:
                yield _training(root, "equal", method, f"{method.name}_equal_seed{seed}", lr=EQUAL_RATE, seed=seed)
            if method.name in WITH_ZEROS:
                name = f"{method.name}_kept_seed{seed}"
                kept: Any = {"lr": rates[method.name], "normalize_over": "kept"}
                yield _training(root, "kept", method, name, seed=seed, **kept)


def _training(root: Path, part: str, method: Method, name: str, **changes: Any) -> Training:
    """A training of 80 steps as the preset has it; its own evaluations only show the way, the study's come after it."""
    settings = {"eval_samples": 1, "save_every": 0, "log_to": "none", "resume": True, **method.changes, **changes}
    config = dataclasses.replace(
        with_preset(TrainConfig, "tiny"), output_dir=str(root / part), exp_name=name, **settings
    )
    return Training(method=method.name, part=part, config=config)
