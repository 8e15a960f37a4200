"""A faster route to the same linear layers on CPU, for sampling and for learning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

KEPT_KERNELS = 128
"""Kernels that oneDNN, and torch in front of it, keep for shapes to come back: by default 1024 each."""

# A kernel takes a quarter of a MB in each of the two caches, and batches come in more shapes than 128: a run would grow
# by hundreds of MB for an hour. Both are read when the first kernel is made, so this is early enough.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, str(KEPT_KERNELS))


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """Inside, the model's float32 linear layers on CPU are computed by oneDNN instead of torch's default, MKL.

    Both ship with torch, which uses oneDNN for bfloat16. On AMD processors it takes half of MKL's time; results differ
    by rounding. Weights are read where they are. Nothing is done where it does not apply: other types and devices, a
    torch without oneDNN, layers whose forward someone else has replaced. Gradients flow through them.
    """
    modules = model.modules() if _available() else ()
    layers = [module for module in modules if isinstance(module, nn.Linear) and _applies(module)]
    for layer in layers:
        setattr(layer, "forward", partial(_forward, layer))  # noqa: B010 - a method, for the type checker
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Inputs [..., in] @ weight [out, in] transposed + bias [out], by the quicker route; no gradient flows through."""
    if weight.dtype == torch.float32 and weight.device.type == "cpu" and _available():
        return _product(inputs, weight, bias)
    return functional.linear(inputs, weight, bias)


class _Linear(torch.autograd.Function):
    """inputs [..., in] @ weight [out, in] transposed + bias [out]; its gradients are such products too."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        gradient: Tensor = gradients[0]
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        rows_NO = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.t()) if needs_inputs else None,
            _product(rows_NO.t(), inputs.reshape(-1, inputs.shape[-1]).t()) if needs_weight else None,
            rows_NO.sum(dim=0) if needs_bias else None,
        )


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _applies(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    return _Linear.apply(inputs, layer.weight, layer.bias)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # The operator torch.compile puts in a linear layer's place: no activation follows it ("none").
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # noqa: SLF001
