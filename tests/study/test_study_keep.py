from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import pytest
from rich.console import Console

from nsr.config import BaselineConfig, TrainConfig, with_preset
from nsr.evaluation.baseline import run_baseline
from nsr.evaluation.record import Evaluation
from nsr.runs.folder import read_evaluation, read_metrics, read_samples
from nsr.training.loop import train
from study.keep import answer_name, keep, kept_evaluation, read_answers, read_kept, read_sets, read_trainings
from study.measuring import Measurement
from study.runs import Training
from study.sets import BIG, REAL, WIDE, PuzzleSet, read_set, write_sets

COUNT, SAMPLES = 4, 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder: the first puzzles of two sets measured with the embedded model, and one short training."""
    root = tmp_path_factory.mktemp("study")
    write_sets(root, None)
    REAL.path(root).write_text("".join(WIDE.path(root).read_text().splitlines(keepends=True)[:COUNT]))
    for one in (BIG, REAL):
        path = one.path(root)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:COUNT]))
        run_baseline(measurement(root, one).config, Console(file=io.StringIO()))
    train(training(root).config)
    return root


def measurement(root: Path, one: PuzzleSet) -> Measurement:
    config = dataclasses.replace(
        with_preset(BaselineConfig, "tiny"),
        data=one.source(root),
        eval_puzzles=COUNT,
        eval_samples=SAMPLES,
        output_dir=str(root / "measured" / one.name),
        exp_name="base",
    )
    return Measurement(puzzles=one, training=None, config=config)


def training(root: Path) -> Training:
    changes = {"n_train_steps": 2, "rollout_batch_size": 16, "eval_puzzles": 4, "eval_samples": 1, "eval_every": 0}
    config = dataclasses.replace(
        with_preset(TrainConfig, "tiny"), output_dir=str(root / "main"), exp_name="NSR_seed42", log_to="none", **changes
    )
    return Training(method="NSR", part="main", config=config)


def test_what_is_kept_is_what_the_evaluation_found(root: Path) -> None:
    run = measurement(root, BIG).config.run_path
    record, rows = Evaluation.from_json(read_evaluation(run, 0)), read_samples(run, 0)
    kept = kept_evaluation(root, measurement(root, BIG))
    keys = [puzzle.key for puzzle in read_set(root, BIG)]
    assert list(record.puzzles) != keys  # an evaluation has an order of its own
    assert dict(zip(keys, kept.correct, strict=True)) == dict(zip(record.puzzles, record.num_correct, strict=True))
    assert kept.correct == [sum(counts) for counts in kept.equations]
    assert {name: count / (COUNT * SAMPLES) for name, count in kept.verdicts.items()} == dict(record.verdicts)
    assert kept.truncated / (COUNT * SAMPLES) == record.truncated
    assert sum(kept.tokens) / (COUNT * SAMPLES) == record.response_length
    assert sum(kept.nats) / sum(kept.tokens) == pytest.approx(record.entropy, abs=1e-4)
    assert record.greedy_accuracy is not None
    assert sum(kept.greedy) / COUNT == record.greedy_accuracy.estimate
    of_first = [row["equation"] for row in rows if row["puzzle"] == keys[0] and row["equation"]]
    assert len(kept.equations[0]) == len(set(of_first))


def test_the_files_hold_it_all_and_are_read_again(root: Path, tmp_path: Path) -> None:
    measurements = [measurement(root, one) for one in (BIG, WIDE, REAL)]  # WIDE was never measured
    keep(root, tmp_path, [training(root)], measurements)
    assert read_kept(tmp_path, BIG) == {"base": kept_evaluation(root, measurements[0])}
    assert read_kept(tmp_path, WIDE) == {}
    (answers,) = read_answers(tmp_path)
    assert {sum(counts.values()) for counts in answers.answers.values()} == {SAMPLES}
    sets = read_sets(tmp_path)
    assert sets[BIG.name].puzzles == [puzzle.key for puzzle in read_set(root, BIG)]
    (made,) = read_trainings(tmp_path).values()
    run = training(root).config.run_path
    assert made.metrics["correct_ratio"] == [pytest.approx(one["correct_ratio"], abs=1e-6) for one in read_metrics(run)]
    assert made.metrics_sha256 == hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
    assert [record["step"] for record in made.mechanism] == [0, 2]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    keep(root, tmp_path, [training(root)], measurements)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_other_runs_left_is_removed(root: Path, tmp_path: Path) -> None:
    for name in (f"{WIDE.name}.jsonl.gz", "overlap.json"):
        (tmp_path / name).write_text("older")
    keep(root, tmp_path, [], [measurement(root, BIG)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "answers.jsonl.gz",
        "overlap.json",
        "sets.jsonl.gz",
        f"{BIG.name}.jsonl.gz",
        "trainings.jsonl.gz",
    }


def test_real_rows_are_kept_without_their_numbers(root: Path, tmp_path: Path) -> None:
    keep(root, tmp_path, [], [measurement(root, REAL)])
    names = read_sets(tmp_path)[REAL.name].puzzles
    keys = [puzzle.key for puzzle in read_set(root, REAL)]
    assert names == [hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys]
    assert read_answers(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "verdict", "name"),
    [
        ("<think>x", "no_answer", "no answer"),
        ("<answer>2*</answer>", "malformed", "malformed"),
        ("<answer>1/(2-2)</answer>", "division_by_zero", "division by zero"),
        ("<answer>44+35+19</answer>", "correct", "19 + 35 + 44"),
        ("<answer>35-19</answer>", "wrong_numbers", "35 - 19 = 16"),
        ("<answer>44/35-19</answer>", "wrong_value", "44 / 35 - 19 = -621/35"),
    ],
)
def test_an_answer_in_words(text: str, verdict: str, name: str) -> None:
    assert answer_name(text, verdict) == name
