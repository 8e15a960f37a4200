from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from nsr.evaluation.evaluate import Evaluation, difference
from nsr.report.run import read_run
from nsr.report.summary import summarize
from nsr.tasks.countdown.puzzle import generate


def write_run(path: Path, evaluations: Sequence[Evaluation], **config: object) -> Path:
    (path / "evaluations").mkdir(parents=True)
    settings = {"command": "train", "objective": "NSR", "data": "synthetic", "model_id": "tiny", **config}
    (path / "config.json").write_text(json.dumps(settings))
    rows = [{"step": step, "correct_ratio": 0.2, "entropy": 0.5} for step in range(1, 21)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for evaluation in evaluations:
        file = path / "evaluations" / f"step_{evaluation.step:06d}.json"
        file.write_text(json.dumps(evaluation.to_json()))
    return path


def shown(path: Path, **options: object) -> str:
    console = Console(file=io.StringIO(), width=80, **options)  # type: ignore[arg-type]
    summarize(path, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_reads_a_run_back(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [after, before]))
    assert run.method == "NSR"
    assert [record["step"] for record in run.metrics] == list(range(1, 21))
    assert list(run.evaluations) == [before, after]  # by step


def test_says_what_changed_and_draws_it(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", [before, after])
    text = shown(path)
    lines = [line.split() for line in text.splitlines()]
    assert "12.5%" in str(before.accuracy)
    assert "37.5%" in str(after.accuracy)
    change = difference(before, after).points(unit="")
    assert f"accuracy {before.accuracy} {after.accuracy} {change}".split() in lines
    assert ["wrong", "value", "87.5%", "62.5%", "-25.0"] in lines
    assert ["response", "length", "10.0", "30.0", "+20.0", "tokens"] in lines
    assert ["token", "entropy", "0.500", "0.600", "+0.100", "nats"] in lines
    assert "-> accuracy rose: +25.0 points" in text
    assert "-> pass@4 rose: +50.0 points" in text
    assert f"--model_id {path / 'model'}" in text.replace("\n", "")
    assert (path / "figure.png").exists()
    assert (path / "figure.svg").exists()


def test_claims_nothing_where_the_interval_holds_zero(
    make_evaluation: Callable[..., Evaluation], before: Evaluation, tmp_path: Path
) -> None:
    same_mean = make_evaluation(20, [0, 1] * 20)  # other puzzles right, the mean as before
    text = shown(write_run(tmp_path / "run", [before, same_mean]))
    assert "no change in accuracy can be claimed: 0.0 points" in text
    assert "rose" not in text
    assert "fell" not in text


def test_reading_and_drawing_need_no_torch() -> None:
    code = "import sys, nsr.report.summary; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_twice_the_same_figure(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", [before, after])
    shown(path)
    first = (path / "figure.png").read_bytes()
    shown(path)
    assert (path / "figure.png").read_bytes() == first


def test_settings_are_untrusted_text(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    text = shown(write_run(tmp_path / "run", [before, after], data="\x1b[2J[bold]x[/nothing]"))
    assert r"\x1b[2J[bold]x[/nothing]" in text
    assert "\x1b" not in text


def test_a_run_without_two_evaluations_to_compare(
    make_evaluation: Callable[..., Evaluation], before: Evaluation, tmp_path: Path
) -> None:
    others = make_evaluation(20, [1, 0] * 20, puzzles=generate(40, seed=4))
    for name, evaluations in (("none", []), ("one", [before]), ("others", [before, others])):
        path = write_run(tmp_path / name, evaluations)
        assert "no two evaluations of the same puzzles" in shown(path).replace("\n", " ")
        assert not (path / "figure.png").exists()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        summarize(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        summarize(tmp_path)
