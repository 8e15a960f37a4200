from __future__ import annotations

import io
import sys

import pytest
import torch
from learning_rollouts import relative_error, small_policy

from nsr.training.optimizer import build_optimizer

LR = 3e-6


def policy(dtype):
    """Weights of the size that language models have."""
    return small_policy(dtype, initializer_range=0.02)


def draw_gradients(model, seed):
    """Random gradients, in the dtype of the weights; 1e-2 is large beside AdamW's eps."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = (1e-2 * torch.randn(weight.shape, generator=generator)).to(weight)


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
        # no bfloat16 number is nearer to a master than its weight
        exact, rounded = flat(masters), flat(master.bfloat16() for master in masters)
        assert torch.equal((flat(model.parameters()) - exact).abs(), (rounded - exact).abs())


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


class MastersBeside:
    """Float32 masters in full beside 16-bit weights, stepped by torch: what the optimizer keeps less of."""

    def __init__(self, weights, lr):
        self.weights = list(weights)
        self.masters = [torch.nn.Parameter(weight.detach().float()) for weight in self.weights]
        self.adamw = torch.optim.AdamW(self.masters, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-2, fused=True)

    @torch.no_grad()
    def step(self):
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        self.adamw.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight.grad is None:
                continue
            if weight.dtype == torch.bfloat16:  # to nearest, ties away from zero, as bits
                weight.copy_((master.view(torch.int32) + 0x8000 >> 16).to(torch.int16).view(torch.bfloat16))
            else:
                weight.copy_(master)
            weight.grad = None


def draw_gradients_at(model, seed):
    """Gradients that depend on the weights, so that a weight that is off is noticed later on."""
    draw_gradients(model, seed)
    for weight in model.parameters():
        weight.grad.add_(weight.detach(), alpha=0.1)


def assert_same_masters(optimizer, expected):
    for master, other in zip(optimizer.state_dict()["masters"], expected, strict=True):
        assert torch.equal(master.view(torch.int32).cpu(), other.detach().view(torch.int32).cpu())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_training_is_bit_for_bit_that_with_float32_masters(monkeypatch, dtype, tied, device):
    monkeypatch.setattr("nsr.training.master_weights.BLOCK", {"cpu": 300})  # several blocks a parameter
    monkeypatch.setattr("nsr.training.optimizer.PIECE", {"cpu": 512})
    model, twin = (small_policy(dtype, tie_word_embeddings=tied, initializer_range=0.02).to(device) for _ in range(2))
    optimizer, reference = build_optimizer(model, lr=1e-3, kind="adamw"), MastersBeside(twin.parameters(), 1e-3)
    for step in range(12):
        before = flat(reference.masters)
        for each in (model, twin):
            draw_gradients_at(each, step)
            if step % 3 == 1:  # a parameter without gradient is left as it is
                each.model.layers[1].mlp.up_proj.weight.grad = None
        proposed, size = optimizer.proposed_norms()
        norm = optimizer.step()
        reference.step()
        change = float((flat(reference.masters) - before).norm())
        assert norm == pytest.approx(change, rel=1e-4)
        assert proposed == pytest.approx(change, rel=1e-4)
        assert size == pytest.approx(float(before.norm()), rel=1e-5)
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))
        assert_same_masters(optimizer, reference.masters)
    # most masters are no bfloat16 numbers by now, so there was something to keep
    assert float((flat(reference.masters) != flat(twin.parameters())).double().mean()) > 0.9


def test_bfloat16_weights_in_another_order_have_float32_masters():
    model, twin = torch.nn.Module(), torch.nn.Module()
    for each in (model, twin):
        each.weight = torch.nn.Parameter(torch.arange(1.0, 13.0).bfloat16().view(3, 4).T)
    optimizer, reference = build_optimizer(model, lr=1e-3, kind="adamw"), MastersBeside(twin.parameters(), 1e-3)
    for step in range(3):
        for each in (model, twin):
            draw_gradients_at(each, step)
        optimizer.step()
        reference.step()
    assert_same_masters(optimizer, reference.masters)
    assert torch.equal(model.weight, twin.weight)


def held_by(value, weights, seen):
    """Bytes of the tensors that an object holds, but for the weights themselves."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in weights:
            return 0
        weights.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(value, dict):
        return sum(held_by(each, weights, seen) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return sum(held_by(each, weights, seen) for each in value)
    return held_by(vars(value), weights, seen) if isinstance(value, torch.optim.Optimizer) else 0


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.bfloat16, 2 + 8), (torch.float16, 4 + 8), (torch.float32, 8), (torch.float64, 16)]
)
def test_bytes_held_a_parameter(dtype, width):
    model = policy(dtype)
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    for step in range(2):
        draw_gradients(model, step)
        optimizer.step()
    optimizer.state_dict()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    count = sum(weight.numel() for weight in model.parameters())
    counters = 4 * len(list(model.parameters()))
    assert held_by(vars(optimizer), weights, set()) == width * count + counters


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


def test_a_state_with_ties_rounded_to_even_goes_on_from_its_masters():
    # 1 + 2^-8 is halfway between the bfloat16 numbers 1 (even) and 1 + 2^-7; versions with whole masters had 1
    model = torch.nn.Linear(2, 1, bias=False).bfloat16()
    torch.nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    master = torch.tensor([[1 + 2**-8, -1 - 2**-8]])
    assert master.bfloat16().tolist() == [[1.0, -1.0]]
    optimizer.load_state_dict({**optimizer.state_dict(), "masters": [master.clone()]})
    assert_same_masters(optimizer, [master])
    assert model.weight.tolist() == [[1 + 2**-7, -1 - 2**-7]]


def test_a_saved_state_stays_as_it_was():
    model = policy(torch.bfloat16)
    optimizer = build_optimizer(model, lr=0.1, kind="adamw")
    saved = optimizer.state_dict()["masters"]
    before = [master.clone() for master in saved]
    draw_gradients(model, 0)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(saved, before, strict=True))


def test_a_weight_that_someone_else_writes_moves_its_master():
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    optimizer = build_optimizer(model, lr=LR, kind="adamw")
    optimizer.load_state_dict({**optimizer.state_dict(), "masters": [torch.tensor([[1 + 2**-10]])]})
    with torch.no_grad():
        model.weight.fill_(4.0)
    # the residual is a share of the weight's own steps, which are four times as wide at 4
    assert optimizer.state_dict()["masters"][0].item() == 4 + 2**-8


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
