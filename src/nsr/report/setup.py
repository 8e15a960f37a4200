"""Settings and environment of the runs of a report: first what differs between them, then what all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsr.report.collect import number
from nsr.report.methods import plain
from nsr.report.run import RunRecord

_HIDDEN = frozenset({"exp_name", "output_dir", "resume", "command"})
_UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Values of all runs by name."""

    differing: tuple[str, ...]
    """Names of what is not the same in all runs that have it: a baseline has no learning rate."""
    runs: tuple[tuple[str, tuple[str, ...]], ...]
    """Each run with its values of those."""
    common: tuple[tuple[str, str], ...]
    """Name and value of what is the same in all runs."""


def settings(runs: Sequence[RunRecord]) -> Setup:
    """The settings of the runs, with how far they went and how long that took."""
    return _setup(runs, [{**_settings(run), **_progress(run)} for run in runs])


def environment(runs: Sequence[RunRecord]) -> Setup:
    """What the runs ran on."""
    return _setup(runs, [_flat(run.environment or {}) for run in runs])


def _settings(run: RunRecord) -> dict[str, str]:
    shown = {name: value for name, value in run.config.items() if name not in _HIDDEN and name != "resolved"}
    return {plain(name): plain(value) for name, value in shown.items()}


def _progress(run: RunRecord) -> dict[str, str]:
    steps = run.evaluations[-1].step if run.evaluations else 0
    seconds = [value for record in run.timings if (value := number(record.get("step_seconds"))) is not None]
    took = {"training minutes": f"{sum(seconds) / 60:.1f}"} if seconds else {}
    return {"last evaluated step": str(steps), **took}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested records as one, with the names joined: `packages torch`."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        label = f"{prefix}{plain(name)}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{label} ")
        elif name == "memory" and number(value) is not None:
            flat[label] = f"{float(value) / 1e9:.1f} GB"
        elif name == "gpus" and isinstance(value, list):
            flat[label] = (
                ", ".join(plain(gpu.get("name") if isinstance(gpu, Mapping) else gpu) for gpu in value) or "none"
            )
        elif name == "earlier" and isinstance(value, list):
            flat["earlier environments"] = str(len(value))
        else:
            flat[label] = plain(value)
    return flat


def _setup(runs: Sequence[RunRecord], values: Sequence[Mapping[str, str]]) -> Setup:
    names = list(dict.fromkeys(name for record in values for name in record))
    differing = tuple(name for name in names if len({record[name] for record in values if name in record}) > 1)
    return Setup(
        differing=differing,
        runs=tuple(
            (run.name, tuple(record.get(name, _UNKNOWN) for name in differing))
            for run, record in zip(runs, values, strict=True)
        ),
        common=tuple(
            (name, next(record[name] for record in values if name in record)) for name in names if name not in differing
        ),
    )
