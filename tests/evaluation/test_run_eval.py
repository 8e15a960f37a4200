"""`nsr eval` on real small models: run folders, resume, the tables, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from scripted import FOUR, SCRIPT, ScriptedEngine, run

from nsr.config import EvalConfig, TrainConfig
from nsr.evaluation import run_eval as module
from nsr.evaluation.from_samples import remeasure, run_from_samples
from nsr.evaluation.methods import differences_to_first
from nsr.evaluation.record import Evaluation
from nsr.evaluation.run_eval import run_eval, seen_in_training
from nsr.evaluation.tables import comparison_tables, shown_k
from nsr.evaluation.targets import Target
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer
from nsr.runs.folder import is_complete, read_config, read_evaluation
from nsr.tasks.countdown.data import load_splits
from nsr.tasks.countdown.puzzle import Puzzle


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model's architecture with random weights."""
    path = tmp_path_factory.mktemp("models") / "random"
    tokenizer = build_tiny_tokenizer()
    build_tiny_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def settings(output: Path, models: Sequence[str], **changes: object) -> EvalConfig:
    values: dict = {
        "models": tuple(models),
        "temperatures": (0.7, 1.3),
        "num_samples": 2,
        "data": "synthetic:3",
        "device": "cpu",
        "max_tokens": 40,
        "eval_puzzles": 4,
        "output_dir": str(output),
        **changes,
    }
    return EvalConfig(**values)


def evaluated(config: EvalConfig) -> tuple[list[Path], str]:
    console = Console(file=io.StringIO(), width=80)
    paths = run_eval(config, console)
    return paths, console.file.getvalue()  # type: ignore[attr-defined]


def test_every_model_at_every_temperature_is_a_run_and_what_is_complete_is_not_measured_again(
    random_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, text = evaluated(settings(tmp_path, ["tiny", random_model]))
    names = ["tiny_T0.7", "tiny_T1.3", "random_T0.7", "random_T1.3"]
    assert paths == [tmp_path / "eval" / name for name in names]
    for path, model, temperature in zip(paths, ["tiny"] * 2 + [random_model] * 2, [0.7, 1.3] * 2, strict=True):
        config = read_config(path)
        assert (config["command"], config["model_id"], config["temperature"]) == ("eval", model, temperature)
        assert config["resolved"]["model"] == model
        evaluation = Evaluation.from_json(read_evaluation(path, 0))
        assert (evaluation.temperature, evaluation.num_samples, len(evaluation.puzzles)) == (temperature, 2, 4)
        assert evaluation.greedy_accuracy is not None
        assert evaluation.coverage is not None
        assert is_complete(path)
        assert (path / "environment.json").exists()
        again = remeasure(path / "evaluations" / "step_000000.samples.jsonl.gz")
        assert (again.evaluation, again.differences) == (evaluation, ())
    for label in ("tiny at 0.7", "tiny at 1.3", "random at 0.7", "random at 1.3"):
        assert label in text
    assert "Holm" in text
    assert run_from_samples([str(tmp_path / "eval")], Console(file=io.StringIO()))

    # One is missing: it alone is measured, and the same table comes.
    (paths[2] / "done.json").unlink()
    before = {file: file.read_bytes() for path in paths for file in (path / "evaluations").iterdir()}
    measured: list[Path] = []
    measure = module.measure
    monkeypatch.setattr(
        module, "measure", lambda run, *rest, **named: (measured.append(run.run_path), measure(run, *rest, **named))
    )
    with pytest.raises(ValueError, match="add --resume"):
        evaluated(settings(tmp_path, ["tiny", random_model]))
    _, again = evaluated(settings(tmp_path, ["tiny", random_model], resume=True))
    assert measured == [paths[2]]
    assert {file: file.read_bytes() for path in paths for file in (path / "evaluations").iterdir()} == before
    assert again[again.index("4 puzzles x 2 samples") :] == text[text.index("4 puzzles x 2 samples") :]

    # All are complete: nothing is loaded.
    monkeypatch.setattr(module, "build_sampler", None)
    monkeypatch.setattr(module, "load_splits", None)
    _, third = evaluated(settings(tmp_path, ["tiny", random_model], resume=True))
    assert third[third.index("4 puzzles") :] == text[text.index("4 puzzles x 2 samples") :]


def test_one_model_at_one_temperature_is_shown_in_full(random_model: str, tmp_path: Path) -> None:
    _, text = evaluated(settings(tmp_path, [random_model], temperatures=(1.0,), max_tokens=6))
    assert "random, temperature 1" in text
    assert "accuracy if well-formed" in text or "no answer 100.0%" in text


def test_nothing_is_written_where_one_of_them_cannot_work(random_model: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for models, changes, message in (
        (["tiny", "./nowhere"], {}, "--model_id './nowhere'"),
        (["tiny"], {"max_tokens": 5000}, "--max_tokens"),
        (["tiny"], {"data": "nowhere.parquet"}, "nowhere.parquet"),
        (["tiny"], {"engine": "vllm"}, "--engine"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluated(settings(output, models, **changes))
    assert not output.exists()


def test_puzzles_of_the_training_are_counted(tmp_path: Path) -> None:
    config = TrainConfig(data="synthetic:3", eval_puzzles=5, rollout_batch_size=8, group_size=4, grad_acc_steps=1)
    training = vars(config)
    wide = load_splits("synthetic:3", eval_puzzles=12, seed=42).evaluation
    # The first 5 were held out; 3 steps of 2 puzzles took the next 6, and the last was not reached.
    target = Target(given="run", model_id="model", step=3, training=training)
    assert seen_in_training(target, wide[:5]) == 0
    assert seen_in_training(target, wide) == 6
    assert seen_in_training(Target(given="tiny", model_id="tiny"), wide) == 0
    gone = {**training, "data": str(tmp_path / "gone.parquet")}
    assert seen_in_training(Target(given="run", model_id="model", step=3, training=gone), wide) is None
    assert seen_in_training(Target(given="kept", model_id="kept", step=3), wide) is None


def test_the_k_of_a_short_table() -> None:
    assert shown_k(1) == [1]
    assert shown_k(2) == [1]
    assert shown_k(4) == [1, 2]
    assert shown_k(8) == [1, 2, 4]
    assert shown_k(64) == [1, 8, 32]
    assert shown_k(512) == [1, 16, 256]


def test_changes_are_to_the_first_and_adjusted_together() -> None:
    puzzles = [Puzzle(numbers=(1, 2), target=target) for target in range(1, 41)]
    right, wrong = "<answer>1+2</answer>", "<answer>1-2</answer>"
    three = puzzles[2].key

    def evaluation(right_ones: int) -> Evaluation:
        script = {puzzle.key: [wrong] * 4 for puzzle in puzzles}
        script[three] = [right] * right_ones + [wrong] * (4 - right_ones)
        return run(ScriptedEngine(script), puzzles)

    none, some, all_of_it = evaluation(0), evaluation(2), evaluation(4)
    first, second = differences_to_first([none, some, all_of_it], [1, 2])
    assert [one.difference.estimate for one in first] == pytest.approx([0.5 / 40, 5 / 6 / 40])
    assert [one.difference.estimate for one in second] == pytest.approx([1 / 40, 1 / 40])
    # One puzzle of 40 changed. A resample leaves it out with probability (1 - 1/40)^40, and then there is no change.
    for one in (*first, *second):
        assert one.p_value == pytest.approx(2 * (39 / 40) ** 40, abs=0.03)
        assert one.adjusted == 1.0
    with pytest.raises(ValueError, match="not of the same puzzles"):
        differences_to_first([none, run(ScriptedEngine())], [1])


def test_the_tables_mark_what_is_significant_after_the_correction() -> None:
    puzzles = [Puzzle(numbers=(number, 1), target=number + 1) for number in range(1, 31)]
    wrong = {puzzle.key: ["<answer>1</answer>"] * 2 for puzzle in puzzles}
    right = {puzzle.key: [f"<answer>{puzzle.numbers[0]}+1</answer>"] * 2 for puzzle in puzzles}
    some = {**wrong, **{puzzle.key: right[puzzle.key] for puzzle in puzzles[:10]}}
    console = Console(file=io.StringIO(), width=80)
    console.print(
        comparison_tables(
            ["none", "ten of 30"], [run(ScriptedEngine(s), puzzles, num_samples=2) for s in (wrong, some)]
        )
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+33.3 [+16.7, +50.0]" in text
    assert "p 0.0002 *" in text  # no resample is at 0 or below, of 10,000


def test_the_tables_claim_nothing_where_nothing_is_sure() -> None:
    before = run(ScriptedEngine())
    better = run(ScriptedEngine({**SCRIPT, FOUR.key: ["<answer>4*6*(3-2)</answer>"] * 4}))
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_tables(["base", "[bold]x\x1b[31m"], [before, better]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.split() for line in text.splitlines()]
    assert ["base", "50.0%", "[0.0,", "100.0]", "61.1%", "[0.0,"] in [line[:6] for line in lines]
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "[bold]x\\x1b[31m" in text
    assert "+16.7 [0.0, +50.0]" in text
    changes = text[text.index("change in points") : text.index("In brackets")]
    assert "p 1.0000" in changes
    assert "*" not in changes  # three puzzles show nothing for sure


def test_records_are_plain_json(random_model: str, tmp_path: Path) -> None:
    paths, _ = evaluated(settings(tmp_path, [random_model], temperatures=(1.0,), max_tokens=6, eval_puzzles=2))
    record = json.loads((paths[0] / "config.json").read_text())
    assert record["exp_name"] == "random_T1"
    assert record["resolved"]["step"] == 0
    assert record["resolved"]["training"] is None
    assert record["resolved"]["seen_in_training"] == 0
