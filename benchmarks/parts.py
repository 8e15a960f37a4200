"""What is measured: who takes part in each part, and which rows come of it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.driver import Contender, Outcome
from benchmarks.step_profile import PLACES, REST
from benchmarks.table import Row, rates, ratios, row_of
from benchmarks.work import Work

GROWTH = (32, 64, 128, 256, 512)
"""Samples of a step whose time is to grow no worse than linearly."""
TRL = ("trl", "trl_autocast")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the suite."""

    contenders: Callable[[Work], list[Contender]]
    rows: Callable[[str, list[Outcome]], list[Row]]
    """From the part's title and what came of its contenders."""


def _machine(work: Work) -> Contender:
    return Contender(name="machine", worker="machine", work=work)


def _machine_alone(work: Work) -> list[Contender]:
    return [_machine(work)]


def _machine_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    (machine,) = (outcome for outcome in outcomes if outcome.contender.worker == "machine")
    rows: list[Row] = []
    for kind, what, unit in (("matmul", "matrix products", "GFLOP/s"), ("copy", "copies, read and written", "GB/s")):
        for dtype in ("float32", "bfloat16"):
            values = [value / 1e9 for value in machine.values(f"{kind}_{dtype}")]
            rows.append(row_of(title, f"{what}, {dtype}", unit, machine, values))
    return rows


def _sampling(work: Work) -> list[Contender]:
    names = {
        "local": "nsr, local engine",
        "vllm": "nsr, vLLM",
        "generate": "transformers generate",
        "vllm_alone": "vLLM by itself",
    }
    return [Contender(name=name, worker=worker, work=work) for worker, name in names.items()]


def _sampling_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    by = by_worker(outcomes)
    rows = [row_of(title, outcome.contender.name, "tokens/s", outcome, rates(outcome)) for outcome in outcomes]
    for other, worst, best in (("generate", "2.5", "5"), ("vllm_alone", "1", "2")):
        values = ratios(rates(by["local"]), rates(by[other]))
        targets = {"target": worst, "goal": best} if by["local"].contender.work.model == "smollm2-135m" else {}
        what = f"local engine / {by[other].contender.name}"
        rows.append(row_of(title, what, "x", failed(by["local"], by[other]), values, **targets))
    return [*rows, *memory_rows(title, outcomes)]


def _learning(work: Work) -> list[Contender]:
    return [_machine(work), Contender(name="nsr", worker="learn", work=work)]


def _learning_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    by = by_worker(outcomes)
    machine, learn = by["machine"], by["learn"]
    work = learn.contender.work
    useful = [
        operations / seconds
        for operations, seconds in zip(learn.values("operations"), learn.values("seconds"), strict=True)
    ]
    shares = [100 * share for share in ratios(useful, machine.values(f"matmul_{work.dtype}"))]
    targets = {"target": "50", "goal": "70"} if work.model == "smollm2-135m" else {}
    return [
        row_of(title, "response tokens", "tokens/s", learn, rates(learn)),
        row_of(title, "useful operations", "GFLOP/s", learn, [value / 1e9 for value in useful]),
        row_of(title, f"share of the {work.dtype} matrix peak", "%", failed(learn, machine), shares, **targets),
        *memory_rows(title, [learn]),
    ]


def _step(work: Work) -> list[Contender]:
    names = {"step": "nsr, local engine"}
    if work.model == "tiny":
        names["step_as_in_a_run"] = "nsr, responses end by themselves"
    names["trl"] = f"TRL, {work.dtype} weights"
    if work.dtype == "bfloat16" and not work.device.startswith("cuda"):  # a GPU does not hold all three
        names["trl_autocast"] = "TRL, bfloat16 autocast"
    return [Contender(name=name, worker=worker, work=work) for worker, name in names.items()]


def _trl(work: Work) -> list[Contender]:
    names = {
        "trl": f"TRL, {work.dtype} weights",
        "trl_autocast": "TRL, bfloat16 autocast",
        "trl_defaults": "TRL's defaults",
    }
    return [Contender(name=name, worker=worker, work=work) for worker, name in names.items()]


def _trl_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    rows = [row_of(title, outcome.contender.name, "s", outcome, outcome.values("seconds")) for outcome in outcomes]
    return [*rows, *memory_rows(title, outcomes)]


def _step_vllm(work: Work) -> list[Contender]:
    return [Contender(name="nsr, vLLM", worker="step_vllm", work=work)]


def _step_vllm_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    return [*_seconds_rows(title, outcomes[0]), *memory_rows(title, outcomes)]


def _seconds_rows(title: str, ours: Outcome, target: str = "", goal: str = "") -> list[Row]:
    """The step and its two halves."""
    name = ours.contender.name
    rows = [row_of(title, name, "s", ours, ours.values("seconds"), target=target, goal=goal)]
    if ours.rounds:
        halves = ("sampling", "learning")
        rows += [row_of(title, f"{name}: {half}", "s", ours, ours.values(f"{half}_seconds")) for half in halves]
    return rows


def _step_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    by = by_worker(outcomes)
    ours, work = by["step"], by["step"].contender.work
    rows = _seconds_rows(title, ours, **({"target": "15", "goal": "8"} if work.model == "qwen3-1.7b" else {}))
    if short := by.get("step_as_in_a_run"):
        rows += _seconds_rows(title, short, target="3", goal="1.5")
    others = [outcome for outcome in outcomes if outcome.contender.worker in TRL]
    rows += [row_of(title, other.contender.name, "s", other, other.values("seconds")) for other in others]
    return [*rows, *_beside_trl(title, ours, others), *memory_rows(title, outcomes)]


def _beside_trl(title: str, ours: Outcome, others: Sequence[Outcome]) -> list[Row]:
    """The quickest of the others beside nsr: time, and memory."""
    measured = [outcome for outcome in others if outcome.rounds]
    if not measured:
        return []
    theirs = min(measured, key=lambda outcome: statistics.median(outcome.values("seconds")))
    name = theirs.contender.name
    speeds = ratios(theirs.values("seconds"), ours.values("seconds"))
    shares = ratios(*(outcome.values(peak_kind(outcome)) for outcome in (ours, theirs)))
    target, goal = {"smollm2-135m": ("3.5", "6"), "tiny": ("4", "10")}.get(ours.contender.work.model, ("", ""))
    return [
        row_of(title, f"{name} / nsr", "x", ours, speeds, target=target, goal=goal),
        row_of(title, f"peak memory, nsr / {name}", "x", ours, shares, target="0.7", goal="0.5"),
        *_less_what_was_before(title, ours, theirs),
    ]


def _less_what_was_before(title: str, ours: Outcome, theirs: Outcome) -> list[Row]:
    if peak_kind(ours) == "cuda_peak":  # of tensors alone: there is nothing before
        return []
    shares = ratios(of_model(ours), of_model(theirs))
    return [row_of(title, "the same, less what each held before its model", "x", ours, shares)]


def _growth(work: Work) -> list[Contender]:
    works = (dataclasses.replace(work, prompts=samples // work.group_size) for samples in GROWTH)
    return [Contender(name=f"{each.samples} samples", worker="step", work=each) for each in works]


def _growth_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    rows = [row_of(title, outcome.contender.name, "s", outcome, outcome.values("seconds")) for outcome in outcomes]
    first = per_sample(outcomes[0])
    for outcome in outcomes[1:]:
        what = f"a sample's time, {outcome.contender.name} / {outcomes[0].contender.name}"
        rows.append(row_of(title, what, "x", outcome, ratios(per_sample(outcome), first), target="1"))
    return rows


def _profile(work: Work) -> list[Contender]:
    return [Contender(name="nsr, local engine", worker="profile", work=work)]


def _profile_rows(title: str, outcomes: list[Outcome]) -> list[Row]:
    (step,) = outcomes
    rows = [row_of(title, "the step", "s", step, step.values("seconds"))]
    for name in [*PLACES, REST]:
        shares = [100 * share for share in ratios(step.values(f"in {name}"), step.values("seconds"))]
        rows.append(row_of(title, name, "%", step, shares))
    return rows


def memory_rows(title: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """Most that each process has held; on a GPU, most that its tensors have taken there."""
    rows: list[Row] = []
    for outcome in outcomes:
        if not outcome.rounds:
            continue
        kind = peak_kind(outcome)
        values = [value / 1e9 for value in outcome.values(kind)]
        where = "GPU memory" if kind == "cuda_peak" else "memory"
        rows.append(row_of(title, f"peak {where}, {outcome.contender.name}", "GB", outcome, values))
    return rows


def peak_kind(outcome: Outcome) -> str:
    """The measure of its memory: of its tensors on a GPU, or of its process."""
    return "cuda_peak" if outcome.values("cuda_peak") else "peak"


def by_worker(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """The outcomes by the contender's worker."""
    return {outcome.contender.worker: outcome for outcome in outcomes}


def failed(*outcomes: Outcome) -> Outcome:
    """The first that has trouble, else the first."""
    return next((outcome for outcome in outcomes if outcome.trouble), outcomes[0])


def per_sample(outcome: Outcome) -> list[float]:
    """Seconds a sample."""
    return [seconds / outcome.contender.work.samples for seconds in outcome.values("seconds")]


def of_model(outcome: Outcome) -> list[float]:
    """Peak memory less what the process held before there was a model, bytes."""
    return [peak - before for peak, before in zip(outcome.values("peak"), outcome.values("before"), strict=True)]


PARTS = {
    "machine": Part(contenders=_machine_alone, rows=_machine_rows),
    "sampling": Part(contenders=_sampling, rows=_sampling_rows),
    "learning": Part(contenders=_learning, rows=_learning_rows),
    "step": Part(contenders=_step, rows=_step_rows),
    "step_vllm": Part(contenders=_step_vllm, rows=_step_vllm_rows),
    "trl": Part(contenders=_trl, rows=_trl_rows),
    "growth": Part(contenders=_growth, rows=_growth_rows),
    "profile": Part(contenders=_profile, rows=_profile_rows),
}
"""The parts by the name that `--only` takes."""
DEFAULT = tuple(name for name in PARTS if name != "trl")
"""Those that are measured where none is named: how TRL is set was chosen once."""
