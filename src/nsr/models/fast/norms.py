"""Root-mean-square norms with fewer passes over memory, and without the copies that autograd would keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from nsr.models.fast.patched_forward import is_replaced, replaced

_same: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def fast_norms(model: nn.Module) -> Iterator[None]:
    """Inside, the model's RMS norms are computed by one function with a gradient of its own; on a GPU that is torch's.

    On a CPU it computes in float32 and rounds where the norms of `transformers` do, so the values are theirs; torch's
    rounds once, after scaling, and they differ by rounding, as gradients do on both. Norms that compute something else,
    which is tried out once, are left alone.
    """
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm") and _applies(module)]
    with replaced(norms, _forward):
        yield


def _applies(module: nn.Module) -> bool:
    if is_replaced(module):
        return False
    if module not in _same:
        _same[module] = _is_known(module)
    return _same[module] and getattr(module, "weight").device.type in ("cpu", "cuda")  # noqa: B009 - for the type checker


def _is_known(module: nn.Module) -> bool:
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or not isinstance(eps, float) or weight.ndim != 1:
        return False
    probe = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1).to(weight.dtype)
    rounding = 1e-5 if weight.device.type == "cpu" else max(1e-5, 2 * torch.finfo(weight.dtype).eps)
    with torch.no_grad():
        return torch.allclose(module(probe), _forward(module, probe), rtol=rounding, atol=1e-6)


def _forward(norm: Any, inputs: Tensor) -> Tensor:
    if inputs.device.type == "cuda":
        return functional.rms_norm(inputs, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return _RMSNorm.apply(inputs, norm.weight, norm.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    """weight x (inputs / root of the mean square), the root in at least float32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(inputs.dtype, torch.float32)
        norm = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True, dtype=wide)
        factor = torch.rsqrt(norm.square_().div_(inputs.shape[-1]).add_(eps))
        ctx.save_for_backward(inputs, weight, factor)
        return weight * (inputs * factor).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        inputs, weight, factor = ctx.saved_tensors
        gradient: Tensor = gradients[0]
        needs_inputs, needs_weight, _ = ctx.needs_input_grad
        normed = inputs * factor  # in float32
        by_weight = None
        if needs_weight:
            by_weight = (gradient * normed).flatten(0, -2).sum(dim=0).to(weight.dtype)
        if not needs_inputs:
            return None, by_weight, None
        by_normed = (gradient * weight).to(factor.dtype)
        mean = torch.linalg.vecdot(by_normed, normed).div_(inputs.shape[-1]).unsqueeze(-1)
        by_inputs = by_normed.sub_(normed.mul_(mean)).mul_(factor).to(inputs.dtype)
        return by_inputs, by_weight, None
