"""The loop, through a real small model: runs repeat, resume bit for bit, and take no step without a signal."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nsr.config import TrainConfig
from nsr.rollout.engine import Completion
from nsr.rollout.rollout import RolloutGroup
from nsr.runs.checkpoints import newest_checkpoint
from nsr.runs.folder import (
    is_complete,
    read_config,
    read_evaluation,
    read_mechanism,
    read_metrics,
    read_probe,
    read_timings,
)
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import generate
from nsr.training.loop import mismatch_warning, puzzles_of_step, rollout_metrics, train


def settings(folder: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        model_id="tiny",
        device="cpu",
        data="synthetic:3",
        max_tokens=40,
        temperature=1.0,
        eval_puzzles=4,
        eval_samples=2,
        n_train_steps=4,
        lr=1e-4,
        rollout_batch_size=8,
        group_size=4,
        grad_acc_steps=2,
        eval_every=2,
        save_every=1,
        keep=9,
        output_dir=str(folder),
        exp_name="run",
    )
    return dataclasses.replace(base, **changes)  # pyright: ignore[reportArgumentType]


def without_clock(path: Path) -> dict[str, bytes]:
    """Every file that must be the same again."""
    names = ("metrics.jsonl", "mechanism.jsonl", "probe.jsonl.gz", "model/model.safetensors")
    files = [*(path / name for name in names), *(path / "evaluations").iterdir()]
    return {file.name: file.read_bytes() for file in files}


def test_a_run_leaves_what_it_should(tmp_path: Path) -> None:
    path = train(settings(tmp_path))
    metrics = read_metrics(path)
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    assert [record["step"] for record in read_timings(path)] == [1, 2, 3, 4]
    for record in metrics:
        shares = [value for name, value in record.items() if name.startswith("verdict_")]
        assert sum(shares) == pytest.approx(1.0)
        assert record["correct_ratio"] == record["verdict_correct"]
        assert record["reward_mean"] == pytest.approx(2 * record["correct_ratio"] - 1)
        # NSR keeps the wrong ones.
        assert record["samples_kept"] == pytest.approx(8 * (1 - record["correct_ratio"]))
        # One update a rollout batch: the trainer's distribution is the sampler's.
        assert record["kl_to_rollout"] < 1e-8
    assert sorted(file.name for file in (path / "evaluations").glob("*.json")) == [
        "step_000000.json",
        "step_000002.json",
        "step_000004.json",
    ]
    explained = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    mechanism = read_mechanism(path)[0]
    for name in {*metrics[0], *read_timings(path)[0], *mechanism, *mechanism["wrong"]} - {"step"}:
        assert f"`{name}`" in explained
    assert is_complete(path, 4)
    assert any((path / "tensorboard").iterdir())


def test_bfloat16_is_a_setting(tmp_path: Path) -> None:
    path = train(settings(tmp_path, dtype="bfloat16", n_train_steps=1, eval_every=0))
    assert load_file(path / "model" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    # float32 masters: they are what a checkpoint of it holds beside the moments
    record = read_metrics(path)[0]
    assert record["update_norm"] > 0
    assert record["logprob_diff_mean"] < 0.1
    assert read_config(path)["resolved"]["engine"] == "local"


def test_a_mismatch_is_warned_about_beyond_its_threshold() -> None:
    assert mismatch_warning({"logprob_diff_mean": 0.1, "effective_sample_size": 0.5}) is None
    assert mismatch_warning({"signal": 0.0}) is None  # nothing was learned, nothing was compared
    assert "4.2 nats a token" in str(mismatch_warning({"logprob_diff_mean": 4.2, "effective_sample_size": 0.9}))
    assert "sample size is 49%" in str(mismatch_warning({"logprob_diff_mean": 0.0, "effective_sample_size": 0.49}))
    assert mismatch_warning({"logprob_diff_mean": float("nan"), "effective_sample_size": 1.0}) is not None


def test_the_evaluation_is_of_the_weights_after_the_update(tmp_path: Path) -> None:
    # At a learning rate that ruins the model at once, the evaluation after step 1 must see it.
    path = train(settings(tmp_path, n_train_steps=1, eval_every=1, lr=0.05))
    before, after = read_evaluation(path, 0), read_evaluation(path, 1)
    assert before["entropy"] != after["entropy"]
    assert after["verdicts"]["correct"] == 0.0


def test_same_seed_same_run_and_a_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    whole = train(settings(tmp_path / "whole"))
    train(settings(tmp_path / "parts", n_train_steps=2))
    parts = train(settings(tmp_path / "parts", resume=True))
    assert without_clock(parts) == without_clock(whole)
    final = {name: load_file(path / "model" / "model.safetensors") for name, path in (("w", whole), ("p", parts))}
    assert all((final["w"][name] == final["p"][name]).all() for name in final["w"])


def test_resuming_does_the_steps_after_the_last_checkpoint_again(tmp_path: Path) -> None:
    whole = train(settings(tmp_path / "whole"))
    cut = train(settings(tmp_path / "cut"))
    # As a process leaves it that was killed in step 4, half a line written, with the last checkpoint after step 2.
    for name in ("step_000003", "step_000004"):
        (cut / "checkpoints" / name / "manifest.json").unlink()
    (cut / "done.json").unlink()
    with (cut / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "rewa')
    assert newest_checkpoint(cut / "checkpoints") == (2, cut / "checkpoints" / "step_000002")
    train(settings(tmp_path / "cut", resume=True))
    assert without_clock(cut) == without_clock(whole)


def test_the_probe_is_measured_at_every_evaluation(tmp_path: Path) -> None:
    # With 60 tokens the model is right now and then, and at this learning rate it forgets how at once.
    path = train(settings(tmp_path, max_tokens=60, n_train_steps=1, lr=0.01, eval_puzzles=8))
    probe, lines = read_probe(path), read_mechanism(path)
    assert probe is not None
    assert len({record["puzzle"] for record in probe if record["sample"] == 0}) == 8
    assert [line["step"] for line in lines] == [0, 1]
    for kind, right in (("right", True), ("wrong", False)):
        selected = [record for record in probe if record["selected"] and record["right"] is right]
        assert selected
        for line in lines:
            assert line[kind]["samples"] == len(selected)
            assert line[kind]["tokens"] == sum(len(record["token_ids"]) for record in selected)
        assert lines[0][kind]["log_prob_change"] == 0.0
        assert lines[1][kind]["log_prob_change"] < -1.0
    assert lines[0]["kl_base"] == 0.0
    assert lines[1]["kl_base"] > 1.0


def test_a_run_without_a_probe_goes_on_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # As an older version left it.
    path = train(settings(tmp_path, n_train_steps=1))
    (path / "probe.jsonl.gz").unlink()
    (path / "mechanism.jsonl").unlink()
    capsys.readouterr()
    train(settings(tmp_path, n_train_steps=2, resume=True))
    assert capsys.readouterr().out.count("began without a probe") == 1
    assert not (path / "mechanism.jsonl").exists()
    assert is_complete(path, 2)
    # One that is damaged is told, and nothing is trained.
    (path / "probe.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"probe\.jsonl\.gz cannot be read .* delete it to go on without it"):
        train(settings(tmp_path, n_train_steps=3, resume=True))
    assert len(read_metrics(path)) == 2


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    whole = train(settings(tmp_path / "whole", n_train_steps=1))
    cut = shutil.copytree(whole, tmp_path / "cut" / "run")
    shutil.rmtree(cut / "checkpoints")
    (cut / "done.json").unlink()
    train(settings(tmp_path / "cut", n_train_steps=1, resume=True))
    assert without_clock(cut) == without_clock(whole)


def test_a_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    path = train(settings(tmp_path, n_train_steps=1))
    before = without_clock(path)
    assert train(settings(tmp_path, n_train_steps=1, resume=True)) == path
    assert without_clock(path) == before


def test_without_signal_no_step_is_taken(tmp_path: Path) -> None:
    # At 4 tokens no response is right: PSR has nothing to learn from.
    path = train(settings(tmp_path, objective="PSR", max_tokens=4, n_train_steps=2))
    shipped = load_file(path / "model" / "model.safetensors")
    first = load_file(path / "checkpoints" / "step_000001" / "model.safetensors")
    assert all((shipped[name] == first[name]).all() for name in first)
    assert [record["signal"] for record in read_metrics(path)] == [0.0, 0.0]
    # The probe has no right sample either, and what did not change has not changed.
    for line in read_mechanism(path):
        assert line["right"] is None
        assert line["wrong"]["sampled_change"] == line["kl_base"] == 0.0


@pytest.mark.parametrize("changes", [{"updates_per_rollout": 2}, {"objective": "SHUFFLED"}, {"objective": "RLVR"}])
def test_other_settings_run(changes: dict[str, object], tmp_path: Path) -> None:
    path = train(settings(tmp_path, n_train_steps=1, **changes))
    assert json.loads((path / "done.json").read_text())["step"] == 1


def test_puzzles_of_a_step_follow_from_seed_and_step_alone() -> None:
    puzzles = generate(10, seed=0)
    first_epoch = [puzzle for step in range(1, 6) for puzzle in puzzles_of_step(puzzles, step, 2, seed=7)]
    assert sorted(puzzle.key for puzzle in first_epoch) == sorted(puzzle.key for puzzle in puzzles)
    second_epoch = [puzzle for step in range(6, 11) for puzzle in puzzles_of_step(puzzles, step, 2, seed=7)]
    assert sorted(puzzle.key for puzzle in second_epoch) == sorted(puzzle.key for puzzle in puzzles)
    assert first_epoch != second_epoch
    # A step that goes over the end of an epoch takes the rest of one and the start of the next.
    across = [puzzle for step in range(1, 8) for puzzle in puzzles_of_step(puzzles, step, 3, seed=7)]
    assert across[:20] == [*first_epoch, *second_epoch]


def test_metrics_of_a_batch_by_hand() -> None:
    def completion(tokens: int, entropy: float, reason: str) -> Completion:
        return Completion(
            token_ids=tuple(range(tokens)),
            text="",
            log_probs_T=np.zeros(tokens, dtype=np.float32),
            entropy=entropy,
            finish_reason=reason,  # pyright: ignore[reportArgumentType]
        )

    puzzles = generate(2, seed=0)
    long, short = completion(6, 0.5, "length"), completion(2, 0.1, "stop")
    right, wrong = Verdict.CORRECT, Verdict.WRONG_VALUE
    groups = [
        RolloutGroup(puzzle=puzzles[0], prompt_ids=(1,), completions=(long, short), verdicts=(wrong, right)),
        RolloutGroup(puzzle=puzzles[1], prompt_ids=(1,), completions=(short, short), verdicts=(wrong, wrong)),
    ]
    metrics = rollout_metrics(groups)
    assert metrics["reward_mean"] == -0.5
    assert metrics["correct_ratio"] == 0.25
    assert metrics["response_length"] == 3.0
    assert metrics["truncation"] == 0.25
    assert (metrics["groups_all_right"], metrics["groups_mixed"], metrics["groups_all_wrong"]) == (0.0, 0.5, 0.5)
    assert metrics["verdict_wrong_value"] == 0.75
    # By tokens: (6 x 0.5 + 3 x 2 x 0.1) / 12.
    assert metrics["entropy"] == pytest.approx(0.3)
