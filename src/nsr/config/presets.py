"""Presets: other defaults for the flags that are not given."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from nsr.config.checks import check_choice
from nsr.config.run import RunConfig

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {
        "model_id": "tiny",
        "device": "cpu",
        "data": "synthetic",
        # A mean over each sample's tokens would punish short mistakes most: the model would learn not to stop.
        "loss_type": "length_normalized",
        "max_tokens": 96,
        "temperature": 1.0,
        "eval_puzzles": 256,
        "eval_samples": 8,
        "output_dir": "./output",
        "n_train_steps": 80,
        "lr": 3e-5,
        "rollout_batch_size": 128,
        "group_size": 8,
        "grad_acc_steps": 4,
        "eval_every": 40,
    },
}
"""Settings by the name of a preset. They take the place of the defaults; a flag that is given wins over them."""

_Config = TypeVar("_Config", bound=RunConfig)


def with_preset(config_type: type[_Config], preset: str | None) -> _Config:
    """The defaults of `config_type` with a preset in their place, fields that it does not have left out.

    Raises ValueError for a name that is not in `PRESETS`.
    """
    if preset is None:
        return config_type()
    check_choice("preset", preset, tuple(PRESETS))
    names = {field.name for field in dataclasses.fields(config_type)}
    values = {name: value for name, value in PRESETS[preset].items() if name in names}
    return dataclasses.replace(config_type(), **values)
