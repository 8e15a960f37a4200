"""Every training of the study, as settings. docs/results/plan.md says why each is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsr.config import TrainConfig, with_preset

RATES = (1e-5, 3e-5, 1e-4)
"""Learning rates that each method is tried with."""
TRIAL_SEED = 41
"""Of the tries, and of the development puzzles that choose between them."""
SEEDS = (42, 43, 44, 45, 46)
"""Of the trainings that are compared."""
EQUAL_RATE = 3e-5
"""Of the table in which all methods have the same."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the comparison, by the name that tables give it."""

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


def tries(output_dir: str) -> list[TrainConfig]:
    """Every method at every learning rate, once: what the rates are chosen from."""
    return [
        _training(method, output_dir, f"{method.name}_lr{rate:g}", lr=rate, seed=TRIAL_SEED, eval_every=0)
        for method in METHODS
        for rate in RATES
    ]


def _training(method: Method, output_dir: str, name: str, **changes: Any) -> TrainConfig:
    """A training of 80 steps as the preset has it; its own evaluations only show the way, the study's come after it."""
    settings = {"eval_samples": 1, "save_every": 0, "log_to": "none", "resume": True, **method.changes, **changes}
    return dataclasses.replace(with_preset(TrainConfig, "tiny"), output_dir=output_dir, exp_name=name, **settings)
