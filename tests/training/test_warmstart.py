"""The warm start: what is learned from, the schedule, and a whole small run that is measured on what it wrote."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from nsr.config import WarmstartConfig
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer
from nsr.models.registry import load_policy
from nsr.tasks.countdown.data import puzzle_keys
from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.training.sft import (
    IGNORED,
    TraceBatches,
    build_optimizers,
    learning_rate_scale,
    pad,
    trace_loss,
    warmstart,
)

TOKENIZER = build_tiny_tokenizer()


def settings(folder: Path, **changes: object) -> WarmstartConfig:
    values: dict[str, object] = {"from_scratch": True, "out": str(folder / "out"), "batch_size": 4, "eval_puzzles": 3}
    return WarmstartConfig(**{**values, "n_train_steps": 2, "eval_samples": 2, "max_tokens": 120, **changes})  # type: ignore[arg-type]


def first_batches(config: WarmstartConfig, excluded: set[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(itertools.islice(TraceBatches(config, TOKENIZER, excluded), 20))


def test_padding_by_hand() -> None:
    tokens_BT, labels_BT = pad([([5, 6], [7, 1]), ([5], [8, 9, 1])], pad_token_id=0)
    assert tokens_BT.shape == (2, 16)
    assert tokens_BT[:, :5].tolist() == [[5, 6, 7, 1, 0], [5, 8, 9, 1, 0]]
    assert labels_BT[:, :5].tolist() == [[IGNORED, IGNORED, 7, 1, IGNORED], [IGNORED, 8, 9, 1, IGNORED]]


def test_what_is_learned_is_a_correct_trace_and_the_end_token(tmp_path: Path) -> None:
    for tokens_BT, labels_BT in first_batches(settings(tmp_path), set()):
        for tokens, labels in zip(tokens_BT.tolist(), labels_BT.tolist(), strict=True):
            response = [token for token in labels if token != IGNORED]
            prompt = TOKENIZER.decode(tokens[: labels.index(response[0])])
            numbers, target = prompt.rstrip(":").split("=")
            puzzle = Puzzle(numbers=tuple(map(int, numbers.split(","))), target=int(target))
            assert grade(puzzle, TOKENIZER.decode(response[:-1])) is Verdict.CORRECT
            assert response[-1] == TOKENIZER.eos_token_id


def test_the_seed_decides_and_excluded_puzzles_are_left_out(tmp_path: Path) -> None:
    config = settings(tmp_path)
    batches = first_batches(config, set())
    again = first_batches(config, set())
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batches, again, strict=True))

    def prompts(some: list[tuple[torch.Tensor, torch.Tensor]]) -> set[str]:
        return {TOKENIZER.decode(row).split(":")[0] for tokens_BT, _ in some for row in tokens_BT.tolist()}

    def key(prompt: str) -> str:
        numbers, target = prompt.split("=")
        return Puzzle(numbers=tuple(map(int, numbers.split(","))), target=int(target)).key

    excluded = {key(prompt) for prompt in list(prompts(batches))[:10]}
    assert len(excluded) == 10
    assert not excluded & {key(prompt) for prompt in prompts(first_batches(config, excluded))}


def test_the_schedule_by_hand() -> None:
    # 100 steps: 2 of warm-up, constant, then 40 down to 0.
    scales = [learning_rate_scale(step, 100) for step in (0, 1, 50, 60, 80, 99)]
    assert scales == [0.5, 1.0, 1.0, 1.0, 0.5, 0.025]


def test_the_loss_is_that_of_the_labels_alone() -> None:
    torch.manual_seed(0)
    model = build_tiny_model(len(TOKENIZER), 1, 0).eval()
    tokens_BT, labels_BT = pad([([5, 6], [7, 1])], pad_token_id=0)
    log_probs = model(input_ids=torch.tensor([[5, 6, 7, 1]])).logits[0].log_softmax(-1)
    # Token 2 (id 7) is predicted at position 1, token 3 (id 1) at position 2.
    expected = -(log_probs[1, 7] + log_probs[2, 1]) / 2
    assert trace_loss(model, tokens_BT, labels_BT).item() == pytest.approx(expected.item(), abs=1e-5)


def test_every_weight_has_one_optimizer(tmp_path: Path) -> None:
    model = build_tiny_model(len(TOKENIZER), 1, 0)
    for optimizer in ("muon", "adamw"):
        groups = [
            group["params"]
            for each in build_optimizers(model, settings(tmp_path, optimizer=optimizer))
            for group in each.param_groups
        ]
        assert sorted(map(id, itertools.chain(*groups))) == sorted(map(id, model.parameters()))


def test_a_whole_run(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"nums": [44, 19, 35], "target": 98}\n')
    assert puzzle_keys(str(held_out)) == {"19,35,44=98"}
    out = warmstart(settings(tmp_path, exclude=(str(held_out),)))
    record = json.loads((out / "warmstart.json").read_text())
    assert record["settings"]["n_train_steps"] == 2
    assert [point["step"] for point in record["loss_curve"]] == [2]
    assert record["evaluation"]["num_puzzles"] == 3
    assert load_policy(str(out), device="cpu", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"--out is .*, which is not empty"):
        warmstart(settings(tmp_path))
