"""What a policy gives to each id where a response was sampled: its distributions along token ids that are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nsr.models.fast.kernels import fast_linears
from nsr.models.sampling_mask import Support

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIECE_ELEMENTS = 2**25
"""Most log-probs that are held in float32 at once: 128 MiB, 220 positions of a vocabulary of 152 thousand."""


@torch.no_grad()
def response_logits(model: PreTrainedModel, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> Tensor:
    """Logits [T, V] that a response's tokens were sampled from, as the model gives them: no temperature, no support."""
    ids_1T = torch.tensor([[*prompt_ids, *token_ids[:-1]]], dtype=torch.int64, device=model.device)
    positions_T = torch.arange(len(prompt_ids) - 1, ids_1T.shape[1], device=model.device)
    with fast_linears(model):
        return model(input_ids=ids_1T, use_cache=False, logits_to_keep=positions_T).logits[0]


def response_distributions(
    model: PreTrainedModel,
    support: Support,
    prompt_ids: tuple[int, ...],
    token_ids: tuple[int, ...],
    temperature: float,
) -> Iterator[tuple[slice, Tensor]]:
    """Log-probs [N, V] that a response's tokens were sampled from, in float32, N tokens at a time and which they are.

    At the temperature and over the support, as sampler and trainer have them; -inf outside it. No more than
    `PIECE_ELEMENTS` are held at once.
    """
    logits_TV = response_logits(model, prompt_ids, token_ids)
    rows = max(1, PIECE_ELEMENTS // logits_TV.shape[-1])
    for first in range(0, len(token_ids), rows):
        piece = slice(first, min(first + rows, len(token_ids)))
        index_N = torch.arange(piece.start, piece.stop, device=logits_TV.device)
        logits_NV = support.mask_(logits_TV[piece].float().clone(), index_N)
        yield piece, torch.log_softmax(logits_NV / temperature, dim=-1)
