"""The lists of runs by name, and what becomes of one with seeds and other flags.

Every run of a list is complete settings; runs of one seed see the same puzzles and random streams, so they are paired.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nsr.config import BaselineConfig, RunConfig, SuiteConfig, TrainConfig, with_preset
from nsr.errors import UserError

LENGTHS = (256, 512, 1024)

OWN_FLAGS = ("seed", "output_dir", "exp_name", "resume", "preset")
"""What a suite decides for its runs itself."""


def study() -> list[RunConfig]:
    """The paper's comparison: the base model, and each objective, with responses of 256, 512 and 1024 tokens."""
    runs: list[RunConfig] = [BaselineConfig(max_tokens=length) for length in LENGTHS]
    for objective in ("NSR", "PSR", "W_REINFORCE"):
        runs += [TrainConfig(objective=objective, max_tokens=length) for length in LENGTHS]
    runs += [TrainConfig(objective="W_REINFORCE", lambda_psr=0.3, max_tokens=length) for length in LENGTHS[:2]]
    runs += [TrainConfig(objective="RLVR", max_tokens=length) for length in LENGTHS]
    return runs


def tiny() -> list[RunConfig]:
    """The same comparison on the embedded model, with a control whose labels tell nothing."""
    return [
        with_preset(BaselineConfig, "tiny"),
        *(_tiny(objective=objective) for objective in ("RLVR", "PSR", "NSR")),
        *(_tiny(objective="W_REINFORCE", lambda_psr=weight) for weight in (0.1, 0.3)),
        _tiny(objective="SHUFFLED"),
    ]


def sweep() -> list[RunConfig]:
    """How much right samples should weigh: W_REINFORCE on the embedded model from lambda 0 (NSR) to 1."""
    return [_tiny(objective="W_REINFORCE", lambda_psr=weight) for weight in (0.0, 0.05, 0.1, 0.3, 1.0)]


SUITES: dict[str, Callable[[], list[RunConfig]]] = {"study": study, "tiny": tiny, "lambda": sweep}
"""The lists by name; the docstring of each says what it is for."""


def build_suite(config: SuiteConfig, changes: Mapping[str, Any] | None = None) -> list[RunConfig]:
    """The runs of a suite, in order: the whole list for the first seed, then for the next.

    Each goes into the suite's folder, `output_dir/name/`, under its usual name and its seed.

    Args:
        config: which suite, with which seeds.
        changes: settings by name that take the place of the list's, in every run that has such a setting.

    Raises:
        ValueError: an unknown suite, a run that --only does not find, or changes that no run can take.
    """
    if config.name not in SUITES:
        known = ", ".join(SUITES)
        raise UserError(f"the suite is {config.name!r} but must be one of {known}: choose one of them.")
    changes = changes or {}
    for name in changes:
        if name in OWN_FLAGS:
            raise UserError(f"--{name} stands after the `--` but a suite sets it for its runs: leave it out there.")
    listed = [_changed(run, changes) for run in SUITES[config.name]()]
    counted = Counter(run.run_name for run in listed)
    twice = [name for name, count in counted.items() if count > 1]
    if twice:
        flags = ", ".join(f"--{name}" for name in changes)
        raise UserError(
            f"{flags} makes several runs of the suite the same, {twice[0]}: leave out what tells them apart."
        )
    listed = _only(listed, config.only)
    folder = str(suite_path(config))
    return [
        dataclasses.replace(run, seed=seed, output_dir=folder, exp_name=f"{run.run_name}_seed{seed}", resume=True)
        for seed in range(config.seed, config.seed + config.seeds)
        for run in listed
    ]


def suite_path(config: SuiteConfig) -> Path:
    """The folder of a suite."""
    return Path(config.output_dir) / config.name


def to_words(run: RunConfig) -> list[str]:
    """The command line of a run after `nsr`: its command and each of its settings as a flag."""
    words = [run.command]
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if isinstance(value, bool):
            words += [f"--{field.name}"] if value else []
        elif value is not None:
            words.append(f"--{field.name}={value}")
    return words


def _changed(run: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The run with the changes that it has a setting for: a baseline has no learning rate."""
    names = {field.name for field in dataclasses.fields(run)}
    return dataclasses.replace(run, **{name: value for name, value in changes.items() if name in names})


def _only(runs: list[RunConfig], wanted: str | None) -> list[RunConfig]:
    if wanted is None:
        return runs
    chosen: list[str] = []
    for name in (word.strip() for word in wanted.split(",")):
        found = [run.run_name for run in runs if run.run_name == name or run.run_name.startswith(f"{name}_")]
        if not found:
            known = ", ".join(run.run_name for run in runs)
            raise UserError(f"--only names {name!r} but the suite holds {known}: name some, or how they begin.")
        chosen += found
    return [run for run in runs if run.run_name in chosen]


def _tiny(**changes: Any) -> TrainConfig:
    return dataclasses.replace(with_preset(TrainConfig, "tiny"), **changes)
