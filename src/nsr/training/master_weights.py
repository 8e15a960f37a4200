"""Float32 masters of bfloat16 weights: the weight is the upper half of its master's bits, the lower is held beside it.

A bfloat16 number's bits are the upper 16 of those of the same float32 number. So a master's bits, as an integer, are
rounded to the nearest multiple of 2^16, ties away from zero: that is the weight, and the residual is what is left.

    master = 2^16 weight + residual        -2^15 <= residual < 2^15

These 2 + 2 bytes are the master's 4, exactly: subnormal numbers, zeros of both signs, and numbers whose weight is
rounded to infinity are among them. NaN survives too, but with all bits of its fraction set its weight is a zero.

Ties go away from zero because an even weight to which they all went would have 2^16 + 1 residuals.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nsr.memory.estimate import of_device

BLOCK = {"cpu": 2**20, "cuda": 2**24}
"""Numbers that are worked on together: on a CPU so few that what is made of them on the way, 8 MB, stays near it."""


def has_residual(weight: Tensor) -> bool:
    """Whether a weight can be half of its master: bfloat16, and contiguous, so that both can be read in blocks."""
    return weight.dtype == torch.bfloat16 and weight.is_contiguous()


def no_residual(weight: Tensor) -> Tensor:
    """The residual of a master that is the weight itself: int16 zeros of its shape."""
    return torch.zeros_like(weight, dtype=torch.int16, requires_grad=False)


@torch.no_grad()
def join(weight: Tensor, residual: Tensor, out: Tensor | None = None) -> Tensor:
    """The float32 masters of bfloat16 weights and their int16 residuals, all contiguous and of one shape.

    They are written into `out`, where it is given.
    """
    if out is None:
        out = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
    for upper, lower, bits in _blocks(weight.view(torch.int16), residual, out.view(torch.int32)):
        bits.copy_(upper).bitwise_left_shift_(16).add_(lower)
    return out


@torch.no_grad()
def split(master: Tensor, weight: Tensor, residual: Tensor) -> None:
    """Write float32 masters into bfloat16 weights, rounded, and int16 residuals, all contiguous and of one shape."""
    for upper, lower, bits in _blocks(weight.view(torch.int16), residual, master.view(torch.int32)):
        rounded = bits.add(0x8000).bitwise_right_shift_(16)
        upper.copy_(rounded)
        lower.copy_(torch.sub(bits, rounded.bitwise_left_shift_(16), out=rounded))


@torch.no_grad()
def change_norms(master: Tensor, weight: Tensor, residual: Tensor) -> Iterator[Tensor]:
    """L2 norms, of one block after the other, of what float32 masters are away from the ones that are held."""
    for upper, lower, new in _blocks(weight, residual, master):
        yield torch.linalg.vector_norm(join(upper, lower).sub_(new))


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = of_device(BLOCK, tensors[0].device.type)
    yield from zip(*(tensor.detach().view(-1).split(size) for tensor in tensors), strict=True)
