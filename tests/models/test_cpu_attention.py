"""Attention by matrix products, against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from nsr.models.fast import attention as cpu_attention
from nsr.models.fast.attention import attention
from nsr.models.fast.norms import fast_norms

SHAPE = {"query": (2, 3, 5, 8), "key": (2, 3, 7, 8), "value": (2, 3, 7, 8)}


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in SHAPE.values()
    ]


VISIBLE = torch.ones(5, 7, dtype=torch.bool).tril(2).expand(2, 1, 5, 7)
TO_OUT = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("few", [0, 4])
def test_values_and_gradients_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, few: int, dtype: torch.dtype, largest: float
) -> None:
    monkeypatch.setattr(cpu_attention, "FEW_KEYS", few)
    bias = torch.zeros(VISIBLE.shape).masked_fill(~VISIBLE, -math.inf).to(torch.promote_types(dtype, torch.float32))
    actual = inputs(dtype)
    out = attention(*actual, bias, 0.3)
    assert out.dtype == dtype
    out.backward(TO_OUT.to(dtype))
    expected = [tensor.detach().double().requires_grad_() for tensor in actual]
    functional.scaled_dot_product_attention(*expected, VISIBLE, scale=0.3).backward(TO_OUT.to(dtype).double())
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < largest


def test_two_keys_by_hand() -> None:
    """Scores 0 and ln 3: weights 1/4 and 3/4; and where the second key is out, the first alone."""
    query, key = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    bias = torch.tensor([[0.0, 0.0], [0.0, -math.inf]])
    out = attention(query[None, None], key[None, None], torch.tensor([[[[4.0], [8.0]]]]), bias[None, None], 1.0)
    assert out.flatten().tolist() == pytest.approx([0.25 * 4 + 0.75 * 8, 4.0])


class MicroRMSNorm(torch.nn.Module):
    """As those of `transformers`; `shift` makes it another one."""

    def __init__(self, weight: torch.Tensor, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)
        self.variance_epsilon = 1e-5
        self.shift = shift

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.shift + self.weight) * wide.to(inputs.dtype)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_norms_have_the_values_and_gradients_of_the_plain_ones(dtype: torch.dtype, largest: float) -> None:
    norm = MicroRMSNorm(torch.linspace(0.5, 2, 6).to(dtype))
    given = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    results: list[tuple[torch.Tensor, ...]] = []
    for fast in (True, False):
        inputs = given.clone().requires_grad_()
        norm.zero_grad()
        if fast:
            with fast_norms(norm):
                assert "forward" in vars(norm)
                out = norm(inputs)
        else:
            out = norm(inputs)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype))
        assert inputs.grad is not None
        assert norm.weight.grad is not None
        results.append((out.detach(), inputs.grad, norm.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < largest
    assert torch.equal(results[0][0], results[1][0]) or dtype != torch.bfloat16


def test_norms_that_compute_something_else_are_left_alone() -> None:
    norm = MicroRMSNorm(torch.ones(4), shift=1.0)
    with fast_norms(norm):
        assert "forward" not in vars(norm)
