"""Evaluate a model as it is, and show what came out."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nsr.config import BaselineConfig
from nsr.evaluation.evaluate import Evaluation, PassAtK, evaluate
from nsr.runs.environment import describe
from nsr.runs.folder import RunFolder, check_folder
from nsr.runs.preflight import available_memory, free_disk, plan_baseline
from nsr.runs.progress import RunProgress, printable
from nsr.sampling.setup import build_sampler, check_setup
from nsr.task.data import load_splits


def run_baseline(config: BaselineConfig, console: Console | None = None) -> Path:
    """Evaluate the model of `config` and write a run's folder with the one evaluation, as step 0; returns the folder.

    The puzzles and random streams are those of a training run's evaluations with the same data, seed and numbers.

    Raises:
        ValueError: a setting that does not fit the machine, the model, the data or the folder; nothing is written then.
    """
    console = console or Console(highlight=False)
    if check_folder(config) == "complete":
        _say(console, f"{config.run_path} is complete.")
        return config.run_path
    splits = load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=config.seed)
    setup = check_setup(config, splits.evaluation)
    plan = plan_baseline(config, setup)
    memory, disk = available_memory(config.device), free_disk(config.run_path)
    plan.check(config, memory=memory, disk=disk)
    _say(console, splits.description)
    _say(console, plan.table(memory=memory, disk=disk))
    sampler = build_sampler(config)
    with (
        RunFolder.open(config, environment=describe(), resolved={"data": splits.description}) as folder,
        RunProgress(console=console) as progress,
    ):
        start = time.perf_counter()
        # A greedy sample beside those of each puzzle.
        with progress.evaluation("evaluation", len(splits.evaluation) * (config.eval_samples + 1)) as advance:
            evaluation = evaluate(
                sampler.engine,
                sampler.encode,
                splits.evaluation,
                num_samples=config.eval_samples,
                temperature=config.evaluation_temperature,
                max_tokens=config.max_tokens,
                seed=config.seed,
                greedy=True,
                with_coverage=True,
                progress=advance,
            )
        folder.append_timings({"step": 0, "evaluation_seconds": time.perf_counter() - start})
        folder.write_evaluation(0, evaluation.to_json(), evaluation.samples)
        folder.mark_complete(0, {"accuracy": evaluation.accuracy.estimate})
    console.print(evaluation_table(evaluation, title=f"{config.model_id}, temperature {evaluation.temperature:g}"))
    _say(console, f"Every completion with its verdict is in {folder.path / 'evaluations'}.")
    return folder.path


def evaluation_table(evaluation: Evaluation, title: str) -> RenderableType:
    """What an evaluation found, for a terminal of 80 columns. Shares with their 95% intervals over puzzles."""
    curves = Table(box=None, padding=(0, 1), pad_edge=False)
    kinds = [(split.name, split.num_puzzles, split.pass_at_k) for split in evaluation.splits]
    columns = [("all", len(evaluation.puzzles), evaluation.pass_at_k), *(kinds if len(kinds) > 1 else [])]
    curves.add_column("puzzles")
    for name, count, _ in columns:
        curves.add_column(f"{name} ({count})", justify="right")
    for row in zip(*(curve for _, _, curve in columns), strict=True):
        curves.add_row(_curve_label(row[0]), *(str(point.value) for point in row))
    measures = Table.grid(padding=(0, 2, 0, 0))
    for label, text in _measures(evaluation):
        measures.add_row(label, text)
    note = Text("In brackets: 95% intervals over puzzles. ~ rough: k is above half the samples of a puzzle.", "dim")
    return Group(Text(), printable(title), curves, Text(), measures, Text(), note)


def _say(console: Console, text: str) -> None:
    console.print(printable(text), soft_wrap=True)


def _curve_label(point: PassAtK) -> str:
    label = "accuracy, pass@1" if point.k == 1 else f"pass@{point.k}"
    return f"{label} ~" if point.rough and point.k > 1 else label


def _measures(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Label and text of every measure that is known, beside the curves."""
    distinct = evaluation.distinct_correct
    shares = sorted(evaluation.verdicts.items(), key=lambda item: -item[1])
    rows = [
        ("greedy accuracy", None if evaluation.greedy_accuracy is None else str(evaluation.greedy_accuracy)),
        ("verdicts", ", ".join(f"{name.replace('_', ' ')} {_percent(share)}" for name, share in shares)),
        ("accuracy if well-formed", _percent(evaluation.well_formed_accuracy)),
        ("cut off at max_tokens", _percent(evaluation.truncated)),
        ("response length", f"{evaluation.response_length:.1f} tokens"),
        ("entropy of a token", None if evaluation.entropy is None else f"{evaluation.entropy:.3f} nats"),
        (
            f"distinct in {distinct.num_draws} right",
            None if distinct.mean is None else f"{distinct.mean:.2f} equations ({distinct.num_puzzles} puzzles)",
        ),
        ("solutions found", _percent(evaluation.coverage)),
    ]
    return [(label, text) for label, text in rows if text is not None]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}%"
