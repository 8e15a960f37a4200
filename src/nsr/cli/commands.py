"""The commands: each reads its flags, checks what can be known at once, and calls the function that does the work."""

from __future__ import annotations

import difflib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.cli import arguments
from nsr.cli.output import say
from nsr.config import (
    BaselineConfig,
    DataConfig,
    ExplainConfig,
    ExportConfig,
    FitConfig,
    PlayConfig,
    ReportConfig,
    RunConfig,
    SolveConfig,
    SuiteConfig,
    TrainConfig,
    WarmstartConfig,
    WatchConfig,
)
from nsr.errors import UserError

if TYPE_CHECKING:
    from nsr.tasks.countdown.puzzle import Puzzle


def baseline(words: Sequence[str]) -> int:
    """Evaluate a model as it is, without training."""
    config = arguments.parse_run(BaselineConfig, words)
    if _is_ready(config):
        from nsr.evaluation.baseline import run_baseline

        run_baseline(config)
    return 0


def train(words: Sequence[str]) -> int:
    """Train a model with one of the objectives, and evaluate it on the way."""
    config = arguments.parse_run(TrainConfig, words)
    _check_objective(config)
    if _is_ready(config):
        from nsr.training.loop import train

        train(config)
    from nsr.report.summary import summarize

    summarize(config.run_path)
    return 0


def eval_(words: Sequence[str]) -> int:
    """Measure models at temperatures side by side, or again from kept samples."""
    config = arguments.parse_eval(words)
    if config.from_samples:
        from nsr.evaluation.from_samples import run_from_samples

        return 0 if run_from_samples(config.from_samples) else 1
    _check_device(config.device)
    from nsr.evaluation.run_eval import run_eval

    run_eval(config)
    return 0


def suite(words: Sequence[str]) -> int:
    """Run a named list of runs: study, tiny or lambda."""
    end = words.index("--") if "--" in words else len(words)
    config = arguments.parse(SuiteConfig, arguments.SuiteArguments, "suite", words[:end])
    changes = arguments.parse_changes(words[end + 1 :])
    from nsr.suite import run_suite

    return run_suite(config, changes)


def watch(words: Sequence[str]) -> int:
    """Show how far runs are, in a live table."""
    config = arguments.parse(WatchConfig, arguments.WatchArguments, "watch", words)
    from nsr.report.watch import watch

    watch(config)
    return 0


def report(words: Sequence[str]) -> int:
    """Show what runs found: one page, a table and figures, from their folders."""
    config = arguments.parse(ReportConfig, arguments.ReportArguments, "report", words)
    from nsr.report.report import report

    report(config)
    return 0


def warmstart(words: Sequence[str]) -> int:
    """Teach a model the format and some arithmetic on the solver's traces."""
    config = arguments.parse(WarmstartConfig, arguments.WarmstartArguments, "warmstart", words)
    _check_device(config.device)
    from nsr.training.sft import warmstart

    warmstart(config)
    return 0


def export(words: Sequence[str]) -> int:
    """Write the model of a run to a folder of its own, with a model card."""
    config = arguments.parse(ExportConfig, arguments.ExportArguments, "export", words)
    from nsr.report.export import export

    export(config)
    return 0


def data(words: Sequence[str]) -> int:
    """Show or write the puzzles of a source, with statistics."""
    config = arguments.parse(DataConfig, arguments.DataArguments, "data", words)
    from nsr.tasks.countdown.data import load_splits

    evaluation = config.split == "evaluation"
    splits = load_splits(
        config.data,
        eval_puzzles=config.count if evaluation else 1,
        seed=config.seed,
        train_puzzles=1 if evaluation else config.count,
    )
    puzzles = (splits.evaluation if evaluation else splits.train)[: config.count]
    if config.out is None:
        for puzzle in puzzles:
            print(*puzzle.numbers, "->", puzzle.target)
    else:
        _write_puzzles(Path(config.out), puzzles)
        print(f"{len(puzzles)} puzzles are in {config.out}.")
    print(splits.description)
    print("\n".join(_statistics(puzzles)))
    return 0


def solve(words: Sequence[str]) -> int:
    """Show every solution of a puzzle."""
    config = arguments.parse(SolveConfig, arguments.SolveArguments, "solve", words)
    from nsr.tasks.countdown.puzzle import Puzzle
    from nsr.tasks.countdown.solver import solve

    equations = solve(Puzzle(numbers=config.numbers, target=config.target))
    for equation in equations:
        print(equation)
    count = len(equations)
    say("1 solution" if count == 1 else f"{count or 'no'} solutions")
    return 0


def fit(words: Sequence[str]) -> int:
    """Work out what a training takes in memory, and which flags make it fit."""
    from nsr.cli.fit import show_fit

    show_fit(arguments.parse(FitConfig, arguments.FitArguments, "fit", words))
    return 0


def play(words: Sequence[str]) -> int:
    """Show a model's attempts at a puzzle, with their verdicts."""
    config = arguments.parse(PlayConfig, arguments.PlayArguments, "play", words)
    from nsr.tasks.countdown.puzzle import Puzzle

    Puzzle(numbers=config.numbers, target=config.target)  # refused before a model is loaded
    _check_device(config.device)
    from nsr.tools.play import play

    play(config)
    return 0


def explain(words: Sequence[str]) -> int:
    """Show what each objective asks of the logits, at tokens of a real rollout."""
    config = arguments.parse(ExplainConfig, arguments.ExplainArguments, "explain", words)
    from nsr.algorithms.objectives import find_objective
    from nsr.tasks.countdown.puzzle import Puzzle

    for name in config.objectives:
        find_objective(name)
    if config.target is not None:
        Puzzle(numbers=config.numbers, target=config.target)  # refused before a model is loaded
    _check_device(config.device)
    from nsr.report.explain import show_explanation
    from nsr.tools.explain import explain

    show_explanation(explain(config))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__.rstrip("_"): command
    for command in (
        baseline,
        train,
        eval_,
        suite,
        watch,
        report,
        explain,
        warmstart,
        export,
        data,
        solve,
        play,
        fit,
    )
}
"""The commands by name; the docstring of each is its line in the help."""

RUNS = frozenset({"baseline", "train", "eval", "suite", "warmstart"})
"""Commands whose work goes on where nobody reads what they print."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The name most like the one given."""
    by_capitals = {known.upper(): known for known in names}
    return by_capitals[difflib.get_close_matches(name.upper(), by_capitals, n=1, cutoff=0.0)[0]]


def _is_ready(config: RunConfig) -> bool:
    """Whether there is something to do. Raises ValueError where the folder or the device cannot be used."""
    from nsr.runs.folder import check_folder

    if check_folder(config) == "complete":
        print(f"{config.run_path} is complete.")
        return False
    _check_device(config.device)
    return True


def _check_device(device: str) -> None:
    from nsr.memory.preflight import check_device

    check_device(device)


def _check_objective(config: TrainConfig) -> None:
    from nsr.algorithms.objectives import OBJECTIVES

    name = config.objective
    if name not in OBJECTIVES:
        known, meant = ", ".join(OBJECTIVES), nearest(name, OBJECTIVES)
        raise UserError(f"--objective is {name!r} but must be one of {known}: did you mean {meant}?")
    if (config.advantage or OBJECTIVES[name].advantage) == "group" and config.group_size == 1:
        raise UserError(
            f"--group_size is 1 but must be at least 2 where rewards are normalized within a group, as {name} does: "
            "use 2 or more, or `--advantage none`."
        )


def _write_puzzles(path: Path, puzzles: Sequence[Puzzle]) -> None:
    """Write puzzles with the columns that every source has, `nums` and `target`."""
    from nsr.runs.files import write_atomic

    if path.exists():
        raise UserError(f"--out is {str(path)!r}, which exists: choose another name, or delete it.")
    if not path.parent.is_dir():
        raise UserError(f"--out is {str(path)!r} but {path.parent} is no folder: make it, or choose another.")
    rows = [{"nums": list(puzzle.numbers), "target": puzzle.target} for puzzle in puzzles]
    if path.suffix == ".jsonl":
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())


def _statistics(puzzles: Sequence[Puzzle]) -> list[str]:
    """Lines that say what puzzles look like: how many numbers, how large, how large a target."""
    counts = Counter(len(puzzle.numbers) for puzzle in puzzles)
    repeats = sum(len(set(puzzle.numbers)) < len(puzzle.numbers) for puzzle in puzzles)
    shares = [f"{counts[count] / len(puzzles):.1%} have {count} numbers" for count in sorted(counts)]
    return [
        f"{len(puzzles)} puzzles: " + ", ".join([*shares, f"{repeats / len(puzzles):.1%} repeat a number"]),
        "numbers: " + _spread([number for puzzle in puzzles for number in puzzle.numbers]),
        "targets: " + _spread([puzzle.target for puzzle in puzzles]),
    ]


def _spread(values: list[int]) -> str:
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    text = f"{min(values)} to {max(values)}, mean {statistics.mean(values):.1f}"
    return f"{text}, quartiles {first:g}, {middle:g}, {third:g}"
