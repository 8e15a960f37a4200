"""Groups and weights -> padded tensors and the one denominator.

The denominator is fixed here, over the whole (mini-)batch, before rows are left out and before the cut into
microbatches: neither changes the gradient. Groups are puzzles, by index. Token ids are those that were sampled; no text
is tokenized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsr.config import LossType, NormalizeOver
from nsr.errors import UserError

if TYPE_CHECKING:
    from nsr.rollout.engine import Completion
    from nsr.rollout.rollout import RolloutGroup


LENGTH_STEP = 16
"""Microbatches are padded to a multiple of so many columns: of few shapes, because libraries prepare a kernel and the
allocator keeps a block for each that they meet."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows to learn from: prompts with their responses, padded on the right to the longest. A microbatch is one too."""

    tokens_BT: Int[Tensor, "B T"]
    """Prompt, response, padding."""
    prompt_lengths_B: Int[Tensor, " B"]
    response_mask_BT: Bool[Tensor, "B T"]
    """True where tokens_BT holds a response token."""
    weights_B: Float[Tensor, " B"]
    """Weight of each row, none of them 0. float32."""
    group_B: Int[Tensor, " B"]
    """Index of each row's group among the groups that the batch was built from."""
    sampler_log_probs_BT: Float[Tensor, "B T"]
    """Log-probs as the sampler gave them, 0 off the mask. float32, nats."""
    old_log_probs_BT: Float[Tensor, "B T"] | None = None
    """Log-probs under the policy before its first update, 0 off the mask; None: the policy as it is."""
    num_rollouts: int
    """Number of rollouts that the batch was built from, those of weight 0 among them."""
    denominator: float
    """What the sum over rows (or tokens) is divided by: fixed over the whole (mini-)batch."""
    loss_type: LossType
    max_tokens: int
    """Longest response that was allowed."""

    @property
    def num_rows(self) -> int:
        """Number of rows: rollouts that have a weight."""
        return self.tokens_BT.shape[0]

    @property
    def is_empty(self) -> bool:
        """True if no rollout has a weight: there is no signal, and no step to take."""
        return self.num_rows == 0

    def select(self, rows: Tensor) -> Batch:
        """These rows in this order, cut to the longest among them, or a few columns more. The denominator stays."""
        longest = int(self.response_mask_BT[rows].any(dim=0).nonzero().max()) + 1
        length = min(self.tokens_BT.shape[1], -(-longest // LENGTH_STEP) * LENGTH_STEP)
        cut = {
            name: value[rows][:, :length] if value.ndim == 2 else value[rows] for name, value in self._tensors().items()
        }
        return dataclasses.replace(self, **cut)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        return dataclasses.replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def build_batch(
    groups: Sequence[RolloutGroup],
    weights_PG: npt.NDArray[np.float64],
    *,
    loss_type: LossType,
    normalize_over: NormalizeOver,
    max_tokens: int,
    pad_token_id: int,
) -> Batch:
    """The rollouts that have a weight, as one batch on the CPU.

    Args:
        groups: the rollouts of one optimizer step.
        weights_PG: one weight a rollout, finite; groups are rows.
        loss_type: how tokens are averaged, see `reduce_tokens`.
        normalize_over: "all" counts every rollout in the denominator, "kept" only those of a weight that is not 0.
        max_tokens: the longest response that was allowed.
        pad_token_id: what fills rows up; any id of the model.
    """
    assert weights_PG.shape == (len(groups), len(groups[0].completions)), (weights_PG.shape, len(groups))
    assert np.isfinite(weights_PG).all(), "weights must be finite"
    rollouts = [
        (index, group.prompt_ids, completion, float(weight))
        for index, (group, weights_G) in enumerate(zip(groups, weights_PG, strict=True))
        for completion, weight in zip(group.completions, weights_G, strict=True)
    ]
    kept = [rollout for rollout in rollouts if rollout[3] != 0.0]
    counted = rollouts if normalize_over == "all" else kept
    tokens = sum(len(completion.token_ids) for _, _, completion, _ in counted)
    prompts = [prompt_ids for _, prompt_ids, _, _ in kept]
    completions = [completion for _, _, completion, _ in kept]
    return Batch(
        **_padded(prompts, completions, pad_token_id),
        weights_B=torch.tensor([weight for *_, weight in kept], dtype=torch.float32),
        group_B=torch.tensor([index for index, *_ in kept], dtype=torch.int64),
        num_rollouts=len(rollouts),
        denominator=float(tokens if loss_type == "token_mean" else len(counted)),
        loss_type=loss_type,
        max_tokens=max_tokens,
    )


def microbatches(batch: Batch, max_rows: int) -> list[Batch]:
    """The batch in parts of `max_rows` rows, the last with what is left, rows of like length together.

    The parts' gradients add up to the batch's. The longest rows come first: if memory is short, that shows at once.
    """
    assert max_rows >= 1, max_rows
    if batch.is_empty:
        return []
    lengths_B = batch.prompt_lengths_B + batch.response_mask_BT.sum(dim=1)
    order_B = torch.argsort(lengths_B, descending=True, stable=True)
    return [batch.select(rows) for rows in order_B.split(max_rows)]


def packs(batch: Batch, max_rows: int) -> list[Batch]:
    """The batch in parts whose tokens, a prompt counted once, are no more than those of `max_rows` of the longest rows.

    Rows of a group stay together, in order, but where they are too many for a part. The parts' gradients add up to the
    batch's. Groups of like length lie side by side; the longest come first: if memory is short, that shows at once.
    """
    assert max_rows >= 1, max_rows
    if batch.is_empty:
        return []
    room = max_rows * (int(batch.prompt_lengths_B.max()) + batch.max_tokens)
    prompts: list[int] = batch.prompt_lengths_B.tolist()
    responses: list[int] = batch.response_mask_BT.sum(dim=1).tolist()
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group_B.tolist()):
        groups.setdefault(group, []).append(row)
    parts: list[list[int]] = []
    left = 0
    longest_first = sorted(groups.values(), key=lambda rows: max(prompts[row] + responses[row] for row in rows))[::-1]
    for rows in longest_first:
        whole = prompts[rows[0]] + sum(responses[row] for row in rows)
        for row in rows:
            new_part = not parts or (row == rows[0] and left < min(whole, room)) or left < responses[row]
            if new_part:
                parts.append([])
                left = room
            if new_part or row == rows[0]:
                left -= prompts[row]
            left -= responses[row]
            parts[-1].append(row)
    return [batch.select(torch.tensor(rows, device=batch.tokens_BT.device)) for rows in parts]


def split_updates(
    groups: Sequence[RolloutGroup],
    weights_PG: npt.NDArray[np.float64],
    num_updates: int,
    rng: np.random.Generator,
) -> list[tuple[list[RolloutGroup], npt.NDArray[np.float64]]]:
    """A rollout batch as mini-batches, one optimizer step each: whole groups, shuffled, equally many in each.

    With one update the groups stay in their order and nothing is drawn from `rng`.
    ValueError if `num_updates` does not divide the number of groups.
    """
    if num_updates < 1 or len(groups) % num_updates:
        raise UserError(
            f"updates_per_rollout is {num_updates} but must divide the number of groups, {len(groups)}: "
            "each update takes equally many whole groups."
        )
    order = np.arange(len(groups)) if num_updates == 1 else rng.permutation(len(groups))
    return [([groups[index] for index in part], weights_PG[part]) for part in np.split(order, num_updates)]


def _padded(
    prompts: Sequence[tuple[int, ...]], completions: Sequence[Completion], pad_token_id: int
) -> dict[str, Tensor]:
    length = max((len(prompt) + len(c.token_ids) for prompt, c in zip(prompts, completions, strict=True)), default=0)
    shape = (len(prompts), length)
    tokens_BT = np.full(shape, pad_token_id, dtype=np.int64)
    mask_BT = np.zeros(shape, dtype=np.bool_)
    log_probs_BT = np.zeros(shape, dtype=np.float32)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        assert completion.token_ids, "a response has at least one token"
        response = slice(len(prompt), len(prompt) + len(completion.token_ids))
        tokens_BT[row, : len(prompt)] = prompt
        tokens_BT[row, response] = completion.token_ids
        mask_BT[row, response] = True
        log_probs_BT[row, response] = completion.log_probs_T
    return {
        "tokens_BT": torch.from_numpy(tokens_BT),
        "prompt_lengths_B": torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64),
        "response_mask_BT": torch.from_numpy(mask_BT),
        "sampler_log_probs_BT": torch.from_numpy(log_probs_BT),
    }
