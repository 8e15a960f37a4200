"""The support: which token ids may be sampled at which position. Sampler and trainer ask the same object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OUT = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Support:
    """Ids a policy may sample: all below `vocab_size`, but no end token among a response's first `min_tokens` tokens.

    Models pad their output layer beyond the tokenizer's vocabulary. Those ids are never sampled, so they must be out of
    the trainer's normalization too: with them in, punishing a sampled token would raise them.
    """

    vocab_size: int
    """Number of ids the tokenizer knows; ids at or above it are padding."""
    end_token_ids: tuple[int, ...]
    """Ids that end a response."""
    min_tokens: int
    """Positions (from 0) below this have no end token."""

    def __post_init__(self) -> None:
        assert self.vocab_size >= 1 and self.min_tokens >= 0
        assert all(0 <= token_id < self.vocab_size for token_id in self.end_token_ids), self.end_token_ids
        assert len(self.end_token_ids) < self.vocab_size, "nothing would be left to sample"

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, min_tokens: int) -> Support:
        """The support of a model: end tokens are those of its generation config and its tokenizer."""
        configured: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
        end_ids = set(configured if isinstance(configured, list) else [configured])
        end_ids.add(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        vocab_size = len(tokenizer)
        ends = sorted(token_id for token_id in end_ids if token_id is not None and 0 <= token_id < vocab_size)
        return cls(vocab_size=vocab_size, end_token_ids=tuple(ends), min_tokens=min_tokens)

    def mask_(self, logits_BV: Tensor, position: int | Tensor) -> Tensor:
        """Set logits outside the support to -inf, in place, and return them.

        Args:
            logits_BV: logits of the next token.
            position: index of that token in its response, from 0: one for all rows, or int64 [B].
        """
        logits_BV[:, self.vocab_size :] = OUT
        early = torch.as_tensor(position, device=logits_BV.device) < self.min_tokens
        for token_id in self.end_token_ids:
            logits_BV[:, token_id].masked_fill_(early, OUT)
        return logits_BV

    def mask_logits(self, logits_BTV: Tensor, response_index_BT: Tensor) -> Tensor:
        """The same support for the trainer: a masked copy, through which gradients flow to the ids inside.

        Args:
            logits_BTV: logits[:, t] predict the token whose index in its response is response_index[:, t].
            response_index_BT: int64, 0 for the first response token. What stands at prompt positions does not matter
                to a caller that ignores them.
        """
        masked_BTV = logits_BTV.clone()
        masked_BTV[..., self.vocab_size :] = OUT
        early_BT = response_index_BT < self.min_tokens
        for token_id in self.end_token_ids:
            masked_BTV[..., token_id] = logits_BTV[..., token_id].masked_fill(early_BT, OUT)
        return masked_BTV
