"""Gated MLPs that keep half as much for the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from nsr.models.fast.kernels import matmul
from nsr.models.fast.patched_forward import is_replaced, replaced

_same: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_PARTS = ("gate_proj", "up_proj", "down_proj")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def lean_mlps(model: nn.Module) -> Iterator[None]:
    """Inside, the model's gated MLPs, down(silu(gate(x)) up(x)), make their product again for the gradient.

    What is kept is gate and up, and not silu(gate) and the product too. Values and gradients are the same, to the last
    bit where the product is torch's own too. MLPs that compute something else, which is tried out once, are left alone,
    and so are those whose last layer has a bias.
    """
    mlps = [module for module in model.modules() if type(module).__name__.endswith("MLP") and _applies(module)]
    with replaced(mlps, _forward):
        yield


def _applies(module: Any) -> bool:
    if is_replaced(module) or not all(_is_plain(getattr(module, name, None)) for name in _PARTS):
        return False
    if module.down_proj.bias is not None:
        return False  # it would be left out
    if module not in _same:
        _same[module] = _is_known(module)
    return _same[module]


def _is_plain(part: object) -> bool:
    if type(part) is not nn.Linear:
        return False
    own = vars(part)  # another forward, or a hook, of the last product would be left out
    return "forward" not in own and not any(own[name] for name in _HOOKS)


def _is_known(module: Any) -> bool:
    weight: Tensor = module.gate_proj.weight
    probe = torch.linspace(-2, 3, 2 * weight.shape[1], device=weight.device).view(2, -1).to(weight.dtype)
    rough = max(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    values = torch.linspace(-6, 6, 97)  # where they are small, activations differ by less than rounding does
    try:
        with torch.no_grad():
            if not torch.equal(module.act_fn(values), functional.silu(values)):
                return False
            expected, found = module(probe).float(), _forward(module, probe).float()
    except Exception:  # noqa: BLE001 - whatever it is, the layer is left alone
        return False
    return bool(expected.norm() > 0) and bool((found - expected).norm() <= rough * expected.norm())


def _forward(mlp: Any, inputs: Tensor) -> Tensor:
    return _GatedDown.apply(mlp.gate_proj(inputs), mlp.up_proj(inputs), mlp.down_proj.weight)


class _GatedDown(torch.autograd.Function):
    """(silu(gate) up) [..., in] @ weight [out, in] transposed."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        product = functional.silu(gate).mul_(up)
        return matmul(product.flatten(0, -2), weight.t()).unflatten(0, gate.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        needs_gate, needs_up, needs_weight = ctx.needs_input_grad
        rows_NO = gradients[0].flatten(0, -2)
        silu = functional.silu(gate)
        by_weight = matmul(rows_NO.t(), (silu * up).flatten(0, -2)) if needs_weight else None
        if not (needs_gate or needs_up):
            return None, None, by_weight
        by_product = matmul(rows_NO, weight).view_as(gate)
        by_up = silu.mul_(by_product) if needs_up else None
        by_gate = torch.ops.aten.silu_backward(by_product.mul_(up), gate) if needs_gate else None
        return by_gate, by_up, by_weight
