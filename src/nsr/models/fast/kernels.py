"""A faster route to the same linear layers on CPU, for sampling and for learning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nsr.models.fast.patched_forward import is_replaced, replaced

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
    with replaced(layers, _forward):
        yield


def matmul(left_NK: Tensor, right_KM: Tensor) -> Tensor:
    """The product by the quicker route; either may be transposed in memory. No gradient flows through it."""
    if left_NK.dtype == torch.float32 and left_NK.device.type == "cpu" and _available():
        return _product(left_NK, right_KM.t())
    return left_NK @ right_KM


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
    if type(module) is not nn.Linear or is_replaced(module):
        return False
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    return _Linear.apply(inputs, layer.weight, layer.bias)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # The operator torch.compile puts in a linear layer's place: no activation follows it ("none").
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # noqa: SLF001


class JoinedLinear:
    """One product for linear layers with the same input: inputs [N, in] -> their outputs side by side [N, sum of out].

    On CPU, in float32 and where the processor has it in bfloat16, it computes with a copy of the weights in the order
    that oneDNN reads them, 10% to 150% quicker the fewer the rows. It is a copy: later changes of the weights are not
    in it, so it must not outlive the call that made it. Elsewhere the layers' own weights are read.

    Args:
        layers: their weights are [out, in].
        rows: the first so many outputs of the first layer are computed, all if None.
    """

    def __init__(self, *layers: nn.Linear, rows: int | None = None) -> None:
        self._own = [(layer.weight[:rows], None if layer.bias is None else layer.bias[:rows]) for layer in layers]  # pyright: ignore[reportUnnecessaryComparison]
        self._sizes = [len(weight) for weight, _ in self._own]
        self._packed: Tensor | None = None
        self._bias: Tensor | None = None
        if _packs(layers[0].weight):
            joined = torch.cat([weight for weight, _ in self._own]) if len(layers) > 1 else self._own[0][0]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(joined.detach())  # noqa: SLF001
            if any(bias is not None for _, bias in self._own):
                parts = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in self._own]
                self._bias = torch.cat(parts).detach()
            self._own = []

    def __call__(self, inputs_NI: Tensor) -> Tensor:
        """Their outputs side by side."""
        if self._packed is not None:
            return _product(inputs_NI, self._packed, self._bias)
        outputs = [nn.functional.linear(inputs_NI, weight, bias) for weight, bias in self._own]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def apart(self, inputs_NI: Tensor) -> Sequence[Tensor]:
        """The output of each layer."""
        if self._packed is not None:
            return self(inputs_NI).split(self._sizes, dim=-1)
        return [nn.functional.linear(inputs_NI, weight, bias) for weight, bias in self._own]


def _packs(weight: Tensor) -> bool:
    """Whether weights of this type and device have an order that oneDNN prefers."""
    if weight.device.type != "cpu" or not _available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return weight.dtype == torch.float32
