"""Evaluate a model as it is, and show what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from nsr.config import BaselineConfig, RunConfig
from nsr.evaluation.evaluate import evaluate
from nsr.evaluation.record import Evaluation
from nsr.evaluation.tables import evaluation_table
from nsr.memory.preflight import Setup, available_memory, free_disk, plan_baseline
from nsr.rollout.setup import Sampler, build_sampler, check_setup
from nsr.runs.environment import describe
from nsr.runs.folder import RunFolder, check_folder
from nsr.runs.progress import RunProgress, printable
from nsr.runs.signals import StopSignals
from nsr.tasks.countdown.data import load_splits
from nsr.tasks.countdown.puzzle import Puzzle


def run_baseline(config: BaselineConfig, console: Console | None = None) -> Path:
    """Evaluate the model of `config` and write a run's folder with the one evaluation, as step 0; returns the folder.

    The puzzles and random streams are those of a training run's evaluations with the same data, seed and numbers.

    Raises:
        ValueError: a setting that does not fit the machine, the model, the data or the folder; nothing is written then.
    """
    console = console or Console(highlight=False)
    if check_folder(config) == "complete":
        say(console, f"{config.run_path} is complete.")
        return config.run_path
    splits = load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=config.seed)
    setup, sums = check_plan(config, splits.evaluation)
    say(console, splits.description)
    say(console, sums)
    resolved = {"data": splits.description, "engine": setup.engine}
    evaluation = measure(config, build_sampler(config, setup), splits.evaluation, console, resolved=resolved)
    console.print(evaluation_table(evaluation, title=f"{config.model_id}, temperature {evaluation.temperature:g}"))
    say(console, f"Every completion with its verdict is in {config.run_path / 'evaluations'}.")
    return config.run_path


def check_plan(config: RunConfig, puzzles: Sequence[Puzzle]) -> tuple[Setup, str]:
    """Check that the model can be measured on this machine; gives its setup, and as text engine and sums of memory.

    Raises:
        ValueError: no such device, engine or model, or it does not fit.
    """
    setup = check_setup(config, puzzles)
    plan = plan_baseline(config, setup)
    memory, disk = available_memory(config.device), free_disk(config.run_path)
    plan.check(config, memory=memory, disk=disk)
    return setup, f"{plan.table(memory=memory, disk=disk)}\nengine {setup.engine}: {setup.engine_reason}"


def measure(
    config: RunConfig,
    sampler: Sampler,
    puzzles: Sequence[Puzzle],
    console: Console,
    *,
    resolved: Mapping[str, object],
    step: int = 0,
) -> Evaluation:
    """Evaluate what `sampler` samples from and write the folder of the run `config` with it, after `step` steps."""
    with (
        StopSignals(),  # it can be made again, so it is broken off at once
        RunFolder.open(config, environment=describe(), resolved=resolved) as folder,
        RunProgress(console=console) as progress,
    ):
        start = time.perf_counter()
        with (
            folder.keep_samples(step) as keep,
            folder.keep_samples(step, greedy=True) as keep_greedy,
            # A greedy sample beside those of each puzzle.
            progress.evaluation("evaluation", len(puzzles) * (config.eval_samples + 1)) as advance,
        ):
            evaluation = evaluate(
                sampler.engine,
                sampler.encode,
                puzzles,
                num_samples=config.eval_samples,
                temperature=config.evaluation_temperature,
                max_tokens=config.max_tokens,
                seed=config.seed,
                step=step,
                greedy=True,
                with_coverage=True,
                progress=advance,
                keep=keep,
                keep_greedy=keep_greedy,
            )
        folder.append_timings({"step": step, "evaluation_seconds": time.perf_counter() - start})
        folder.write_evaluation(step, evaluation.to_json())
        folder.mark_complete(step, {"accuracy": evaluation.accuracy.estimate})
    return evaluation


def say(console: Console, text: str) -> None:
    """Print a line, whatever is in it."""
    console.print(printable(text), soft_wrap=True)
