"""Weight and residual are the master, to the bit; the weight is the bfloat16 number nearest to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nsr.training import master_weights as masters
from nsr.training.master_weights import change_norms, has_residual, join, no_residual, split


def of_bits(bits: list[int] | np.ndarray) -> Tensor:
    """Float32 numbers of these bits."""
    return torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))


def halves(master: Tensor) -> tuple[Tensor, Tensor]:
    weight, residual = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
    split(master.clone(), weight, residual)
    return weight, residual


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


# The bits of a master, of its weight, and the residual
BY_HAND = [
    (0x3F800000, 0x3F80, 0),  # 1
    (0x3F800001, 0x3F80, 1),  # the next number above
    (0x3F7FFFFF, 0x3F80, -1),  # and below
    (0x3F807FFF, 0x3F80, 0x7FFF),  # just below 1 + 2^-8, which is halfway between two weights
    (0x3F808000, 0x3F81, -0x8000),  # halfway: away from zero, to an odd weight
    (0x3F818000, 0x3F82, -0x8000),  # or an even one
    (0x3F808001, 0x3F81, -0x7FFF),
    (0xBF807FFF, 0xBF80, 0x7FFF),  # the same below zero: residuals count the distance from zero
    (0xBF808000, 0xBF81, -0x8000),
    (0xBF7FFFFF, 0xBF80, -1),
    (0x00000000, 0x0000, 0),
    (0x80000000, 0x8000, 0),  # -0
    (0x00000001, 0x0000, 1),  # the smallest above zero, and below
    (0x80000001, 0x8000, 1),
    (0x00008000, 0x0001, -0x8000),  # half of the smallest weight
    (0x007FFFFF, 0x0080, -1),  # the largest subnormal: the weight is a normal number
    (0x7F7F7FFF, 0x7F7F, 0x7FFF),  # the largest with a finite weight
    (0x7F7FFFFF, 0x7F80, -1),  # the largest finite one
    (0xFF7FFFFF, 0xFF80, -1),
    (0x7F800000, 0x7F80, 0),  # infinity
    (0x7FC00000, 0x7FC0, 0),  # NaN, as a processor makes it
]


@pytest.mark.parametrize(("bits", "upper", "lower"), BY_HAND, ids=lambda value: f"{value:x}")
def test_halves_by_hand(bits: int, upper: int, lower: int) -> None:
    master = of_bits([bits])
    weight, residual = halves(master)
    assert (int(weight.view(torch.int16)) & 0xFFFF, int(residual)) == (upper, lower)
    assert same_bits(join(weight, residual), master)


def check_halves(master: Tensor) -> None:
    """Together they are the master, and no bfloat16 number is nearer than the weight; of two as near, it is larger."""
    weight, residual = halves(master)
    assert same_bits(join(weight, residual), master)
    finite = master.isfinite() & weight.isfinite() & master.bfloat16().isfinite()
    exact, nearest, other = (each[finite].double() for each in (master, weight, master.bfloat16()))
    error, least = (nearest - exact).abs(), (other - exact).abs()  # torch rounds to nearest, ties to even
    assert torch.equal(error, least)
    assert bool((nearest.abs() >= other.abs()).all())
    assert torch.equal(nearest.signbit(), exact.signbit())


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_any_bits_survive(bits: list[int]) -> None:
    check_halves(of_bits(bits))


def test_all_weights_survive_with_residuals_at_the_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters, "BLOCK", {"cpu": 1000})  # many blocks, and one that is not full
    upper = np.arange(2**16, dtype=np.uint32)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    check_halves(of_bits(((upper[:, None] << 16) + lower).reshape(-1)))


def test_the_change_is_that_of_the_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters, "BLOCK", {"cpu": 100})
    before, after = torch.randn(2, 15, 17)
    parts = list(change_norms(after, *halves(before)))
    assert len(parts) == 3
    assert float(torch.stack(parts).norm()) == pytest.approx(float((after - before).norm()), rel=1e-6)


def test_a_new_residual_is_of_the_weight_itself() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 5).bfloat16())
    residual = no_residual(weight)
    assert torch.equal(join(weight, residual), weight.float())
    assert residual.nbytes == 2 * 15
    assert not residual.requires_grad


def test_which_weights_can_be_half_of_their_masters() -> None:
    weight = torch.zeros(3, 5, dtype=torch.bfloat16)
    assert has_residual(weight)
    assert not has_residual(weight.T)  # read in another order
    assert not any(has_residual(weight.to(dtype)) for dtype in (torch.float16, torch.float32, torch.float64))
