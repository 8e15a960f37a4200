"""AdamW that does not lose small updates.

A bfloat16 number has 8 bits of precision: a weight of 0.02 moves in steps of 0.0001, and AdamW at a learning rate of
3e-6 asks for a fortieth of one. Rounded to nearest, most of the update is lost. Two ways out:

- "adamw": float32 master weights take the updates, and the bfloat16 weights are their rounded copy.
- "adamw8bit": bfloat16 weights rounded up or down at random, so that the update is right on average (torchao; a
  third of the memory). The draws come from torch's global generator: to continue bit for bit, save its state too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nsr.runs.memory import PIECE

OptimizerKind = Literal["adamw", "adamw8bit"]

WEIGHT_DECAY = 1e-2
BETAS = (0.9, 0.95)
EPS = 1e-8


class PolicyOptimizer:
    """AdamW over a model's weights, with the masters behind them if there are any.

    It takes one parameter at a time: what it needs beside its state is a copy of the largest parameter, not of all.
    """

    def __init__(self, kind: OptimizerKind, weights: Sequence[nn.Parameter], lr: float) -> None:
        assert weights, "nothing to train"
        self.kind: OptimizerKind = kind
        self._weights = list(weights)
        self._masters = [_master(weight) if kind == "adamw" else weight for weight in weights]
        self._adamw = _torch_adamw(self._masters, lr) if kind == "adamw" else _torchao_adamw8bit(self._masters, lr)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights:
            weight.grad = None

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale the gradients, in place, so that their L2 norm over all parameters is at most `max_norm`.

        Returns the norm before. It is taken in float32; where it is not finite, the gradients are left as they are.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = _norm(gradients)
        if max_norm < norm < math.inf:
            for gradient in gradients:
                gradient.mul_(max_norm / norm)
        return norm

    @torch.no_grad()
    def proposed_norms(self) -> tuple[float, float]:
        """L2 norms of the change that `step` would make now, before any rounding, and of the weights. Changes nothing.

        It is AdamW's formula once more, in pieces: what it needs beside the state does not grow with the parameters.
        """
        changes: list[Tensor] = []
        sizes: list[Tensor] = []
        for (weight, master), group in zip(self._pairs(), self._groups(), strict=True):
            state = self._adamw.state.get(master, {})
            for start in range(0, master.numel(), PIECE):
                values = _piece(master, start)
                sizes.append(_norm_of(values))
                if weight.grad is not None:
                    changes.append(_change_norm(values, _piece(weight.grad, start), group, state, start))
        return _norm_of_norms(changes), _norm_of_norms(sizes)

    @torch.no_grad()
    def step(self) -> float:
        """Take one AdamW step with the gradients, and forget them.

        Returns the update norm: the L2 norm over all parameters of the change that was made, rounding included, to the
        float32 masters, or to the weights where these are their own masters.
        """
        gradients = [weight.grad for weight in self._weights]
        self.zero_grad()
        norms: list[Tensor] = []
        for weight, master, gradient, change in zip(
            self._weights, self._masters, gradients, self._scratch(), strict=True
        ):
            if gradient is None:
                continue
            change.copy_(master)
            master.grad = gradient.to(master.dtype)
            with _eager_on_cpu(master) if self.kind == "adamw8bit" else contextlib.nullcontext():
                self._adamw.step()  # steps the one parameter that has a gradient
            master.grad = None
            change.sub_(master)
            norms.append(_norm_of(change))
            if master is not weight:
                weight.copy_(master)
        return _norm(norms)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on but the weights and torch's random state. Tensors are not copied.

        `masters` holds one float32 tensor a parameter, in the model's order; None where a weight is its own master.
        """
        masters = [None if master is weight else master.detach() for weight, master in self._pairs()]
        return {"kind": self.kind, "adamw": self._adamw.state_dict(), "masters": masters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; weights that have masters become their rounded copies.

        ValueError if the state is of another kind of optimizer or of another model.
        """
        if state["kind"] != self.kind:
            raise ValueError(
                f"the saved optimizer is {state['kind']}, not {self.kind}: give --optimizer {state['kind']}."
            )
        saved = state["masters"]
        shapes = [None if master is weight else master.shape for weight, master in self._pairs()]
        if [None if master is None else master.shape for master in saved] != shapes:
            raise ValueError(
                "the saved optimizer belongs to a model of another shape or dtype: continue with that model."
            )
        self._adamw.load_state_dict(state["adamw"])
        with torch.no_grad():
            for (weight, master), value in zip(self._pairs(), saved, strict=True):
                if value is not None:
                    master.copy_(value)
                    weight.copy_(master)

    def _scratch(self) -> list[Tensor]:
        """Room for a copy of each master, the same for all: fresh memory for each costs more than the copy."""
        largest: dict[torch.dtype, Tensor] = {}
        for master in sorted(self._masters, key=torch.Tensor.numel, reverse=True):
            largest.setdefault(master.dtype, master.detach().new_empty(master.numel()))
        return [largest[master.dtype][: master.numel()].view(master.shape) for master in self._masters]

    def _groups(self) -> list[dict[str, Any]]:
        """The settings of each parameter."""
        return [group for group in self._adamw.param_groups for _ in group["params"]]

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(self._weights, self._masters, strict=True))


def build_optimizer(model: nn.Module, *, lr: float, kind: OptimizerKind) -> PolicyOptimizer:
    """AdamW over the trained parameters of `model`: weight decay 1e-2, betas (0.9, 0.95), eps 1e-8, constant lr.

    "adamw" gives parameters of less than 32 bits float32 masters and is torch's AdamW on the others. "adamw8bit" is
    torchao's AdamW with 8-bit moments, and stochastic rounding of bfloat16 weights.

    Raises:
        ValueError: torchao is needed and not installed.
    """
    return PolicyOptimizer(kind, [weight for weight in model.parameters() if weight.requires_grad], lr)


def _master(weight: nn.Parameter) -> nn.Parameter:
    return weight if weight.dtype.itemsize >= 4 else nn.Parameter(weight.detach().float())


def _torch_adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)


def _torchao_adamw8bit(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            'the optimizer adamw8bit needs torchao, which is not installed: pip install "nsr[gpu]", '
            "or give --optimizer adamw."
        ) from error
    return AdamW8bit(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, bf16_stochastic_round=True)


def _eager_on_cpu(parameter: Tensor) -> contextlib.AbstractContextManager[object]:
    """Torchao compiles its step, which on a CPU takes a C++ compiler and a minute: there it runs uncompiled."""
    if parameter.device.type == "cpu":
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def _piece(tensor: Tensor, start: int) -> Tensor:
    """`PIECE` numbers from `start` on, in at least 32 bits; those of torchao's 8-bit states as what they stand for."""
    codes = getattr(tensor, "codes", None)
    if codes is None:
        piece = tensor.detach().reshape(-1)[start : start + PIECE]
        return piece.to(torch.promote_types(piece.dtype, torch.float32))
    scale, qmap = tensor.scale, tensor.qmap  # pyright: ignore[reportAttributeAccessIssue]
    block = codes.numel() // scale.numel()
    values = qmap[codes.reshape(-1)[start : start + PIECE].int()].view(-1, block)
    return (values * scale[start // block :][: len(values), None]).view(-1)


def _change_norm(
    values: Tensor, gradient: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], start: int
) -> Tensor:
    """L2 norm of AdamW's next change to a piece of a parameter that begins at `start`. The state is left as it is."""
    lr, decay, steps = float(group["lr"]), float(group["weight_decay"]), float(state.get("step", 0.0)) + 1.0
    first_beta, second_beta = group["betas"]
    if state:
        first = torch.lerp(_piece(state["exp_avg"], start).to(gradient.dtype), gradient, 1 - first_beta)
        second = second_beta * _piece(state["exp_avg_sq"], start)
        second.addcmul_(gradient, gradient, value=1 - second_beta)
    else:
        first, second = (1 - first_beta) * gradient, (1 - second_beta) * gradient.square()
    # Both corrections of the bias, a for the first and b for the second moment, in one factor:
    # (m / a) / (sqrt(v / b) + eps) = sqrt(b) / a x m / (sqrt(v) + sqrt(b) eps)
    root = math.sqrt(1 - second_beta**steps)
    factor = root / (1 - first_beta**steps)
    first.div_(second.sqrt_().add_(root * float(group["eps"]))).add_(values, alpha=decay / factor)
    return lr * factor * _norm_of(first)


def _norm_of_norms(norms: Sequence[Tensor]) -> float:
    return float(torch.stack([norm.double() for norm in norms]).norm()) if norms else 0.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([_norm_of(tensor) for tensor in tensors]).norm()) if tensors else 0.0


def _norm_of(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
