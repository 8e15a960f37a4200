"""How far a run is: read from its folder, whole or half-written, quickly enough to be done every second."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nsr.config import to_record
from nsr.config.run import RunConfig
from nsr.errors import UserError
from nsr.runs.files import Record, read_json, read_last_lines
from nsr.runs.folder import evaluation_paths, is_complete, is_held, read_config

State = Literal["waiting", "running", "complete", "interrupted", "collapsed", "failed"]

RECENT = 10
"""Steps that a "recent" mean is over."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What is known of a run at one moment; None where nothing is known yet."""

    name: str
    state: State
    step: int = 0
    """Steps that are made."""
    total: int = 0
    """Steps of the whole run; 0 for an evaluation alone."""
    accuracy: float | None = None
    """The latest evaluation's, else the recent steps'."""
    low: float | None = None
    """Lower end of the evaluation's 95% interval; None where `accuracy` is of the recent steps."""
    high: float | None = None
    evaluated: int | None = None
    """The step that the latest evaluation was made after."""
    remaining: float | None = None
    """Estimated seconds to the end."""
    step_seconds: float | None = None
    """Mean of the recent steps, as the next three."""
    reward: float | None = None
    entropy: float | None = None
    length: float | None = None
    warning: str | None = None
    """The first sign of a collapse, where there is one."""


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs at and below `folder`, by name. Folders that vanish meanwhile are left out."""
    seen: set[str] = set()

    def walk(path: Path) -> Iterator[Path]:
        real = os.path.realpath(path)
        if real in seen:  # a link that leads back
            return
        seen.add(real)
        try:
            if (path / "config.json").exists():
                yield path  # what lies inside (checkpoints, the model) is the run's
                return
            inside = sorted(entry.path for entry in os.scandir(path) if entry.is_dir())
        except PermissionError:
            yield path  # whoever reads it will say so
            return
        except OSError:
            return
        for name in inside:
            yield from walk(Path(name))

    return walk(folder)


def planned_status(config: RunConfig, state: State = "waiting") -> RunStatus:
    """The status of a run that has no folder yet."""
    return RunStatus(name=config.run_name, state=state, total=_total(to_record(config)))


def read_status(path: Path, name: str | None = None, *, now: float | None = None) -> RunStatus | None:
    """The status of the run in a folder, shown as `name` (by default the folder's); None if it holds another thing.

    A model's folder has a config.json too. `now` is the time since the epoch; by default it is asked for.

    Raises:
        ValueError: the folder is broken; one sentence.
        OSError: it cannot be read, or has vanished.
    """
    config = read_config(path)
    if "command" not in config:
        return None
    try:
        return _status(path, config, name or path.name, time.time() if now is None else now)
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path} holds what no run writes ({type(error).__name__}: {error}).") from error


def _status(path: Path, config: dict[str, Any], name: str, now: float) -> RunStatus:
    held = is_held(path)  # before the rest: a run that ends in between is then complete
    metrics = read_last_lines(path / "metrics.jsonl", RECENT)
    timings = read_last_lines(path / "timings.jsonl", RECENT)
    evaluations = evaluation_paths(path)
    evaluated = max(evaluations, default=None)
    evaluation = {} if evaluated is None else read_json(evaluations[evaluated])
    accuracy, low, high = _accuracy(evaluation)
    total = _total(config)
    complete = is_complete(path, total)
    step = int(metrics[-1]["step"]) if metrics else 0
    events = read_last_lines(path / "events.jsonl", RECENT)
    ended = "collapsed" if events and ended_by_collapse(events[-1], step) else "interrupted"
    state: State = "complete" if complete else "running" if held else ended
    step_seconds = _mean(timings, "step_seconds")
    remaining = None
    if state == "running" and total and step_seconds is not None:
        ahead = (total - step) * step_seconds + _evaluation_seconds(config, evaluation, evaluated, timings)
        remaining = max(0.0, ahead - max(0.0, now - (path / "timings.jsonl").stat().st_mtime))
    return RunStatus(
        name=name,
        state=state,
        step=step,
        total=total,
        accuracy=_mean(metrics, "correct_ratio") if accuracy is None else accuracy,
        low=low,
        high=high,
        evaluated=None if accuracy is None else evaluated,
        remaining=remaining,
        step_seconds=step_seconds,
        reward=_mean(metrics, "reward_mean"),
        entropy=_mean(metrics, "entropy"),
        length=_mean(metrics, "response_length"),
        warning=_warning(events),
    )


def ended_by_collapse(event: Record, step: int) -> bool:
    """Whether the last event of a run that made `step` steps is that --stop_on_collapse ended it there."""
    return event.get("event") == "stopped" and event.get("step") == step


def _warning(events: Sequence[Record]) -> str | None:
    found = [event for event in events if event.get("event") == "collapse"]
    return f"collapse at step {found[0]['step']}: {found[0]['reason']}" if found else None


def _total(config: dict[str, Any]) -> int:
    return int(config.get("n_train_steps") or 0)


def _accuracy(evaluation: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    interval = evaluation.get("accuracy")
    if interval is None:
        return None, None, None
    return float(interval["estimate"]), float(interval["low"]), float(interval["high"])


def _evaluation_seconds(
    config: dict[str, Any], evaluation: dict[str, Any], evaluated: int | None, timings: Sequence[dict[str, Any]]
) -> float:
    """Seconds of the evaluations ahead: their samples, as long as the last one's, at the recent steps' speed."""
    speed, length = _mean(timings, "sampling_tokens_per_second"), evaluation.get("response_length")
    if evaluated is None or not speed or length is None:
        return 0.0
    every = config["eval_every"] or config["n_train_steps"]
    total = config["n_train_steps"]
    ahead = 0 if evaluated >= total else math.ceil(total / every) - evaluated // every
    return ahead * config["eval_puzzles"] * config["eval_samples"] * length / speed


def _mean(records: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [float(record[key]) for record in records if record.get(key) is not None]
    return math.fsum(values) / len(values) if values else None
