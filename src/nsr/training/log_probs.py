"""Batch -> log-probs of its response tokens under the policy: by packed sequences, or the plain way.

The trainer's distribution must be the sampler's: same temperature, same support.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nsr.algorithms.surrogates import in_pieces, response_log_probs, token_entropy
from nsr.models.fast.output_layer import head_log_probs
from nsr.models.fast.packing import pack, packed_hidden, why_not_packed
from nsr.training.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nsr.models.sampling_mask import Support

_LOGGER = logging.getLogger(__name__)

_why_not: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def policy_log_probs(
    model: PreTrainedModel, support: Support, batch: Batch, temperature: float, *, exact: bool = False
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Log-probs of the batch's response tokens, and the entropy where each was sampled, both 0 off the mask.

    Both at the temperature and over the support, float32 or wider, nats. Gradients flow through the log-probs alone.

    Args:
        model: the policy.
        support: which ids the sampler could sample.
        batch: rows of a group lie side by side.
        temperature: that of the sampler.
        exact: compute every row by itself, prompt and padding with it, by the model's own forward pass. Otherwise, and
            where the model allows it (`can_pack`), every prompt is computed once for the rows of its group, and no
            padding; the values are the same to rounding.
    """
    if exact or not can_pack(model):
        return _row_by_row(model, support, batch, temperature)
    return _packed(model, support, batch, temperature)


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model takes packed sequences."""
    return why_plain(model) is None


def why_plain(model: PreTrainedModel) -> str | None:
    """Why the model does not take packed sequences, None if it does; tried out once."""
    if model not in _why_not:
        _why_not[model] = reason = why_not_packed(model)
        if reason:
            _LOGGER.warning("Learning computes every prompt with every response: %s.", reason)
    return _why_not[model]


@torch.no_grad()
def with_old_log_probs(
    model: PreTrainedModel, support: Support, batch: Batch, temperature: float, exact: bool = False
) -> Batch:
    """The batch with the model's log-probs as they are now for pi_old."""
    log_probs_BT, _ = policy_log_probs(model, support, batch, temperature, exact=exact)
    return dataclasses.replace(batch, old_log_probs_BT=log_probs_BT)


def _packed(model: PreTrainedModel, support: Support, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    mask_BT = batch.response_mask_BT
    groups = batch.group_B.tolist()
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    first_row = {group: row for row, group in reversed(list(enumerate(groups)))}
    lengths = batch.prompt_lengths_B.tolist()
    packing = pack(
        [batch.tokens_BT[row, : lengths[row]] for row in (first_row[group] for group in number)],
        [tokens_T[mask_T] for tokens_T, mask_T in zip(batch.tokens_BT, mask_BT, strict=True)],
        [number[group] for group in groups],
    )
    index_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) - batch.prompt_lengths_B.unsqueeze(1)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), "a model that packs has a linear output layer"
    values = head_log_probs(
        head,
        support,
        packed_hidden(model, packing),
        batch.tokens_BT[mask_BT],
        index_BT[mask_BT],
        temperature,
    )
    log_probs_BT, entropy_BT = (  # in the order of the mask: row by row, token by token
        torch.zeros(mask_BT.shape, dtype=values_M.dtype, device=mask_BT.device).masked_scatter(mask_BT, values_M)
        for values_M in values
    )
    return log_probs_BT, entropy_BT


def _row_by_row(model: PreTrainedModel, support: Support, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    first, length = int(batch.prompt_lengths_B.min()), batch.tokens_BT.shape[1]
    assert first >= 1, "a prompt has at least one token"
    # padding is on the right and attention is causal: no response token sees it, so no mask is needed
    positions_T = torch.arange(first - 1, length - 1, device=batch.tokens_BT.device)
    logits_BTV: Tensor = model(input_ids=batch.tokens_BT[:, :-1], use_cache=False, logits_to_keep=positions_T).logits
    index_BT = positions_T + 1 - batch.prompt_lengths_B.unsqueeze(1)

    def log_probs(logits_NV: Tensor, index_N: Tensor, tokens_N: Tensor) -> Tensor:
        masked_1NV = support.mask_logits(logits_NV.unsqueeze(0), index_N.unsqueeze(0))
        return response_log_probs(masked_1NV, tokens_N.unsqueeze(0), temperature).squeeze(0)

    def entropy(logits_NV: Tensor, index_N: Tensor) -> Tensor:
        masked_1NV = support.mask_logits(logits_NV.unsqueeze(0), index_N.unsqueeze(0))
        return token_entropy(masked_1NV.float() / temperature).squeeze(0)

    log_probs_BT = in_pieces(log_probs, logits_BTV, index_BT, batch.tokens_BT[:, first:])
    with torch.no_grad():
        entropy_BT = in_pieces(entropy, logits_BTV, index_BT)
    mask_BT = batch.response_mask_BT[:, first:]
    return tuple(  # pyright: ignore[reportReturnType]
        functional.pad(torch.where(mask_BT, values_BT, 0.0), (first, 0)) for values_BT in (log_probs_BT, entropy_BT)
    )
