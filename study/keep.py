"""What is kept of the runs, in docs/results/data: small files that every table and figure is made from.

Of an evaluation, counts a puzzle and no texts; of a training, its metrics and a digest of its metrics.jsonl. Puzzles of
the real rows, which are others' to publish, are named by a digest of their key.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nsr.runs.files import iterate_gzip_lines, read_gzip_lines, read_json, write_gzip_lines
from nsr.runs.folder import (
    evaluation_path,
    is_complete,
    read_mechanism,
    read_metrics,
    read_timings,
    samples_path,
)
from nsr.tasks.countdown.expression import MalformedExpression, canonical, evaluate, parse
from nsr.tasks.countdown.grader import Verdict, extract_answer
from nsr.tasks.countdown.solver import solve
from study.measuring import Measurement
from study.runs import Training
from study.sets import BIG, PuzzleSet, read_set

MECHANISM_SEED = 10
NUM_MECHANISM = 10
"""Puzzles of the set of many samples whose answers are counted one by one, drawn by `MECHANISM_SEED`."""
DECIMALS = 6
_SECONDS = ("step_seconds", "evaluation_seconds")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of one model on one set. Lists are over the set's puzzles, in its order."""

    model: str
    method: str
    """The method's name; "base" for the model that every training starts from."""
    part: str
    """What the training was for (see `study.runs.Training`); "base" for none."""
    seed: int | None
    rate: float | None
    temperature: float
    num_samples: int
    correct: list[int]
    """Right samples of each puzzle."""
    equations: list[list[int]]
    """How often each distinct right equation was given, the most frequent first."""
    tokens: list[int]
    """Sampled tokens of each puzzle."""
    nats: list[float]
    """Their entropies, summed."""
    greedy: list[int]
    """1 where temperature 0 is right."""
    verdicts: dict[str, int]
    """Samples by verdict."""
    truncated: int
    """Samples that were cut off."""
    seconds: float
    """What the evaluation took."""
    commit: str
    """Of the code that made it."""


@dataclass(frozen=True, kw_only=True)
class KeptSet:
    """The puzzles of a set."""

    name: str
    puzzles: list[str]
    """Canonical keys; of the real rows the first 16 digits of their SHA-256."""
    sizes: list[int]
    """How many numbers each has."""
    solutions: list[int]
    """How many canonical solutions each has."""


@dataclass(frozen=True, kw_only=True)
class KeptTraining:
    """What is kept of one training. Lists are over its steps."""

    name: str
    method: str
    part: str
    seed: int
    rate: float
    metrics: dict[str, list[float]]
    """Every logged number that is not 0 throughout."""
    mechanism: list[dict[str, Any]]
    """What became of the probe's tokens, at steps 0, 40 and 80."""
    metrics_sha256: str
    """Of the run's metrics.jsonl: a second run on the same machine gives the same."""
    seconds: float
    """Sampling and learning of all steps, and its own evaluations."""
    commit: str
    """Of the code that made it, with a + where files of it were changed."""


@dataclass(frozen=True, kw_only=True)
class KeptAnswers:
    """What one model answered to the puzzles of the mechanism."""

    model: str
    method: str
    answers: dict[str, dict[str, int]]
    """By key: how often each answer was given. A right one is its canonical equation; see `answer_name`."""


def keep(root: Path, data: Path, trainings: Sequence[Training], measurements: Sequence[Measurement]) -> None:
    """Write the files of `data` from the runs below `root` that are complete. What other runs left there is removed."""
    data.mkdir(parents=True, exist_ok=True)
    sets = list(dict.fromkeys(one.puzzles for one in measurements))
    write_gzip_lines(data / "sets.jsonl.gz", (asdict(_set(root, one)) for one in sets))
    done = [one for one in measurements if is_complete(one.config.run_path)]
    for one in sets:
        of_set = [kept_evaluation(root, measurement) for measurement in done if measurement.puzzles == one]
        if of_set:
            write_gzip_lines(data / f"{one.name}.jsonl.gz", map(asdict, of_set))
    made = [training for training in trainings if is_complete(training.config.run_path)]
    write_gzip_lines(data / "trainings.jsonl.gz", (asdict(_training(one)) for one in made))
    looked_at = [one for one in done if one.puzzles == BIG and one.config.temperature == 1.0]
    write_gzip_lines(data / "answers.jsonl.gz", (asdict(_answers(root, one)) for one in looked_at))
    written = {"sets", "trainings", "answers", *(one.puzzles.name for one in done)}
    for path in data.glob("*.jsonl.gz"):
        if path.name.removesuffix(".jsonl.gz") not in written:
            path.unlink()


def read_sets(data: Path) -> dict[str, KeptSet]:
    """The puzzles of each set, by its name."""
    return {record["name"]: KeptSet(**record) for record in read_gzip_lines(data / "sets.jsonl.gz")}


def read_kept(data: Path, one: PuzzleSet) -> dict[str, Kept]:
    """What is kept of every model on a set, by its name; empty where none was measured."""
    path = data / f"{one.name}.jsonl.gz"
    return {record["model"]: Kept(**record) for record in read_gzip_lines(path)} if path.exists() else {}


def read_trainings(data: Path) -> dict[str, KeptTraining]:
    """What is kept of every training, by its name."""
    return {record["name"]: KeptTraining(**record) for record in read_gzip_lines(data / "trainings.jsonl.gz")}


def read_answers(data: Path) -> list[KeptAnswers]:
    """What the models answered to the puzzles of the mechanism."""
    return [KeptAnswers(**record) for record in read_gzip_lines(data / "answers.jsonl.gz")]


def metrics_digest(run: Path) -> str:
    """SHA-256 of a run's metrics.jsonl."""
    return hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()


def answer_name(text: str, verdict: str) -> str:
    """What a completion answered: an equation in canonical form, with its value where that is wrong, or its verdict."""
    if verdict == Verdict.NO_ANSWER.value:
        return "no answer"
    answer = extract_answer(text)
    assert answer is not None
    try:
        node = parse(answer)
        if verdict == Verdict.CORRECT.value:
            return canonical(node)
        return f"{canonical(node)} = {evaluate(node)}"
    except (MalformedExpression, ZeroDivisionError):
        return verdict.replace("_", " ")


def _set(root: Path, one: PuzzleSet) -> KeptSet:
    puzzles = read_set(root, one)
    return KeptSet(
        name=one.name,
        puzzles=[_digest(puzzle.key) if one.hashed else puzzle.key for puzzle in puzzles],
        sizes=[len(puzzle.numbers) for puzzle in puzzles],
        solutions=[len(solve(puzzle)) for puzzle in puzzles],
    )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def kept_evaluation(root: Path, measurement: Measurement) -> Kept:
    """What is kept of a complete measurement, counted over its samples, in the order of the set's file."""
    run, training = measurement.config.run_path, measurement.training
    path = evaluation_path(run, 0)
    keys = [puzzle.key for puzzle in read_set(root, measurement.puzzles)]
    equations = {key: Counter[str]() for key in keys}
    tokens, verdicts = Counter[str](), Counter[str]()
    truncated = 0
    entropies = dict.fromkeys(keys, 0.0)
    for row in iterate_gzip_lines(samples_path(path)):
        key = row["puzzle"]
        if row["equation"] is not None:
            equations[key][row["equation"]] += 1
        tokens[key] += row["tokens"]
        entropies[key] += row["entropy"] * row["tokens"]
        verdicts[row["verdict"]] += 1
        truncated += row["truncated"]
    greedy = {row["puzzle"]: row["verdict"] for row in iterate_gzip_lines(samples_path(path, greedy=True))}
    return Kept(
        model=measurement.model,
        method="base" if training is None else training.method,
        part="base" if training is None else training.part,
        seed=None if training is None else training.config.seed,
        rate=None if training is None else training.config.lr,
        temperature=measurement.config.temperature,
        num_samples=measurement.config.eval_samples,
        correct=[found.total() for found in equations.values()],
        equations=[sorted(found.values(), reverse=True) for found in equations.values()],
        tokens=[tokens[key] for key in keys],
        nats=[round(entropies[key], 3) for key in keys],
        greedy=[int(greedy[key] == Verdict.CORRECT.value) for key in keys],
        verdicts={verdict.value: verdicts[verdict.value] for verdict in Verdict},
        truncated=truncated,
        seconds=round(read_timings(run)[-1]["evaluation_seconds"], 1),
        commit=_commit(run),
    )


def _training(training: Training) -> KeptTraining:
    run = training.config.run_path
    metrics, timings = read_metrics(run), read_timings(run)
    names = [name for name in metrics[0] if any(record[name] for record in metrics)]
    return KeptTraining(
        name=training.name,
        method=training.method,
        part=training.part,
        seed=training.config.seed,
        rate=training.config.lr,
        metrics={name: [round(record[name], DECIMALS) for record in metrics] for name in names},
        mechanism=read_mechanism(run),
        metrics_sha256=metrics_digest(run),
        seconds=round(sum(record.get(name, 0.0) for record in timings for name in _SECONDS), 1),
        commit=_commit(run),
    )


def _commit(run: Path) -> str:
    found = read_json(run / "environment.json").get("commit") or {"id": "unknown", "dirty": False}
    return f"{found['id']}{'+' if found['dirty'] else ''}"


def _answers(root: Path, measurement: Measurement) -> KeptAnswers:
    keys = mechanism_puzzles([puzzle.key for puzzle in read_set(root, BIG)])
    answers = {key: Counter[str]() for key in keys}
    for row in iterate_gzip_lines(samples_path(evaluation_path(measurement.config.run_path, 0))):
        if row["puzzle"] in answers:
            answers[row["puzzle"]][answer_name(row["text"], row["verdict"])] += 1
    return KeptAnswers(
        model=measurement.model,
        method="base" if measurement.training is None else measurement.training.method,
        answers={key: dict(counts.most_common()) for key, counts in answers.items()},
    )


def mechanism_puzzles(keys: Sequence[str]) -> list[str]:
    """The keys of the puzzles whose answers are looked at."""
    return random.Random(MECHANISM_SEED).sample(list(keys), min(NUM_MECHANISM, len(keys)))
