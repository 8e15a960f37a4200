"""Every number again from the kept samples: by nsr without a model, and by a few lines of separate code."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scripted import PUZZLES, ScriptedEngine, run

from nsr.config import EvalRun, TrainConfig
from nsr.evaluation.evaluate import Evaluation, difference
from nsr.evaluation.from_samples import find_samples, remeasure, run_from_samples
from nsr.runs.files import read_json, write_gzip_lines
from nsr.runs.folder import RunFolder, read_samples, samples_path
from nsr.tasks.countdown.puzzle import generate

STEP = 10
NAME = f"step_{STEP:06d}"


def settings(folder: Path, **changes: Any) -> EvalRun:
    return EvalRun(output_dir=str(folder), exp_name="run", temperature=1.0, max_tokens=64, seed=7, **changes)


def kept_run(config: EvalRun | TrainConfig, **changes: Any) -> tuple[Path, Evaluation]:
    """A run's folder with one evaluation, as `nsr eval` (greedy samples, coverage) or a training run leaves it."""
    greedy = config.command == "eval"
    with RunFolder.open(config, environment={}) as folder:
        with folder.keep_samples(STEP) as keep:
            options: dict[str, Any] = {"step": STEP, "keep": keep, "with_coverage": greedy, **changes}
            if greedy:
                with folder.keep_samples(STEP, greedy=True) as keep_greedy:
                    evaluation = run(ScriptedEngine(), greedy=True, keep_greedy=keep_greedy, **options)
            else:
                evaluation = run(ScriptedEngine(), **options)
        folder.write_evaluation(STEP, evaluation.to_json())
    return folder.path, evaluation


def samples_of(path: Path) -> Path:
    return path / "evaluations" / f"{NAME}.samples.jsonl.gz"


def shown(*sources: Path) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=80)
    agrees = run_from_samples([str(source) for source in sources], console)
    return agrees, " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def rewrite(file: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    with gzip.open(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    change(rows)
    write_gzip_lines(file, rows)


def test_the_record_again_exactly(tmp_path: Path) -> None:
    path, evaluation = kept_run(settings(tmp_path))
    again = remeasure(samples_of(path))
    assert again.evaluation == evaluation
    assert again.evaluation.to_json() == read_json(path / "evaluations" / f"{NAME}.json")
    assert (again.compared, again.differences) == (True, ())
    assert evaluation.greedy_accuracy is not None
    agrees, text = shown(path)
    assert agrees
    assert "agrees with its record in every number" in text
    assert shown(samples_of(path)) == (agrees, text)


def test_the_samples_of_a_training_run(tmp_path: Path) -> None:
    path, evaluation = kept_run(TrainConfig(output_dir=str(tmp_path)))
    again = remeasure(samples_of(path))
    assert again.evaluation == evaluation
    assert again.evaluation.greedy_accuracy is again.evaluation.coverage is None
    assert again.differences == ()
    assert samples_path(path / "evaluations" / f"{NAME}.json", greedy=True).exists() is False


def test_without_its_record_the_settings_are_the_run_s(tmp_path: Path) -> None:
    path, evaluation = kept_run(settings(tmp_path))
    (path / "evaluations" / f"{NAME}.json").unlink()
    again = remeasure(samples_of(path))
    assert again.evaluation == evaluation
    assert not again.compared
    assert "no record beside it" in shown(samples_of(path))[1]
    with pytest.raises(ValueError, match="holds no samples"):
        find_samples(str(path))
    (path / "config.json").unlink()
    with pytest.raises(ValueError, match="neither a record beside it nor"):
        remeasure(samples_of(path))


def test_a_record_that_says_something_else_is_told(tmp_path: Path) -> None:
    path, _ = kept_run(settings(tmp_path))
    file = path / "evaluations" / f"{NAME}.json"
    record = read_json(file)
    record["pass_at_k"][1]["estimate"] += 0.01
    record["num_correct"]["2,3,4,6=24"] = 3
    del record["splits"]["+ and - alone"]
    file.write_text(json.dumps(record))
    agrees, text = shown(path)
    assert not agrees
    assert "does not agree with its record" in text
    for part in ("pass_at_k.1.estimate is 0.62", "num_correct.2,3,4,6=24 is 3, from the samples 2", "+ and - alone"):
        assert part in text
    # Another machine adds in another order.
    record = remeasure(samples_of(path)).evaluation.to_json()
    record["entropy"] += 1e-14
    file.write_text(json.dumps(record))
    assert shown(path)[0]


def test_texts_are_graded_again(tmp_path: Path) -> None:
    path, evaluation = kept_run(settings(tmp_path))

    def flatter(rows: list[dict[str, Any]]) -> None:
        assert rows[11]["verdict"] != "correct"
        rows[11] |= {"verdict": "correct", "equation": "1 + 1 + 2"}

    rewrite(samples_of(path), flatter)
    again = remeasure(samples_of(path))
    assert again.evaluation == evaluation
    assert again.differences[0].startswith(
        "1 rows are graded otherwise than they say, the first is sample 3 of 1,1,2=97"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "between 3 and 4 samples of a puzzle"),
        (lambda rows: rows.clear(), "no samples"),
        (lambda rows: rows[2].update(sample=7), "sample 7 of 19,35,44=98 where 2 should be"),
        (lambda rows: rows[2].pop("tokens"), "a row without tokens"),
        (lambda rows: rows[2].update(text=None), "a row without text"),
        (lambda rows: [row.update(puzzle="1+1") for row in rows], "the key of a puzzle"),
    ],
)
def test_rows_that_make_no_evaluation_are_told_in_a_sentence(change: Any, message: str, tmp_path: Path) -> None:
    path, _ = kept_run(settings(tmp_path))
    rewrite(samples_of(path), change)
    with pytest.raises(ValueError, match=message):
        remeasure(samples_of(path))


def test_a_file_that_is_cut_off_or_something_else(tmp_path: Path) -> None:
    path, _ = kept_run(settings(tmp_path))
    whole = samples_of(path).read_bytes()
    for content in (whole[:-20], whole[:30], b"", b"text", gzip.compress(b"[1]\n"), gzip.compress(b"{\n")):
        samples_of(path).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read|no samples"):
            remeasure(samples_of(path))
    for source in (tmp_path / "nowhere", path / "evaluations"):
        with pytest.raises(ValueError, match="holds no samples"):
            find_samples(str(source))
    with pytest.raises(ValueError, match=r"is no \.samples\.jsonl\.gz file"):
        find_samples(str(path / "config.json"))


def test_several_are_shown_side_by_side(tmp_path: Path) -> None:
    first, _ = kept_run(settings(tmp_path / "a"))
    second, _ = kept_run(settings(tmp_path / "b"))
    assert find_samples(str(tmp_path / "a")) == [samples_of(first)]
    agrees, text = shown(tmp_path / "a", second)
    assert agrees
    assert "3 puzzles x 4 samples" in text
    assert text.count("agrees with its record") == 2
    # Those of other puzzles cannot be compared.
    third, _ = kept_run(settings(tmp_path / "c"), puzzles=PUZZLES[:2])
    agrees, text = shown(first, third)
    assert agrees
    assert "Changes are to" not in text


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path, _ = kept_run(settings(tmp_path))
    code = f"""
import sys
from nsr.cli import main
print(main(["eval", "--from_samples", {str(path)!r}]))
print([name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-2:] == ["0", "[]"], result


# The same numbers by code that shares nothing with nsr's, from the lines of the file alone.


def write_many(folder: Path, seed: int) -> tuple[Path, Evaluation]:
    """60 puzzles x 6 samples, of which some are right."""
    rng = np.random.default_rng(seed)
    puzzles = generate(60, seed=5, sizes=(3,))
    chance_P = np.random.default_rng(1).random(60)
    script = {}
    for puzzle, chance in zip(puzzles, chance_P, strict=True):
        a, b, c = puzzle.numbers
        answers = [
            f"<answer>{x}{o}{y}{q}{z}</answer>"
            for x, y, z in itertools.permutations((a, b, c))
            for o, q in itertools.product("+-*", repeat=2)
        ]
        right = [text for text in answers if arithmetic(text) == puzzle.target] or ["<answer>"]
        script[puzzle.key] = [right[0] if rng.random() < chance else f"<answer>{a}</answer>" for _ in range(6)]
    with RunFolder.open(settings(folder), environment={}) as run_folder:
        with run_folder.keep_samples(0) as keep:
            evaluation = run(ScriptedEngine(script), puzzles, num_samples=6, keep=keep)
        run_folder.write_evaluation(0, evaluation.to_json())
    return run_folder.path, evaluation


def arithmetic(text: str) -> int:
    return eval(text.removeprefix("<answer>").removesuffix("</answer>"))


def curve_of(rows: list[dict[str, Any]], k: int) -> np.ndarray:
    """pass@k of each puzzle by going through every subset of k samples."""
    right: dict[str, list[bool]] = {}
    for row in rows:
        right.setdefault(row["puzzle"], []).append(row["verdict"] == "correct")
    return np.array([np.mean([any(subset) for subset in itertools.combinations(flags, k)]) for flags in right.values()])


def test_a_few_lines_of_separate_code_agree(tmp_path: Path) -> None:
    from scipy import stats

    paths, evaluations = zip(*(write_many(tmp_path / str(seed), seed) for seed in (1, 2)), strict=True)
    rows_of = [read_samples(path, 0) for path in paths]
    for rows, evaluation in zip(rows_of, evaluations, strict=True):
        assert 0.2 < evaluation.accuracy.estimate < 0.8
        for point in evaluation.pass_at_k:
            values_P = curve_of(rows, point.k)
            assert point.value.estimate == pytest.approx(values_P.mean(), abs=1e-12)
            interval = stats.bootstrap((values_P,), np.mean, method="BCa", n_resamples=9999, rng=3).confidence_interval
            width = interval.high - interval.low
            assert point.value.low == pytest.approx(interval.low, abs=0.05 * width)
            assert point.value.high == pytest.approx(interval.high, abs=0.05 * width)
        shares = {name: count / len(rows) for name, count in Counter(row["verdict"] for row in rows).items()}
        assert {name: share for name, share in evaluation.verdicts.items() if share} == pytest.approx(shares)
    for k in (1, 4):
        changes_P = curve_of(rows_of[1], k) - curve_of(rows_of[0], k)
        draws_RP = np.random.default_rng(4).integers(60, size=(20_000, 60))
        low, high = np.quantile(changes_P[draws_RP].mean(axis=1), [0.025, 0.975])
        ours = difference(*evaluations, k)
        assert ours.estimate == pytest.approx(changes_P.mean(), abs=1e-12)
        assert ours.low == pytest.approx(low, abs=0.05 * (high - low))
        assert ours.high == pytest.approx(high, abs=0.05 * (high - low))
