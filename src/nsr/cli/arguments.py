"""Flags -> settings: tyro reads the words, and the settings check what it read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, cast

import tyro

from nsr.config import (
    PRESETS,
    BaselineConfig,
    DataConfig,
    EvalConfig,
    ExplainConfig,
    ExportConfig,
    FitConfig,
    PlayConfig,
    ReportConfig,
    SolveConfig,
    SuiteConfig,
    TrainConfig,
    WarmstartConfig,
    WatchConfig,
    with_preset,
)

_Settings = TypeVar("_Settings")
_Run = TypeVar("_Run", BaselineConfig, TrainConfig)
_Numbers = Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NUMBER [NUMBER ...]")]
_AnyFolders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER ...]")]
_Folders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
_Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
_Models = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL ...]")]
_Temperatures = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT[,FLOAT...]",
        instance_from_str=lambda words: tuple(map(float, words[0].split(","))),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: [",".join(f"{value:g}" for value in values)],
    ),
]


def parse_run(config_type: type[_Run], words: Sequence[str]) -> _Run:
    """The settings of a run from flags: a flag that is given wins over --preset, and that over the defaults.

    Raises ValueError for settings that are out of range, SystemExit (by tyro) for flags that cannot be read.
    """
    arguments_type = TrainArguments if config_type is TrainConfig else BaselineArguments
    preset = _preset_name(words)
    default = arguments_type(**dataclasses.asdict(with_preset(config_type, preset)), preset=preset)
    return parse(config_type, arguments_type, config_type.command, words, default=default)


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """The settings of a run that flags give, by name, and no others. They are checked when a run takes them.

    Raises SystemExit (by tyro) for flags that cannot be read.
    """
    arguments = _read(TrainArguments, "train", words, TrainConfig.__doc__, TrainArguments())
    given = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    return {name: getattr(arguments, name) for name in given}


def parse_eval(words: Sequence[str]) -> EvalConfig:
    """The settings of `nsr eval` from flags, and from a preset what it says of model, puzzles and sampling.

    Raises as `parse_run`.
    """
    preset = _preset_name(words)
    values: dict[str, Any] = {}
    if preset is not None:
        run = with_preset(BaselineConfig, preset)
        shared = {field.name for field in dataclasses.fields(EvalConfig)} & PRESETS[preset].keys()
        values = {name: getattr(run, name) for name in shared} | {"temperatures": (run.temperature,)}
    return parse(EvalConfig, EvalArguments, "eval", words, default=EvalArguments(**values, preset=preset))


def _preset_name(words: Sequence[str]) -> str | None:
    name = None
    for index, word in enumerate(words):
        if word.startswith("--preset="):
            name = word.partition("=")[2]
        elif word == "--preset" and index + 1 < len(words):
            name = words[index + 1]
    return name


def parse(
    config_type: type[_Settings],
    arguments_type: type[Any],
    command: str,
    words: Sequence[str],
    default: Any = tyro.MISSING_NONPROP,
) -> _Settings:
    """Read flags as `arguments_type`, which only reads, and make the settings of them, which check."""
    arguments = _read(arguments_type, command, words, config_type.__doc__, default)
    names = [field.name for field in dataclasses.fields(cast(Any, config_type))]
    return config_type(**{name: getattr(arguments, name) for name in names})


def _read(arguments_type: type[Any], command: str, words: Sequence[str], description: str | None, default: Any) -> Any:
    return tyro.cli(
        arguments_type,
        args=list(words),
        prog=f"nsr {command}",
        description=description,
        default=default,
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )


class _Unchecked:
    """Flags as they were typed. The checks come with the settings that are made from them, outside of tyro."""

    def __post_init__(self) -> None:
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(_Unchecked, TrainConfig):
    """Flags of `nsr train`."""

    preset: str | None = None
    """Other defaults for the flags that are not given: `tiny` (the model that ships with nsr, on a CPU)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineArguments(_Unchecked, BaselineConfig):
    """Flags of `nsr baseline`."""

    preset: str | None = None
    """Other defaults for the flags that are not given: `tiny` (the model that ships with nsr, on a CPU)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalArguments(_Unchecked, EvalConfig):
    """Flags of `nsr eval`."""

    models: _Models = ()
    """Models: a hub id, `tiny`, or the folder of a model, of a run (its newest weights) or of a checkpoint."""

    temperatures: _Temperatures = EvalConfig.temperatures
    """Sampling temperatures, such as 0.7,1.0,1.3: every model is measured at each."""

    preset: str | None = None
    """Other defaults for the flags that are not given: `tiny` (the model that ships with nsr, on a CPU)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteArguments(_Unchecked, SuiteConfig):
    """Flags of `nsr suite`."""

    name: _Name
    """`study` (the paper's comparison), `tiny` (the same on the embedded model) or `lambda` (a sweep of it)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchArguments(_Unchecked, WatchConfig):
    """Flags of `nsr watch`."""

    folders: _AnyFolders = ("./output",)
    """Folders of runs, or folders that hold them at any depth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmstartArguments(_Unchecked, WarmstartConfig):
    """Flags of `nsr warmstart`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportArguments(_Unchecked, ReportConfig):
    """Flags of `nsr report`."""

    folders: _Folders
    """Folders of runs, or folders that hold some."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportArguments(_Unchecked, ExportConfig):
    """Flags of `nsr export`."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(_Unchecked, DataConfig):
    """Flags of `nsr data`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveArguments(_Unchecked, SolveConfig):
    """Flags of `nsr solve`."""

    numbers: _Numbers
    """The numbers of the puzzle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitArguments(_Unchecked, FitConfig):
    """Flags of `nsr fit`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayArguments(_Unchecked, PlayConfig):
    """Flags of `nsr play`."""

    numbers: _Numbers
    """The numbers of the puzzle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainArguments(_Unchecked, ExplainConfig):
    """Flags of `nsr explain`."""

    numbers: Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NUMBER ...]")] = ()
    """The numbers of the puzzle; by default the first puzzle of --data that the model solves sometimes, not always."""
