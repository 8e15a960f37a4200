"""Completions in progress, as arrays: a step is recorded without a look at each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nsr.rollout.engine import SamplingParams
from nsr.rollout.native.draw import uniforms


class Rows:
    """Rows 0 to `count` - 1 are in use. Names end in B for one value a slot, in BT for one a token of it.

    Args:
        slots: most rows.
        params: their settings.
    """

    def __init__(self, slots: int, params: SamplingParams) -> None:
        self.count = 0
        self._params = params
        self.request_B = np.zeros(slots, dtype=np.int64)
        self.sample_B = np.zeros(slots, dtype=np.int64)
        self.node_B = np.zeros(slots, dtype=np.int64)
        """See `nsr.rollout.native.prefix_groups`."""
        self.length_B = np.zeros(slots, dtype=np.int64)
        """Tokens so far."""
        self.entropy_B = np.zeros(slots)
        """Summed over the tokens."""
        self.tokens_BT = np.zeros((slots, params.max_tokens), dtype=np.int64)
        self.log_probs_BT = np.zeros((slots, params.max_tokens), dtype=np.float32)
        self._uniforms_BT = np.zeros((slots, params.max_tokens))

    def add(self, request: int, sample: int, *, key: str, node: int) -> None:
        """A new row, without tokens."""
        row = self.count
        self.count += 1
        self.request_B[row], self.sample_B[row], self.node_B[row] = request, sample, node
        self.length_B[row] = self.entropy_B[row] = 0
        self._uniforms_BT[row] = uniforms(self._params, key, sample)

    def of_each(self, values_B: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The values of the rows in use."""
        return values_B[: self.count]

    @property
    def newest_B(self) -> npt.NDArray[np.int64]:
        """Each row's last token."""
        return self.tokens_BT[np.arange(self.count), self.length_B[: self.count] - 1]

    @property
    def uniforms_B(self) -> npt.NDArray[np.float64]:
        """The random number that each row's next token is drawn with."""
        return self._uniforms_BT[np.arange(self.count), self.length_B[: self.count]]

    def next_uniforms_KB(self, tokens: int) -> npt.NDArray[np.float64]:
        """The random numbers of each row's next tokens, [tokens, rows]."""
        columns_KB = self.length_B[: self.count] + np.arange(tokens)[:, None]
        return self._uniforms_BT[np.arange(self.count), columns_KB]

    def append(
        self,
        tokens_B: npt.NDArray[np.int64],
        log_probs_B: npt.NDArray[np.floating[Any]],
        entropies_B: npt.NDArray[np.floating[Any]],
    ) -> None:
        """One more token of each row."""
        rows, column_B = np.arange(self.count), self.length_B[: self.count]
        self.tokens_BT[rows, column_B] = tokens_B
        self.log_probs_BT[rows, column_B] = log_probs_B
        self.entropy_B[: self.count] += entropies_B
        self.length_B[: self.count] += 1

    def keep(self, staying: int, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> None:
        """Move rows `sources` to `targets`; after that the first `staying` are in use."""
        for values in (
            self.request_B,
            self.sample_B,
            self.node_B,
            self.length_B,
            self.entropy_B,
            self.tokens_BT,
            self.log_probs_BT,
            self._uniforms_BT,
        ):
            values[targets] = values[sources]
        self.count = staying
