"""One random Qwen3, tied and untied, through every path there is: the same log-probs everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from models.random_qwen3 import PADDED_ROWS, build_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from nsr.models.registry import encode_prompt, load_policy, prompt_encoder
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import SamplingParams
from nsr.rollout.native.engine import LocalEngine
from nsr.rollout.rollout import RolloutGroup, rollout
from nsr.tasks.countdown.prompt import build_messages
from nsr.tasks.countdown.puzzle import generate
from nsr.training.batch import build_batch
from nsr.training.log_probs import policy_log_probs
from nsr.training.optimizer import build_optimizer
from nsr.training.step import update

PUZZLES = generate(3, seed=7)
PARAMS = SamplingParams(temperature=0.8, max_tokens=24, seed=3, purpose="train", step=1)
GROUP = 4
TOLERANCE = 1e-5


def reference(folder: Path, groups: list[RolloutGroup]) -> list[npt.NDArray[np.float64]]:
    """Log-probs of each completion's tokens, by plain `transformers` and float64, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    words, end, temperature = len(AutoTokenizer.from_pretrained(folder)), 2, PARAMS.temperature
    found: list[npt.NDArray[np.float64]] = []
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits_TV = model(ids).logits[0, len(group.prompt_ids) - 1 : -1, :words] / temperature
            logits_TV[:4, end] = -torch.inf
            log_probs_TV = logits_TV.log_softmax(dim=-1)
            found.append(log_probs_TV[range(len(completion.token_ids)), list(completion.token_ids)].numpy())
    return found


@pytest.mark.parametrize("thinking", ["default", "off"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_same_log_probs_on_every_path(tied: bool, thinking: str, tmp_path: Path) -> None:
    folder = build_folder(tmp_path / "base", tied=tied)
    policy = load_policy(str(folder), device="cpu", dtype=torch.float32)
    model, tokenizer = policy.model, policy.tokenizer
    assert model.config.vocab_size == len(tokenizer) + PADDED_ROWS
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    support = Support.of(model, tokenizer, PARAMS.min_tokens)
    assert support.end_token_ids == (2,)
    encode = prompt_encoder(tokenizer, PARAMS.max_tokens, thinking)
    engine = LocalEngine(model, tokenizer, support)

    # Sampler and plain transformers.
    groups = rollout(engine, encode, PUZZLES, PARAMS, GROUP)
    completions = [completion for group in groups for completion in group.completions]
    before = reference(folder, groups)
    assert len({completion.token_ids for completion in completions}) == len(completions)
    assert min(values.min() for values in before) < -3.0  # nothing would be shown where all is likely
    for completion, expected in zip(completions, before, strict=True):
        np.testing.assert_allclose(completion.log_probs_T, expected, atol=TOLERANCE)

    # Trainer, before and after a step.
    weights_PG = np.resize([1.0, -1.0], (len(groups), GROUP))
    batch = build_batch(
        groups, weights_PG, loss_type="standard", normalize_over="all", max_tokens=PARAMS.max_tokens, pad_token_id=0
    )
    optimizer = build_optimizer(model, lr=1e-2, kind="adamw")
    learned = update(
        model, support, optimizer, [batch], temperature=PARAMS.temperature, clip_range=0.2, grad_acc_steps=3
    )
    assert learned["kl_to_rollout"] < 1e-9  # the trainer's log-probs were the sampler's
    engine.load_weights(model)
    with torch.no_grad():
        after_BT, _ = policy_log_probs(model, support, batch, PARAMS.temperature)
    after = [row_T[mask_T].numpy() for row_T, mask_T in zip(after_BT, batch.response_mask_BT, strict=True)]
    assert max(np.abs(new - old).max() for new, old in zip(after, before, strict=True)) > 0.1

    # Saved and loaded again, by plain transformers and by nsr.
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    for values, expected in zip(after, reference(saved, groups), strict=True):
        np.testing.assert_allclose(values, expected, atol=TOLERANCE)
    again = load_policy(str(saved), device="cpu", dtype=torch.float32)
    assert prompt_encoder(again.tokenizer, PARAMS.max_tokens, thinking)(PUZZLES[0]) == groups[0].prompt_ids
    params = dataclasses.replace(PARAMS, seed=4)
    new_groups = rollout(engine, encode, PUZZLES, params, GROUP)
    loaded_groups = rollout(LocalEngine(again.model, again.tokenizer, support), encode, PUZZLES, params, GROUP)
    for group, expected_group in zip(loaded_groups, new_groups, strict=True):
        for completion, expected in zip(group.completions, expected_group.completions, strict=True):
            assert completion.token_ids == expected.token_ids
            np.testing.assert_allclose(completion.log_probs_T, expected.log_probs_T, atol=TOLERANCE)


def test_the_prompt_with_and_without_thinking_and_without_a_template(tmp_path: Path) -> None:
    tokenizer = load_policy(str(build_folder(tmp_path / "a", tied=True)), device="cpu", dtype=torch.float32).tokenizer
    messages = build_messages(PUZZLES[0], 24)
    text = messages[0]["content"]
    opening = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert [message["role"] for message in messages] == ["user"]
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == opening
    assert tokenizer.decode(encode_prompt(tokenizer, messages, "off")) == f"{opening}<think>\n\n</think>\n\n"
    plain = load_policy(
        str(build_folder(tmp_path / "b", tied=True, chat_template=None)), device="cpu", dtype=torch.float32
    ).tokenizer
    assert plain.decode(encode_prompt(plain, messages)) == f"{text}\n\n"
