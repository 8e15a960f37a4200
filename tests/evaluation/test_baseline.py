from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from nsr.config import BaselineConfig
from nsr.evaluation.baseline import run_baseline
from nsr.evaluation.compare import Interval
from nsr.evaluation.record import DistinctCorrect, Evaluation, PassAtK, Split
from nsr.evaluation.tables import evaluation_table
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's architecture with random weights."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = build_tiny_tokenizer()
    build_tiny_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def settings(model_folder: Path, output: Path, **changes: object) -> BaselineConfig:
    values: dict = {
        "model_id": str(model_folder),
        "data": "synthetic",
        "device": "cpu",
        "max_tokens": 6,
        "eval_puzzles": 3,
        "eval_samples": 2,
        "output_dir": str(output),
        **changes,
    }
    return BaselineConfig(**values)


def run(config: BaselineConfig) -> tuple[Path, str]:
    console = Console(file=io.StringIO(), width=80)
    path = run_baseline(config, console)
    return path, console.file.getvalue()  # type: ignore[attr-defined]


def test_writes_a_run_with_one_evaluation_and_its_samples(model_folder: Path, tmp_path: Path) -> None:
    path, text = run(settings(model_folder, tmp_path))
    assert path == tmp_path / "baseline_6"
    evaluation = Evaluation.from_json(json.loads((path / "evaluations" / "step_000000.json").read_text()))
    assert evaluation.num_samples == 2
    assert len(evaluation.puzzles) == 3
    assert evaluation.greedy_accuracy is not None
    assert evaluation.coverage == 0.0
    with gzip.open(path / "evaluations" / "step_000000.samples.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [(row["puzzle"], row["sample"]) for row in rows] == [(key, i) for key in evaluation.puzzles for i in (0, 1)]
    assert json.loads((path / "done.json").read_text())["accuracy"] == evaluation.accuracy.estimate
    assert "memory" in text  # the preflight sum
    assert "accuracy, pass@1" in text


def test_the_same_settings_give_the_same_evaluation(model_folder: Path, tmp_path: Path) -> None:
    first, _ = run(settings(model_folder, tmp_path / "first"))
    second, _ = run(settings(model_folder, tmp_path / "second"))
    for name in ("step_000000.json", "step_000000.samples.jsonl.gz"):
        assert (first / "evaluations" / name).read_bytes() == (second / "evaluations" / name).read_bytes()


def test_a_complete_run_is_left_as_it_is(model_folder: Path, tmp_path: Path) -> None:
    path, _ = run(settings(model_folder, tmp_path))
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    _, text = run(settings(model_folder, tmp_path, resume=True))
    assert "is complete" in text
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_nothing_is_written_where_it_cannot_work(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsr.evaluation.baseline.available_memory", lambda _: 1000)
    with pytest.raises(ValueError, match=r"needs .* of memory"):
        run(settings(model_folder, tmp_path / "output"))
    with pytest.raises(ValueError, match="--max_tokens"):
        run(settings(model_folder, tmp_path / "output", max_tokens=5000))
    assert not (tmp_path / "output").exists()


def test_the_table_shows_what_is_known() -> None:
    curve = (
        PassAtK(k=1, value=Interval(0.2312, 0.204, 0.2591), rough=False),
        PassAtK(k=2, value=Interval(0.4, 0.35, 0.45), rough=True),
    )
    evaluation = Evaluation(
        step=0,
        temperature=0.7,
        max_tokens=256,
        seed=42,
        num_samples=2,
        puzzles=("1,2,3=6", "1,2,3,4=10"),
        num_correct=(1, 0),
        pass_at_k=curve,
        splits=tuple(Split(name=f"{size} numbers", num_puzzles=1, pass_at_k=curve) for size in (3, 4)),
        greedy_accuracy=None,
        verdicts={"no_answer": 0.1, "wrong_value": 0.6, "correct": 0.3},
        well_formed_accuracy=1 / 3,
        entropy=None,
        response_length=81.25,
        truncated=0.05,
        distinct_correct=DistinctCorrect(num_draws=4, num_puzzles=0, mean=None),
        coverage=None,
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(evaluation_table(evaluation, title="a model"))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["puzzles", "all", "(2)", "3", "numbers", "(1)", "4", "numbers", "(1)"] in lines
    assert ["accuracy,", "pass@1", *["23.1%", "[20.4,", "25.9]"] * 3] in lines
    assert ["pass@2", "~", *["40.0%", "[35.0,", "45.0]"] * 3] in lines
    text = " ".join(word for line in lines for word in line)
    assert "verdicts wrong value 60.0%, correct 30.0%, no answer 10.0%" in text
    assert "accuracy if well-formed 33.3%" in text
    assert "greedy" not in text
    assert "entropy" not in text
