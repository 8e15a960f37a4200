"""Flags -> settings: tyro reads the words, and the settings check what it read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, cast

import tyro

from nsr.config import (
    BaselineConfig,
    DataConfig,
    ExplainConfig,
    PlayConfig,
    ReportConfig,
    SolveConfig,
    SuiteConfig,
    TrainConfig,
    WarmstartConfig,
    with_preset,
)

_Settings = TypeVar("_Settings")
_Run = TypeVar("_Run", BaselineConfig, TrainConfig)
_Numbers = Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NUMBER [NUMBER ...]")]
_Folders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
_Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


def parse_run(config_type: type[_Run], words: Sequence[str]) -> _Run:
    """The settings of a run from flags: a flag that is given wins over --preset, and that over the defaults.

    Raises ValueError for settings that are out of range, SystemExit (by tyro) for flags that cannot be read.
    """
    arguments_type = TrainArguments if config_type is TrainConfig else BaselineArguments
    preset = _preset_name(words)
    default = arguments_type(**dataclasses.asdict(with_preset(config_type, preset)), preset=preset)
    return parse(config_type, arguments_type, config_type.command, words, default=default)


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
class SuiteArguments(_Unchecked, SuiteConfig):
    """Flags of `nsr suite`."""

    name: _Name
    """`study` (the paper's comparison), `tiny` (the same on the embedded model) or `lambda` (a sweep of it)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmstartArguments(_Unchecked, WarmstartConfig):
    """Flags of `nsr warmstart`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportArguments(_Unchecked, ReportConfig):
    """Flags of `nsr report`."""

    folders: _Folders
    """Folders of runs, or folders that hold some."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(_Unchecked, DataConfig):
    """Flags of `nsr data`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveArguments(_Unchecked, SolveConfig):
    """Flags of `nsr solve`."""

    numbers: _Numbers
    """The numbers of the puzzle."""


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
