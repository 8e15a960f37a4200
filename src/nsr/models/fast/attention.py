"""Attention with gradients: on a CPU by matrix products, as torch's own is slow there at short queries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nsr.memory.estimate import FEW_KEYS


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Inside, torch's attention on a GPU is not cuDNN's, which plans anew for each shape: batches come in many."""
    cuda: Any = torch.backends.cuda
    before: bool = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(before)


def attention(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S D"],
    bias: Float[Tensor, "B 1 Q S"],
    scaling: float,
) -> Float[Tensor, "B H Q D"]:
    """softmax(scaling q k + bias) v: products in the type of the inputs, scores and softmax in at least float32.

    The probabilities are kept for the gradient while they are few, and else made again, so that what is kept does not
    grow with Q x S.

    Args:
        query: queries.
        key: keys.
        value: values.
        bias: 0 where a query sees a key, -inf where not; every query sees one. Of the type of the scores. No gradient.
        scaling: multiplies the scores.
    """
    return _Attention.apply(query, key, value, bias, scaling)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
        probs = _probs(query, key, bias, scaling).to(value.dtype)
        out = probs @ value
        few = key.shape[-2] <= FEW_KEYS * key.shape[-1]
        ctx.save_for_backward(query, key, value, bias, out, probs if few else None)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, kept = ctx.saved_tensors
        gradient: Tensor = gradients[0]
        probs = _probs(query, key, bias, ctx.scaling) if kept is None else kept
        by_value = probs.to(value.dtype).mT @ gradient
        # the softmax's gradient: p (dp - sum of p dp), and that sum is the output times its gradient
        mean = torch.linalg.vecdot(gradient.to(bias.dtype), out.to(bias.dtype)).unsqueeze(-1)
        by_probs = (gradient @ value.mT).to(bias.dtype)
        by_scores = by_probs.sub_(mean).mul_(probs).to(query.dtype)
        return (by_scores @ key).mul_(ctx.scaling), (by_scores.mT @ query).mul_(ctx.scaling), by_value, None, None


def _probs(query: Tensor, key: Tensor, bias: Tensor, scaling: float) -> Tensor:
    scores = torch.matmul(query.to(bias.dtype) * scaling, key.to(bias.dtype).mT)
    return torch.softmax(scores.add_(bias), dim=-1)
