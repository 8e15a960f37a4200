"""Measure models at temperatures, side by side."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nsr.config import EvalConfig
from nsr.evaluation.baseline import check_plan, measure, say
from nsr.evaluation.record import Evaluation
from nsr.evaluation.tables import comparison_tables, evaluation_table
from nsr.evaluation.targets import Target, find_target, target_names
from nsr.rollout.setup import build_sampler
from nsr.runs.folder import check_folder, read_evaluation
from nsr.tasks.countdown.data import load_splits
from nsr.tasks.countdown.puzzle import Puzzle

_KEPT_OF_TRAINING = ("exp_name", "objective", "lambda_psr", "data", "seed")


def run_eval(config: EvalConfig, console: Console | None = None) -> list[Path]:
    """Measure every model of `config` at every temperature and show them together; returns the runs' folders.

    All are measured on the same puzzles. What is complete already is read from its folder.

    Raises:
        ValueError: a setting that does not fit the machine, a model, the data or a folder; nothing is written then.
    """
    console = console or Console(highlight=False)
    targets = [find_target(model) for model in config.models]
    names = target_names(targets)
    runs = [
        [config.run(target.model_id, name, temperature) for temperature in config.temperatures]
        for target, name in zip(targets, names, strict=True)
    ]
    left = [[run for run in of_model if check_folder(run) != "complete"] for of_model in runs]
    if any(left):
        splits = load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=config.seed)
        # Every model is looked at before the first is measured.
        sums = {of_model[0].model_id: check_plan(of_model[0], splits.evaluation) for of_model in left if of_model}
        say(console, splits.description)
        for target, of_model in zip(targets, left, strict=True):
            if not of_model:
                continue
            seen = seen_in_training(target, splits.evaluation)
            if seen:
                advice = "measure it with the --data, --seed and --eval_puzzles of its run"
                count = f"{seen} of the {len(splits.evaluation)} puzzles"
                say(console, f"warning: {target.given} was trained on {count}: {advice}.")
            setup, text = sums[target.model_id]
            say(console, f"{target.given}\n{text}")
            sampler = build_sampler(of_model[0], setup)
            for run in of_model:
                say(console, str(run.run_path))
                resolved = {
                    "data": splits.description,
                    "engine": setup.engine,
                    **_origin(target),
                    "seen_in_training": seen,
                }
                measure(run, sampler, splits.evaluation, console, resolved=resolved, step=target.step)
            del sampler
            gc.collect()  # a model's parts refer to each other; the next one may need the room
    evaluations = [
        (name, Evaluation.from_json(read_evaluation(run.run_path, target.step)))
        for name, target, of_model in zip(names, targets, runs, strict=True)
        for run in of_model
    ]
    if len(evaluations) == 1:
        ((name, evaluation),) = evaluations
        console.print(evaluation_table(evaluation, title=f"{name}, temperature {evaluation.temperature:g}"))
    else:
        labels = [f"{name} at {evaluation.temperature:g}" for name, evaluation in evaluations]
        console.print(comparison_tables(labels, [evaluation for _, evaluation in evaluations]))
    say(console, f"Every completion with its verdict is in {config.path}.")
    return [run.run_path for of_model in runs for run in of_model]


def seen_in_training(target: Target, puzzles: Sequence[Puzzle]) -> int | None:
    """How many of `puzzles` the steps behind a model trained on; None where that cannot be found out any more."""
    if target.step == 0:
        return 0
    training = target.training
    try:
        trained = load_splits(
            training["data"],
            eval_puzzles=training["eval_puzzles"],
            seed=training["seed"],
            train_puzzles=target.step * training["rollout_batch_size"] // training["group_size"],
        ).train
    except (KeyError, ValueError):  # a checkpoint that left its run's folder, a file of puzzles that is gone
        return None
    keys = {puzzle.key for puzzle in trained}
    return sum(puzzle.key in keys for puzzle in puzzles)


def _origin(target: Target) -> dict[str, Any]:
    """What config.json says of where a model comes from."""
    known = {name: target.training[name] for name in _KEPT_OF_TRAINING if name in target.training}
    return {"model": target.given, "step": target.step, "training": known or None}
