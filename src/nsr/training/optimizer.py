"""AdamW that does not lose small updates.

A bfloat16 number has 8 bits of precision: a weight of 0.02 moves in steps of 0.0001, and AdamW at a learning rate of
3e-6 asks for a fortieth of one. Rounded to nearest, most of the update is lost. Two ways out:

- "adamw": float32 master weights take the updates, and the bfloat16 weights are their rounded copy. Of a master only
  the 16 bits are held that the weight lacks, so both together are the master.
- "adamw8bit": bfloat16 weights rounded up or down at random, so that the update is right on average (torchao; less
  than half of the memory). The draws come from torch's global generator: to continue bit for bit, save its state too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nsr.errors import UserError
from nsr.memory.estimate import PIECE, of_device
from nsr.training.master_weights import change_norms, has_residual, join, no_residual, split

OptimizerKind = Literal["adamw", "adamw8bit"]

WEIGHT_DECAY = 1e-2
BETAS = (0.9, 0.95)
EPS = 1e-8


class PolicyOptimizer:
    """AdamW over a model's weights, with the masters behind them if there are any.

    It takes one parameter at a time: what it needs beside its state is a copy of the largest parameter, not of all.

    A bfloat16 weight is half of its master. Whoever else writes into it between two steps moves the master along: it is
    the new weight and the old residual then, no number at all where a zero is written over a residual below zero. Other
    masters stay, and the next step writes over the weight. To go on from other weights, build a new optimizer.
    """

    def __init__(self, kind: OptimizerKind, weights: Sequence[nn.Parameter], lr: float) -> None:
        assert weights, "nothing to train"
        self.kind: OptimizerKind = kind
        self._weights = list(weights)
        self._residuals = [no_residual(each) if kind == "adamw" and has_residual(each) else None for each in weights]
        # What AdamW steps: the weight, a float32 copy of it, or room for what weight and residual are together
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
        for weight, master, residual, group in zip(
            self._weights, self._masters, self._residuals, self._groups(), strict=True
        ):
            state = self._adamw.state.get(master, {})
            steps = float(state.get("step", 0.0)) + 1.0
            for piece in _pieces(weight):
                values = _piece(master, piece) if residual is None else _joined_piece(weight, residual, piece)
                sizes.append(_norm_of(values))
                if weight.grad is not None:
                    changes.append(_change_norm(values, _piece(weight.grad, piece), group, state, steps, piece))
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
        for weight, master, residual, gradient, room in zip(
            self._weights, self._masters, self._residuals, gradients, self._scratch(), strict=True
        ):
            if gradient is None:
                continue
            if residual is None:
                room.copy_(master)
                self._step_one(master, gradient)
                norms.append(_norm_of(room.sub_(master)))
                if master is not weight:
                    weight.copy_(master)
            else:
                master.data = join(weight, residual, room)
                self._step_one(master, gradient)
                norms += change_norms(room, weight, residual)
                split(room, weight, residual)
                master.data = _nothing(weight)
        return _norm(norms)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on but the weights and torch's random state.

        `masters` holds one float32 tensor a parameter, in the model's order; None where a weight is its own master.
        Masters of bfloat16 weights are made for it, all of them, in the machine's memory: as long as it is kept it
        takes 4 bytes a weight there, and none on a GPU. The other tensors are not copied.
        """
        masters = [
            (None if master is weight else master.detach()) if residual is None else join(weight, residual).cpu()
            for weight, master, residual in zip(self._weights, self._masters, self._residuals, strict=True)
        ]
        return {"kind": self.kind, "adamw": self._adamw.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; weights that have masters become their rounded copies.

        A master halfway between two bfloat16 weights, as one in 2^16 is, is rounded away from zero. Older versions
        rounded it to the even weight: their states go on from the same masters, with another weight there.

        Raises:
            ValueError: the state is of another kind of optimizer or of another model.
        """
        if state["kind"] != self.kind:
            raise UserError(
                f"the saved optimizer is {state['kind']}, not {self.kind}: give --optimizer {state['kind']}."
            )
        saved = state["masters"]
        pairs = zip(self._weights, self._masters, strict=True)
        shapes = [None if master is weight else weight.shape for weight, master in pairs]
        if [None if master is None else master.shape for master in saved] != shapes:
            raise UserError(
                "the saved optimizer belongs to a model of another shape or dtype: continue with that model."
            )
        self._adamw.load_state_dict(state["adamw"])
        for weight, master, residual, room, value in zip(
            self._weights, self._masters, self._residuals, self._scratch(), saved, strict=True
        ):
            if residual is not None:
                split(room.copy_(value), weight, residual)
            elif value is not None:
                master.copy_(value)
                weight.copy_(master)

    def _step_one(self, master: nn.Parameter, gradient: Tensor) -> None:
        """One step of AdamW's, for one parameter alone: the others have no gradient."""
        master.grad = gradient.to(master.dtype)
        with _eager_on_cpu(master) if self.kind == "adamw8bit" else contextlib.nullcontext():
            self._adamw.step()
        master.grad = None

    def _scratch(self) -> list[Tensor]:
        """Room for each master, the same for all: fresh memory for each costs more than copying into it."""
        largest: dict[torch.dtype, Tensor] = {}
        pairs = list(zip(self._weights, self._masters, strict=True))
        for weight, master in sorted(pairs, key=lambda pair: pair[0].numel(), reverse=True):
            largest.setdefault(master.dtype, master.detach().new_empty(weight.numel()))
        return [largest[master.dtype][: weight.numel()].view(weight.shape) for weight, master in pairs]

    def _groups(self) -> list[dict[str, Any]]:
        """The settings of each parameter."""
        return [group for group in self._adamw.param_groups for _ in group["params"]]


def build_optimizer(model: nn.Module, *, lr: float, kind: OptimizerKind) -> PolicyOptimizer:
    """AdamW over the trained parameters of `model`: weight decay 1e-2, betas (0.9, 0.95), eps 1e-8, constant lr.

    "adamw" gives parameters of less than 32 bits float32 masters and is torch's AdamW on the others. "adamw8bit" is
    torchao's AdamW with 8-bit moments, and stochastic rounding of bfloat16 weights.

    Raises:
        ValueError: torchao is needed and not installed.
    """
    return PolicyOptimizer(kind, [weight for weight in model.parameters() if weight.requires_grad], lr)


def _master(weight: nn.Parameter) -> nn.Parameter:
    if weight.dtype.itemsize >= 4:
        return weight
    return nn.Parameter(_nothing(weight) if has_residual(weight) else weight.detach().float())


def _nothing(weight: Tensor) -> Tensor:
    """What AdamW's parameter holds between the steps where the master is weight and residual: no numbers."""
    return weight.new_empty(0, dtype=torch.float32)


def _torch_adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)


def _torchao_adamw8bit(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            'the optimizer adamw8bit needs torchao, which is not installed: pip install "nsr[gpu]", '
            "or give --optimizer adamw."
        ) from error
    return AdamW8bit(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, bf16_stochastic_round=True)


def _eager_on_cpu(parameter: Tensor) -> contextlib.AbstractContextManager[object]:
    """Torchao compiles its step, which on a CPU takes a C++ compiler and a minute: there it runs uncompiled."""
    if parameter.device.type == "cpu":
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def _pieces(weight: Tensor) -> list[slice]:
    size = of_device(PIECE, weight.device.type)
    return [slice(start, start + size) for start in range(0, weight.numel(), size)]


def _joined_piece(weight: Tensor, residual: Tensor, piece: slice) -> Tensor:
    """A piece of the masters."""
    return join(*(half.detach().view(-1)[piece] for half in (weight, residual)))


def _piece(tensor: Tensor, piece: slice) -> Tensor:
    """A piece in at least 32 bits; of torchao's 8-bit states what they stand for."""
    codes = getattr(tensor, "codes", None)
    if codes is None:
        values = tensor.detach().reshape(-1)[piece]
        return values.to(torch.promote_types(values.dtype, torch.float32))
    scale, qmap = tensor.scale, tensor.qmap  # pyright: ignore[reportAttributeAccessIssue]
    block = codes.numel() // scale.numel()
    values = qmap[codes.reshape(-1)[piece].int()].view(-1, block)
    return (values * scale[piece.start // block :][: len(values), None]).view(-1)


def _change_norm(
    values: Tensor, gradient: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], steps: float, piece: slice
) -> Tensor:
    """L2 norm of the change to a piece of a parameter that AdamW's step number `steps` makes; the state stays."""
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    first_beta, second_beta = group["betas"]
    if state:
        first = torch.lerp(_piece(state["exp_avg"], piece).to(gradient.dtype), gradient, 1 - first_beta)
        second = second_beta * _piece(state["exp_avg_sq"], piece)
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
