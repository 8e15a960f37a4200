"""The fast way of learning against the plain one, on the embedded model and its own rollouts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from learning_rollouts import GradientSpy, flat, relative_error
from transformers import MistralConfig, MistralForCausalLM

from nsr.algorithms.objectives import objective_weights
from nsr.models.registry import LoadedPolicy, load_policy, prompt_encoder
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import SamplingParams
from nsr.rollout.native.engine import LocalEngine
from nsr.rollout.rollout import RolloutGroup, rewards, rollout
from nsr.tasks.countdown.puzzle import generate
from nsr.training.batch import Batch, build_batch, split_updates
from nsr.training.log_probs import can_pack, policy_log_probs, why_plain
from nsr.training.optimizer import build_optimizer
from nsr.training.step import update

MAX_TOKENS, TEMPERATURE = 64, 0.9


@pytest.fixture(scope="module")
def policy() -> LoadedPolicy:
    return load_policy("tiny", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def support(policy: LoadedPolicy) -> Support:
    return Support.of(policy.model, policy.tokenizer, 4)


@pytest.fixture(scope="module")
def groups(policy: LoadedPolicy, support: Support) -> list[RolloutGroup]:
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=0, purpose="train")
    engine = LocalEngine(policy.model, policy.tokenizer, support)
    return rollout(engine, prompt_encoder(policy.tokenizer, MAX_TOKENS), list(generate(6)), params, 4)


def batch_of(groups: list[RolloutGroup], weights_PG: npt.NDArray[np.float64]) -> Batch:
    return build_batch(
        groups,
        weights_PG,
        loss_type="length_normalized",
        normalize_over="all",
        max_tokens=MAX_TOKENS,
        pad_token_id=0,
    )


def settings(exact: bool) -> dict[str, Any]:
    return {"temperature": TEMPERATURE, "clip_range": 0.2, "grad_acc_steps": 3, "exact": exact}


@pytest.mark.parametrize("objective", ["RLVR", "PSR", "NSR", "W_REINFORCE"])
def test_gradients_and_metrics_are_those_of_the_plain_way(
    policy: LoadedPolicy, support: Support, groups: list[RolloutGroup], objective: str
) -> None:
    batch = batch_of(groups, objective_weights(objective, rewards(groups)))
    gradients: dict[bool, torch.Tensor] = {}
    metrics: dict[bool, dict[str, float]] = {}
    for exact in (False, True):
        spy: Any = GradientSpy(policy.model)
        metrics[exact] = update(policy.model, support, spy, [batch], **settings(exact))
        gradients[exact] = flat(spy.steps[0])
    assert relative_error(gradients[False], gradients[True]) < 1e-4
    assert not torch.equal(gradients[False], gradients[True])  # they are two ways
    assert metrics[False] == pytest.approx(metrics[True], rel=1e-4, abs=2e-5)


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-5), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_gradients_on_a_gpu_are_those_of_the_plain_way_on_a_cpu(
    policy: LoadedPolicy, support: Support, groups: list[RolloutGroup], dtype: torch.dtype, most: float
) -> None:
    batch = batch_of(groups, objective_weights("W_REINFORCE", rewards(groups)))

    def gradient(device: str, dtype: torch.dtype, exact: bool) -> torch.Tensor:
        model: Any = copy.deepcopy(policy.model).to(device=device, dtype=dtype)
        spy: Any = GradientSpy(model)
        assert can_pack(model)
        update(model, support, spy, [batch], **settings(exact))
        return flat(spy.steps[0]).cpu()

    expected = gradient("cpu", torch.float64, exact=True)
    for exact in (False, True):
        assert relative_error(gradient("cuda", dtype, exact), expected) < most


def test_log_probs_and_entropy_are_those_of_the_plain_way_and_of_the_sampler(
    policy: LoadedPolicy, support: Support, groups: list[RolloutGroup]
) -> None:
    batch = batch_of(groups, np.ones((len(groups), 4)))
    with torch.no_grad():
        fast, plain = (
            policy_log_probs(policy.model, support, batch, TEMPERATURE, exact=exact) for exact in (False, True)
        )
    for ours, theirs in zip(fast, plain, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    assert (fast[0] - batch.sampler_log_probs_BT).abs().max() < 1e-4


def test_training_in_several_updates_goes_the_same_way(
    policy: LoadedPolicy, support: Support, groups: list[RolloutGroup]
) -> None:
    weights_PG = objective_weights("RLVR", rewards(groups))
    after: dict[bool, torch.Tensor] = {}
    for exact in (False, True):
        model = copy.deepcopy(policy.model)
        optimizer = build_optimizer(model, lr=1e-4, kind="adamw")
        parts = split_updates(groups, weights_PG, 3, np.random.default_rng(0))
        for _ in range(2):
            update(model, support, optimizer, [batch_of(*part) for part in parts], **settings(exact))
        after[exact] = flat({name: weight.detach() for name, weight in model.named_parameters()})
    before = flat({name: weight.detach() for name, weight in policy.model.named_parameters()})
    assert relative_error(after[False] - before, after[True] - before) < 0.02  # Adam makes much of small gradients
    assert (after[True] - before).norm() > 0


def test_a_model_that_does_not_pack_is_computed_row_by_row_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    model = MistralForCausalLM(MistralConfig(vocab_size=20, num_key_value_heads=2, sliding_window=2, **sizes))
    assert not can_pack(model)
    assert not can_pack(model)
    (said,) = caplog.messages
    assert said.startswith("Learning computes every prompt with every response: the model's layers do not take packed")


def test_the_embedded_model_takes_packed_sequences(policy: LoadedPolicy) -> None:
    assert can_pack(policy.model)
    assert why_plain(policy.model) is None
