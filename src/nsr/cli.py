"""The command line, `nsr COMMAND`: flags -> settings -> the function that does it.

Names (command, objective, preset) and what else can be known at once are checked here, before anything heavy is
imported. A user's error ends in one sentence and exit code 2, an interruption in 130, and neither in a traceback.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import tyro

from nsr.config import (
    BaselineConfig,
    DataConfig,
    PlayConfig,
    RunConfig,
    SolveConfig,
    SuiteConfig,
    TrainConfig,
    WarmstartConfig,
    with_preset,
)

if TYPE_CHECKING:
    from nsr.task.puzzle import Puzzle

BAD_INPUT, INTERRUPTED = 2, 130
_Settings = TypeVar("_Settings")
_Run = TypeVar("_Run", BaselineConfig, TrainConfig)
_Numbers = Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NUMBER [NUMBER ...]")]
_Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default that of this process); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here, where a reader that went away is no error
        return code
    except SystemExit as end:  # tyro has shown its help, or said what it cannot read
        return end.code if isinstance(end.code, int) else BAD_INPUT
    except KeyboardInterrupt:
        _say("Interrupted. A run goes on with the same command and --resume.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        if not _is_for_user(error):
            raise
        _say(f"error: {error}")
        return BAD_INPUT


def baseline_main() -> int:
    """`python baseline.py ...`: the same as `nsr baseline ...`."""
    return main(["baseline", *sys.argv[1:]])


def train_main() -> int:
    """`python experiment.py ...`: the same as `nsr train ...`."""
    return main(["train", *sys.argv[1:]])


def parse_run(config_type: type[_Run], words: Sequence[str]) -> _Run:
    """The settings of a run from flags: a flag that is given wins over --preset, and that over the defaults.

    Raises ValueError for settings that are out of range, SystemExit (by tyro) for flags that cannot be read.
    """
    arguments_type = _TrainArguments if config_type is TrainConfig else _BaselineArguments
    preset = _preset_name(words)
    default = arguments_type(**dataclasses.asdict(with_preset(config_type, preset)), preset=preset)
    return _parse(config_type, arguments_type, config_type.command, words, default=default)


def baseline(words: Sequence[str]) -> int:
    """Evaluate a model as it is, without training."""
    config = parse_run(BaselineConfig, words)
    if _is_ready(config):
        from nsr.evaluation.baseline import run_baseline

        run_baseline(config)
    return 0


def train(words: Sequence[str]) -> int:
    """Train a model with one of the objectives, and evaluate it on the way."""
    config = parse_run(TrainConfig, words)
    _check_objective(config)
    if _is_ready(config):
        from nsr.learning.trainer import train

        train(config)
    from nsr.reporting.summary import summarize

    summarize(config.run_path)
    return 0


def suite(words: Sequence[str]) -> int:
    """Run a named list of runs: study, tiny or lambda."""
    config = _parse(SuiteConfig, _SuiteArguments, "suite", words)
    from nsr.suite import run_suite

    return run_suite(config)


def warmstart(words: Sequence[str]) -> int:
    """Teach a model the format and some arithmetic on the solver's traces."""
    config = _parse(WarmstartConfig, _WarmstartArguments, "warmstart", words)
    _check_device(config.device)
    from nsr.learning.warmstart import warmstart

    warmstart(config)
    return 0


def data(words: Sequence[str]) -> int:
    """Show or write the puzzles of a source, with statistics."""
    config = _parse(DataConfig, _DataArguments, "data", words)
    from nsr.task.data import load_splits

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
    config = _parse(SolveConfig, _SolveArguments, "solve", words)
    from nsr.task.puzzle import Puzzle
    from nsr.task.solver import solve

    equations = solve(Puzzle(numbers=config.numbers, target=config.target))
    for equation in equations:
        print(equation)
    count = len(equations)
    _say("1 solution" if count == 1 else f"{count or 'no'} solutions")
    return 0


def play(words: Sequence[str]) -> int:
    """Show a model's attempts at a puzzle, with their verdicts."""
    config = _parse(PlayConfig, _PlayArguments, "play", words)
    from nsr.task.puzzle import Puzzle

    Puzzle(numbers=config.numbers, target=config.target)  # refused before a model is loaded
    _check_device(config.device)
    from nsr.evaluation.play import play

    play(config)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command for command in (baseline, train, suite, warmstart, data, solve, play)
}
"""The commands by name; the docstring of each is its line in the help."""


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        from importlib import metadata

        print(metadata.version("nsr"))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ValueError(
            f"the command is {name!r} but must be one of {known}: did you mean {_nearest(name, COMMANDS)}?"
        )
    return COMMANDS[name](rest)


def _help() -> str:
    lines = [f"  {name:<10} {(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nsr COMMAND [FLAGS]",
            "",
            "Reinforcement learning of language models on the Countdown numbers game.",
            "",
            *lines,
            "",
            "`nsr COMMAND --help` lists the flags of a command. On two cores and without a GPU, begin with:",
            "  nsr train --preset tiny",
        ]
    )


def _nearest(name: str, names: Iterable[str]) -> str:
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
    from nsr.runs.preflight import check_device

    check_device(device)


def _check_objective(config: TrainConfig) -> None:
    from nsr.learning.objective import OBJECTIVES

    name = config.objective
    if name not in OBJECTIVES:
        known, nearest = ", ".join(OBJECTIVES), _nearest(name, OBJECTIVES)
        raise ValueError(f"--objective is {name!r} but must be one of {known}: did you mean {nearest}?")
    if (config.advantage or OBJECTIVES[name].advantage) == "group" and config.group_size == 1:
        raise ValueError(
            f"--group_size is 1 but must be at least 2 where rewards are normalized within a group, as {name} does: "
            "use 2 or more, or `--advantage none`."
        )


def _is_for_user(error: ValueError) -> bool:
    """Whether nsr itself raised the error. One that comes out of a library is a bug, and keeps its traceback."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "nsr"


def _write_puzzles(path: Path, puzzles: Sequence[Puzzle]) -> None:
    """Write puzzles with the columns that every source has, `nums` and `target`."""
    from nsr.runs.files import write_atomic

    if path.exists():
        raise ValueError(f"--out is {str(path)!r}, which exists: choose another name, or delete it.")
    if not path.parent.is_dir():
        raise ValueError(f"--out is {str(path)!r} but {path.parent} is no folder: make it, or choose another.")
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


def _say(text: str) -> None:
    from nsr.runs.progress import printable

    print(printable(text).plain, file=sys.stderr)


def _preset_name(words: Sequence[str]) -> str | None:
    name = None
    for index, word in enumerate(words):
        if word.startswith("--preset="):
            name = word.partition("=")[2]
        elif word == "--preset" and index + 1 < len(words):
            name = words[index + 1]
    return name


def _parse(
    config_type: type[_Settings],
    arguments_type: type[Any],
    command: str,
    words: Sequence[str],
    default: Any = tyro.MISSING_NONPROP,
) -> _Settings:
    """Read flags as `arguments_type`, which only reads, and make the settings of them, which check."""
    arguments = tyro.cli(
        arguments_type,
        args=list(words),
        prog=f"nsr {command}",
        description=config_type.__doc__,
        default=default,
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )
    names = [field.name for field in dataclasses.fields(cast(Any, config_type))]
    return config_type(**{name: getattr(arguments, name) for name in names})


class _Unchecked:
    """Flags as they were typed. The checks come with the settings that are made from them, outside of tyro."""

    def __post_init__(self) -> None:
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrainArguments(_Unchecked, TrainConfig):
    preset: str | None = None
    """Other defaults for the flags that are not given: `tiny` (the model that ships with nsr, on a CPU)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BaselineArguments(_Unchecked, BaselineConfig):
    preset: str | None = None
    """Other defaults for the flags that are not given: `tiny` (the model that ships with nsr, on a CPU)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SuiteArguments(_Unchecked, SuiteConfig):
    name: _Name
    """`study` (the paper's comparison), `tiny` (the same on the embedded model) or `lambda` (a sweep of it)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WarmstartArguments(_Unchecked, WarmstartConfig):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DataArguments(_Unchecked, DataConfig):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SolveArguments(_Unchecked, SolveConfig):
    numbers: _Numbers
    """The numbers of the puzzle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PlayArguments(_Unchecked, PlayConfig):
    numbers: _Numbers
    """The numbers of the puzzle."""
