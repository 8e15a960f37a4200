"""What keeps a bad step from being taken: neither weights nor optimizer have changed when `RefusedUpdate` is raised.

Three things are refused: a loss or gradient that is not finite; a gradient out of all proportion to the run's own; and
a step that would move the weights by more than their own size. AdamW divides the gradient by its recent size, so the
second does not show in the size of the step (no weight moves by more than about 1.17 x lr), but it turns the step in a
wrong direction, and holds learning up for many steps after. The third looks at what the optimizer is about to do.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from nsr.runs.errors import StoppedRun
from nsr.runs.files import to_json, write_atomic
from nsr.training.batch import Batch

HISTORY = 20
"""Latest steps with a signal whose gradient norms a new one is compared with."""
SHORTEST_HISTORY = 5
PROPORTION = 100.0
"""A gradient norm of so many times the median of the history is refused, if the clip is active as well."""


class RefusedUpdate(StoppedRun):
    """An optimizer step that must not be taken. Nothing has changed, but for earlier steps on the same rollouts."""

    def __init__(self, reason: str) -> None:
        """`reason` says it in a sentence or a few. `update` adds the batch."""
        super().__init__(reason)
        self.reason = reason
        self.batch: FaultyBatch | None = None


class NonFiniteUpdate(RefusedUpdate):
    """The loss or the gradient is not finite."""


class OutsizedUpdate(RefusedUpdate):
    """The gradient, or the step, is out of all proportion."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultyBatch:
    """The rows that a refused step was to learn from."""

    index: int
    """Which mini-batch of the rollout batch, from 0."""
    rows: tuple[Batch, ...]
    """The microbatches in their order."""
    log_probs: tuple[Tensor, ...]
    """Of each: the policy's own log-probs, as far as they can be computed."""
    numbers: Mapping[str, float]
    """Loss, gradient norm and the like."""


def check_gradient(loss: float, grad_norm: float, history: Sequence[float], *, max_grad_norm: float) -> None:
    """Raise RefusedUpdate where loss or gradient must not become a step.

    Args:
        loss: of the mini-batch.
        grad_norm: L2 norm of its gradient, before it was clipped.
        history: the gradient norms of earlier steps, latest last.
        max_grad_norm: what gradients are clipped to: one that is not clipped is never out of proportion.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFiniteUpdate(f"The loss is {loss} and the gradient norm {grad_norm}.")
    recent = [norm for norm in history if norm > 0][-HISTORY:]
    if len(recent) < SHORTEST_HISTORY:
        return
    usual = statistics.median(recent)
    if grad_norm > max_grad_norm and grad_norm > PROPORTION * usual:
        raise OutsizedUpdate(
            f"The gradient norm is {grad_norm:.3g}, {grad_norm / usual:.0f} times the {usual:.3g} that it was in the "
            f"middle of the last {len(recent)} steps (more than {PROPORTION:g} times is refused)."
        )


def check_step(update_norm: float, weight_norm: float) -> None:
    """Raise RefusedUpdate where a step of that L2 norm must not be taken with weights of that L2 norm."""
    if not math.isfinite(update_norm):
        raise NonFiniteUpdate(f"The optimizer's step has the norm {update_norm}, so its state is damaged.")
    if update_norm > weight_norm:
        raise OutsizedUpdate(
            f"The optimizer's step has the norm {update_norm:.3g} and all weights together have {weight_norm:.3g}: it "
            "would leave nothing of the model."
        )


def write_faulty_batch(path: Path, batch: FaultyBatch, *, puzzles: Sequence[str], about: Mapping[str, object]) -> None:
    """Write the rows as safetensors, for a look at them; see "Faults while running" in docs/reliability.md.

    Args:
        path: where to; its folder is made.
        batch: the rows.
        puzzles: canonical keys of the groups that the mini-batch was built from.
        about: what else to say; goes with the numbers into the file's metadata, as JSON.
    """
    columns = max(part.tokens_BT.shape[1] for part in batch.rows)

    def rows(values: Sequence[Tensor]) -> Tensor:
        wide = [
            torch.nn.functional.pad(value, (0, columns - value.shape[1])) if value.ndim == 2 else value
            for value in values
        ]
        return torch.cat([value.detach().cpu() for value in wide]).contiguous()

    tensors = {
        "token_ids": rows([part.tokens_BT for part in batch.rows]),
        "response_mask": rows([part.response_mask_BT for part in batch.rows]),
        "prompt_lengths": rows([part.prompt_lengths_B for part in batch.rows]),
        "weights": rows([part.weights_B for part in batch.rows]),
        "groups": rows([part.group_B for part in batch.rows]),
        "sampler_log_probs": rows([part.sampler_log_probs_BT for part in batch.rows]),
        "policy_log_probs": rows(batch.log_probs),
    }
    old = [part.old_log_probs_BT for part in batch.rows]
    if all(value is not None for value in old):
        tensors["old_log_probs"] = rows([value for value in old if value is not None])
    numbers = {name: value if math.isfinite(value) else str(value) for name, value in batch.numbers.items()}
    metadata = {"about": to_json({**about, "mini_batch": batch.index, **numbers}), "puzzles": json.dumps(list(puzzles))}
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, save(tensors, metadata))
