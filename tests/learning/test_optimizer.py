from __future__ import annotations

import io
import sys

import pytest
import torch
from learning_rollouts import relative_error, small_policy

from nsr.learning.optimizer import build_optimizer

LR = 3e-6


def policy(dtype):
    """Weights of the size that language models have."""
    return small_policy(dtype, initializer_range=0.02)


def draw_gradients(model, seed):
    """Random gradients, in the dtype of the weights; 1e-2 is large beside AdamW's eps."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = (1e-2 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


class ReferenceAdamW:
    """AdamW as its paper has it (arXiv 1711.05101, algorithm 2), in float64."""

    def __init__(self, start):
        self.weights, self.first, self.second, self.steps = start, 0.0, 0.0, 0

    def step(self, gradient):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.95 * self.second + 0.05 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.95**self.steps)
        self.weights = self.weights - LR * (first / (second.sqrt() + 1e-8) + 1e-2 * self.weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_small_steps_survive_with_masters(dtype, num_steps):
    model = policy(dtype)
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    start = flat(model.parameters())
    reference = ReferenceAdamW(start)
    norms = []
    for step in range(num_steps):
        draw_gradients(model, step)
        reference.step(flat(weight.grad for weight in model.parameters()))
        norms.append(optimizer.step())
    masters = optimizer.state_dict()["masters"] if dtype == torch.bfloat16 else model.parameters()
    applied, wanted = flat(masters) - start, reference.weights - start
    assert relative_error(applied, wanted) < (1e-6 if dtype == torch.float64 else 0.01)
    if num_steps == 1:
        assert norms[0] == pytest.approx(float(applied.norm()), rel=1e-4)
    if dtype == torch.bfloat16:
        assert all(master.dtype == torch.float32 for master in masters)
        rounded = [master.bfloat16() for master in masters]
        assert all(torch.equal(weight, copy) for weight, copy in zip(model.parameters(), rounded, strict=True))


def test_small_steps_are_lost_in_pure_bfloat16():
    # what masters are for: rounded to nearest, most of the very same step disappears
    model = policy(torch.bfloat16)
    start = flat(model.parameters())
    draw_gradients(model, 0)
    reference = ReferenceAdamW(start)
    reference.step(flat(weight.grad for weight in model.parameters()))
    torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-2).step()
    applied = flat(model.parameters()) - start
    assert float((applied != 0).double().mean()) < 0.1
    assert relative_error(applied, reference.weights - start) > 0.5


def test_masters_add_up_what_bfloat16_would_lose():
    # one weight of 1: bfloat16 next to it moves in steps of 2^-8 = 0.0039 below and 2^-7 above, 1300 times the step
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    torch.nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    for _ in range(700):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    # 700 steps of 3e-6 (1 + 0.01) are 0.00212, beyond half of 0.0039: the next bfloat16 below is nearer by now
    assert model.weight.item() == 1 - 2**-8
    assert optimizer.state_dict()["masters"][0].item() == pytest.approx(1 - 700 * LR * 1.01, abs=1e-5)


def test_stochastic_rounding_is_right_on_average():
    pytest.importorskip("torchao")
    # AdamW works on each element alone: a row of the parameter is one draw of the same weights under the same gradient
    draws, size = 2**21, 8
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(size, generator=generator)).bfloat16()
    gradient = (1e-2 * torch.randn(size, generator=generator)).bfloat16()
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(start.repeat(draws, 1))
    optimizer = build_optimizer(model, lr=LR, kind="adamw8bit")
    model.weight.grad = gradient.repeat(draws, 1)
    torch.manual_seed(0)
    optimizer.step()
    reference = ReferenceAdamW(start.double())
    reference.step(gradient.double())
    wanted = reference.weights - start.double()
    mean = model.weight.detach().double().mean(dim=0) - start.double()
    # a draw moves a weight by the space to the next bfloat16 with a probability of step / space: its variance is
    # about step * space, and the mean of D draws is off by sqrt(step * space / D)
    space = torch.exp2(start.double().abs().log2().floor() - 7)
    standard_error = float((wanted.abs() * space / draws).sum().sqrt() / wanted.norm())
    assert standard_error < 0.005
    assert relative_error(mean, wanted) < 0.01
    # no single draw is near: most weights do not move at all
    assert float((model.weight[0].double() == start.double()).double().mean()) > 0.5


def test_clipping_scales_all_gradients_by_one_factor():
    model = policy(torch.float32)
    draw_gradients(model, 0)
    before = flat(weight.grad for weight in model.parameters())
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    norm = optimizer.clip_grad_norm(0.25)
    assert norm == pytest.approx(float(before.norm()), rel=1e-5)
    assert norm > 0.25
    after = flat(weight.grad for weight in model.parameters())
    torch.testing.assert_close(after, before * (0.25 / before.norm()), rtol=1e-5, atol=0)
    # below the bound nothing changes, to the bit
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(0.25, rel=1e-5)
    assert torch.equal(flat(weight.grad for weight in model.parameters()), after)


def test_the_norm_of_bfloat16_gradients_is_taken_in_float32():
    model = policy(torch.bfloat16)
    draw_gradients(model, 0)
    exact = float(flat(weight.grad for weight in model.parameters()).norm())
    assert build_optimizer(model, lr=LR, kind="adamw").clip_grad_norm(1e9) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_norm_is_told_and_not_clipped(bad):
    model = policy(torch.float32)
    draw_gradients(model, 0)
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    next(model.parameters()).grad[0, 0] = bad
    before = flat(weight.grad for weight in model.parameters())
    assert not optimizer.clip_grad_norm(1.0) < float("inf")
    torch.testing.assert_close(flat(w.grad for w in model.parameters()), before, rtol=0, atol=0, equal_nan=True)


def test_a_step_forgets_the_gradients_and_leaves_parameters_without_one_alone():
    model = policy(torch.float32)
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    draw_gradients(model, 0)
    still = model.model.norm.weight
    still.grad, before = None, still.detach().clone()
    optimizer.step()
    assert torch.equal(still, before)
    assert all(weight.grad is None for weight in model.parameters())


def test_frozen_parameters_are_not_trained():
    model = policy(torch.float32)
    model.model.embed_tokens.weight.requires_grad_(False)
    frozen = model.model.embed_tokens.weight.detach().clone()
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    optimizer.step()
    assert torch.equal(model.model.embed_tokens.weight, frozen)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("adamw", torch.float32),
        ("adamw", torch.bfloat16),
        ("adamw8bit", torch.bfloat16),
        ("adamw8bit", torch.float32),
    ],
)
def test_a_saved_optimizer_goes_on_bit_for_bit(kind, dtype):
    if kind == "adamw8bit":
        pytest.importorskip("torchao")

    def steps(model, optimizer, seeds):
        norms = []
        for seed in seeds:
            torch.manual_seed(seed)  # stochastic rounding draws from it
            draw_gradients(model, seed)
            norms.append(optimizer.step())
        return norms

    model = small_policy(dtype, hidden_size=64, intermediate_size=128)  # so that some moments are 8-bit
    optimizer = build_optimizer(model, lr=1e-3, kind=kind)
    steps(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    norms = steps(model, optimizer, range(3, 6))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = small_policy(dtype, hidden_size=64, intermediate_size=128)
    resumed.load_state_dict(saved["model"])
    again = build_optimizer(resumed, lr=1e-3, kind=kind)
    again.load_state_dict(saved["optimizer"])
    assert steps(resumed, again, range(3, 6)) == norms
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(optimizer.state_dict()["masters"], again.state_dict()["masters"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_loaded_masters_set_the_weights():
    model, other = policy(torch.bfloat16), policy(torch.bfloat16)
    optimizer = build_optimizer(model, lr=0.1, kind="adamw")
    draw_gradients(model, 0)
    optimizer.step()
    build_optimizer(other, lr=0.1, kind="adamw").load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_saved_optimizer_of_another_kind_or_model_is_refused():
    state = build_optimizer(policy(torch.bfloat16), lr=LR, kind="adamw").state_dict()
    with pytest.raises(ValueError, match="another shape or dtype"):
        build_optimizer(policy(torch.float32), lr=LR, kind="adamw").load_state_dict(state)
    larger = small_policy(torch.bfloat16, hidden_size=64)
    with pytest.raises(ValueError, match="another shape or dtype"):
        build_optimizer(larger, lr=LR, kind="adamw").load_state_dict(state)
    with pytest.raises(ValueError, match="--optimizer adamw8bit"):
        build_optimizer(larger, lr=LR, kind="adamw").load_state_dict({**state, "kind": "adamw8bit"})


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match=r'pip install "nsr\[gpu\]"'):
        build_optimizer(policy(torch.bfloat16), lr=LR, kind="adamw8bit")
