"""Where a stop string ends in sampled tokens, wherever the token boundaries fall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = 8
"""Tokens decoded before those that can hold the stop string: decoders treat a text's first token specially, and it may
be the middle of a multi-byte character."""

REPLACEMENT = "\ufffd"
"""What bytes that are no whole character decode to."""


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens skipped, otherwise as it is."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


class StopString:
    """Finds a stop string as tokens arrive, decoding only when the newest token can complete it.

    Args:
        tokenizer: decodes.
        stop: the string; empty finds nothing.
        vocab_size: ids that can be sampled are below it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        texts = [decode(tokenizer, [token_id]) for token_id in range(vocab_size)] if stop else []
        self._visible = frozenset(token_id for token_id, text in enumerate(texts) if text)
        # The token that completes the string holds its last character, or bytes of it.
        self.may_complete_V = np.zeros(vocab_size, dtype=bool)
        """Ids that can be the last one of the string."""
        self.may_complete_V[: len(texts)] = [stop[-1] in text or REPLACEMENT in text for text in texts]

    def overhang(self, token_ids: Sequence[int]) -> int | None:
        """Number of characters after the stop string if the last token completes it, else None."""
        if not self.may_complete_V[token_ids[-1]]:
            return None
        tail = self._tail(token_ids)
        # A character that the last token completes shows as replacement characters before it.
        before = decode(self._tokenizer, tail[:-1]).rstrip(REPLACEMENT)
        text = decode(self._tokenizer, tail)
        found = text.find(self._stop, max(0, len(before) - len(self._stop) + 1))
        return None if found < 0 else len(text) - found - len(self._stop)

    def _tail(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The last tokens, enough to hold the stop string: each visible one adds at least a byte."""
        wanted = len(self._stop.encode()) + MARGIN
        for first in range(len(token_ids) - 1, -1, -1):
            wanted -= token_ids[first] in self._visible
            if wanted == 0:
                return token_ids[first:]
        return token_ids
