"""Named lists of runs, made one after the other, each in a process of its own.

Every run of a list is complete settings; runs of one seed see the same puzzles and random streams, so they are paired.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nsr.config import BaselineConfig, RunConfig, SuiteConfig, TrainConfig, with_preset
from nsr.runs.folder import run_state
from nsr.runs.preflight import check_device

LENGTHS = (256, 512, 1024)
INTERRUPTED = 130


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


def build_suite(config: SuiteConfig) -> list[RunConfig]:
    """The runs of a suite, in order: the whole list for the first seed, then for the next.

    Each goes into `output_dir/name/` under its usual name and its seed. Raises ValueError for an unknown suite.
    """
    if config.name not in SUITES:
        known = ", ".join(SUITES)
        raise ValueError(f"the suite is {config.name!r} but must be one of {known}: choose one of them.")
    folder = str(Path(config.output_dir) / config.name)
    return [
        dataclasses.replace(run, seed=seed, output_dir=folder, exp_name=f"{run.run_name}_seed{seed}", resume=True)
        for seed in range(config.seed, config.seed + config.seeds)
        for run in SUITES[config.name]()
    ]


def run_suite(config: SuiteConfig) -> int:
    """Run a suite: skip runs that are complete, take up those that were interrupted, go on after one that failed.

    Ends with a table. Returns 0 where every run is complete, 1 where one failed, 130 where it was interrupted.
    """
    runs = build_suite(config)
    if config.dry_run:
        for run in runs:
            print(shlex.join(["nsr", *to_words(run)]))
        return 0
    for device in {run.device for run in runs}:
        check_device(device)
    results: list[tuple[str, str, float]] = []
    for number, run in enumerate(runs, start=1):
        start = time.monotonic()
        if _is_complete(run):
            result = "complete already"
        else:
            print(f"\n[{number}/{len(runs)}] {run.run_path}", flush=True)
            result = _result(run_process([sys.executable, "-m", "nsr", *to_words(run)]))
        results.append((run.run_name, result, time.monotonic() - start))
        if result == "interrupted":
            break
    print(_table(results, len(runs)))
    if any(result == "interrupted" for _, result, _ in results):
        return INTERRUPTED
    return int(any(result.startswith("failed") for _, result, _ in results))


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


def run_process(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code. At ctrl-c, which reaches it too, it may still finish."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return INTERRUPTED


def _tiny(**changes: Any) -> TrainConfig:
    return dataclasses.replace(with_preset(TrainConfig, "tiny"), **changes)


def _is_complete(run: RunConfig) -> bool:
    try:
        return run_state(run) == "complete"
    except ValueError:  # the run itself will say what is wrong with its folder
        return False


def _result(code: int) -> str:
    if code == INTERRUPTED:
        return "interrupted"
    return "complete" if code == 0 else f"failed (exit code {code})"


def _table(results: Sequence[tuple[str, str, float]], total: int) -> str:
    width = max(len(name) for name, _, _ in results)
    lines = [f"{name:<{width}}  {seconds / 60:7.1f} min  {result}" for name, result, seconds in results]
    good = sum(result.startswith("complete") for _, result, _ in results)
    return "\n".join(["", *lines, f"{good} of {total} runs are complete."])
