"""Steps that must not be taken: what is refused, that nothing changes then, and what is left of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from learning_rollouts import BATCH, SUPPORT, UPDATE, random_groups, small_policy, weights_of
from safetensors import safe_open

from nsr.training.batch import build_batch
from nsr.training.log_probs import policy_log_probs
from nsr.training.optimizer import build_optimizer
from nsr.training.spikes import (
    NonFiniteUpdate,
    OutsizedUpdate,
    check_gradient,
    check_step,
    write_faulty_batch,
)
from nsr.training.step import update

GROUPS = random_groups()


def nsr_batch():
    return build_batch(GROUPS, weights_of("NSR", GROUPS), **BATCH)


def bits(optimizer, model):
    """Weights, moments and step counters, every bit of them."""
    state = optimizer.state_dict()
    tensors = [*model.state_dict().values(), *(master for master in state["masters"] if master is not None)]
    tensors += [value for entry in state["adamw"]["state"].values() for value in entry.values()]
    return [tensor.detach().contiguous().view(torch.uint8).clone() for tensor in tensors if tensor.ndim] + [
        tensor.clone() for tensor in tensors if not tensor.ndim
    ]


def same(before, after):
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_gradient_out_of_proportion_by_hand():
    history = [0.02] * 3 + [0.01, 0.03]
    check_gradient(0.5, 1.99, history, max_grad_norm=1.0)  # 99.5 times the median
    with pytest.raises(OutsizedUpdate, match=r"is 2\.02, 101 times the 0\.02 .* the last 5 steps"):
        check_gradient(0.5, 2.02, history, max_grad_norm=1.0)
    check_gradient(0.5, 2.02, history, max_grad_norm=3.0)  # one that is not even clipped
    check_gradient(0.5, 1e9, history[1:], max_grad_norm=1.0)  # too short a history
    check_gradient(0.5, 1e9, [0.0] * 9, max_grad_norm=1.0)  # of zeros none is known
    # The latest 20 alone count.
    check_gradient(0.5, 150.0, [0.01] * 50 + [2.0] * 20, max_grad_norm=1.0)


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_by_hand(numbers):
    with pytest.raises(NonFiniteUpdate):
        check_gradient(*numbers, [], max_grad_norm=1.0)


def test_a_step_larger_than_the_weights_by_hand():
    check_step(9.9, 10.0)
    with pytest.raises(OutsizedUpdate, match="would leave nothing of the model"):
        check_step(10.1, 10.0)
    with pytest.raises(NonFiniteUpdate, match="its state is damaged"):
        check_step(math.nan, 10.0)


@pytest.mark.parametrize(("kind", "dtype"), [("adamw", "float32"), ("adamw", "bfloat16"), ("adamw8bit", "float32")])
def test_the_proposed_step_is_the_one_that_is_taken(kind, dtype, monkeypatch):
    monkeypatch.setattr("nsr.training.optimizer.PIECE", {"cpu": 512})  # several pieces a parameter
    if kind == "adamw8bit":
        pytest.importorskip("torchao")
    # Wide enough that torchao keeps 8-bit states, which it does from 4096 numbers on.
    model = small_policy(getattr(torch, dtype), hidden_size=64, intermediate_size=128)
    optimizer = build_optimizer(model, lr=1e-2, kind=kind)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for weight in model.parameters():
            weight.grad = (0.1**step * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
        before = bits(optimizer, model) if kind == "adamw" else None
        proposed, size = optimizer.proposed_norms()
        assert before is None or same(before, bits(optimizer, model))
        weights = [*model.parameters()] if dtype == "float32" else optimizer.state_dict()["masters"]
        assert size == pytest.approx(float(torch.cat([one.detach().flatten() for one in weights]).norm()), rel=1e-5)
        assert proposed == pytest.approx(optimizer.step(), rel=1e-4)


@pytest.mark.parametrize("fault", ["gradient", "step", "not finite"])
def test_a_refused_step_leaves_every_bit_and_learning_goes_on(fault):
    model = small_policy()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    batch = nsr_batch()
    history = [update(model, SUPPORT, optimizer, [batch], **UPDATE)["grad_norm"] for _ in range(5)]
    twin, its_optimizer = copy.deepcopy((model, optimizer))
    before = bits(optimizer, model)
    bad = nsr_batch()
    if fault == "step":
        for entry in optimizer._adamw.state.values():
            entry["exp_avg"].mul_(1e9)  # a damaged state
        before = bits(optimizer, model)
    else:
        bad.weights_B.mul_(1e6 if fault == "gradient" else math.inf)
    with pytest.raises(NonFiniteUpdate if fault == "not finite" else OutsizedUpdate) as refused:
        update(model, SUPPORT, optimizer, [bad], **UPDATE, history=history)
    assert same(before, bits(optimizer, model))
    assert all(weight.grad is None for weight in model.parameters())
    assert refused.value.batch.index == 0
    if fault == "step":
        return
    first = update(model, SUPPORT, optimizer, [batch], **UPDATE, history=history)
    assert first == update(twin, SUPPORT, its_optimizer, [batch], **UPDATE, history=history)
    assert same(bits(optimizer, model), bits(its_optimizer, twin))


def test_real_steps_are_far_from_refused():
    # The largest factor between a gradient norm and the median before it, over some steps of a small policy.
    model = small_policy()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    history: list[float] = []
    for step in range(12):
        groups = random_groups(seed=step)
        batch = build_batch(groups, weights_of(("NSR", "PSR", "RLVR")[step % 3], groups), **BATCH)
        history.append(update(model, SUPPORT, optimizer, [batch], **UPDATE, history=history)["grad_norm"])
    assert max(history) < 10 * sorted(history)[len(history) // 2]


def test_the_faulty_batch_can_be_read_and_computed_again(tmp_path):
    model = small_policy()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    batch = nsr_batch()
    empty = build_batch(GROUPS, 0.0 * weights_of("NSR", GROUPS), **BATCH)
    bad = nsr_batch()
    bad.weights_B.mul_(math.inf)
    with pytest.raises(NonFiniteUpdate) as refused:
        update(model, SUPPORT, optimizer, [empty, bad], **{**UPDATE, "grad_acc_steps": 32})
    faulty = refused.value.batch
    assert faulty.index == 1
    assert len(faulty.rows) > 1
    path = tmp_path / "faults" / "step_000003.safetensors"
    write_faulty_batch(path, faulty, puzzles=["1,2,3=6"] * 4, about={"step": 3})
    with safe_open(path, "pt") as file:
        assert '"step": 3' in file.metadata()["about"]
        assert '"mini_batch": 1' in file.metadata()["about"]
        assert file.metadata()["puzzles"] == '["1,2,3=6", "1,2,3=6", "1,2,3=6", "1,2,3=6"]'
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    assert tensors["weights"].tolist() == [-math.inf] * batch.num_rows
    assert sorted(tensors["groups"].tolist()) == sorted(batch.group_B.tolist())
    rows = {
        tuple(row.tolist()[: length + int(mask.sum())])
        for row, length, mask in zip(
            tensors["token_ids"], tensors["prompt_lengths"], tensors["response_mask"], strict=True
        )
    }
    lengths = batch.prompt_lengths_B + batch.response_mask_BT.sum(dim=1)
    assert rows == {tuple(row[:length].tolist()) for row, length in zip(batch.tokens_BT, lengths, strict=True)}
    # The policy's log-probs, as anyone can compute them again from the file.
    again = policy_log_probs(model, SUPPORT, faulty.rows[0], UPDATE["temperature"])[0]
    wide = tensors["policy_log_probs"][: len(again), : again.shape[1]]
    assert torch.allclose(wide, again.detach(), atol=1e-5)
    assert "old_log_probs" not in tensors
