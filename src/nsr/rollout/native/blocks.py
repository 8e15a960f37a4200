"""Several tokens of each row between two looks at the rows: for a GPU, which waits whenever it is looked at.

All shapes are fixed. Each row has columns of its own, from the first on; steps come in few widths and lengths; what
changes from one to the next lies in tensors of the device. So a step can be recorded as a CUDA graph.

A row that ends goes on until the block is over. What it draws after its end is thrown away, and nothing else depends on
it: every completion has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from nsr.models.fast.attention import without_cudnn_attention
from nsr.models.fast.decode_model import LeanDecoder
from nsr.rollout.engine import Completion
from nsr.rollout.native.attention import additive
from nsr.rollout.native.draw import draw_each
from nsr.rollout.native.generation import Generation, Job
from nsr.rollout.native.graphs import Recorded, recorder_of
from nsr.rollout.native.steps import padded

BLOCK = 8
"""Tokens between two looks at the rows: a row that ends draws on average half as many in vain."""
COLUMNS = 64
"""Steps attend to a multiple of so many columns."""

Indices = npt.NDArray[np.int64]


def width_of(rows: int) -> int:
    """Rows to compute for `rows` in use: few numbers, as each is recorded anew."""
    return next((width for width in (8, 16) if rows <= width), -(-rows // 32) * 32)


class ColumnAttention:
    """The lean decoder's attention where each row has columns of its own, from the first on.

    Args:
        decoder: gives the shapes.
        slots: most rows.
        columns: most tokens of a row.
    """

    def __init__(self, decoder: LeanDecoder, slots: int, columns: int) -> None:
        self._scale = decoder.scale
        shape = (slots, decoder.kv_heads, columns, decoder.head_width)
        # Zeros: a masked column counts with weight 0, and 0 times uninitialized memory may be nan.
        self.layers = [
            tuple(torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(2))
            for _ in range(decoder.num_layers)
        ]
        """Keys and values of each layer, [slots, heads, columns, head_width]."""
        self._columns = 0
        self._mask = self._rows_B = self._cached_B = torch.empty(0)

    def begin(self, cached_B: Tensor, columns: int) -> None:
        """Before a step.

        Args:
            cached_B: columns that each row has filled; the newest token's are the next.
            columns: more than any of these.
        """
        places = torch.arange(columns, device=cached_B.device)
        self._mask = additive(places <= cached_B.unsqueeze(-1), self.layers[0][0].dtype)
        self._rows_B = torch.arange(len(cached_B), device=cached_B.device)
        self._cached_B, self._columns = cached_B, columns

    def __call__(self, layer: int, queries_BKQD: Tensor, keys_BKD: Tensor, values_BKD: Tensor) -> Tensor:
        """See `nsr.models.fast.decode_model.Attend`."""
        rows = len(queries_BKQD)
        keys, values = (states[:rows, :, : self._columns] for states in self.layers[layer])
        keys[self._rows_B, :, self._cached_B] = keys_BKD
        values[self._rows_B, :, self._cached_B] = values_BKD
        out = functional.scaled_dot_product_attention(queries_BKQD, keys, values, self._mask, scale=self._scale)
        return out.flatten(1)

    def place(self, prompts: Sequence[tuple[Tensor, Tensor]], of_B: Tensor, first: int) -> None:
        """Fill the first columns of rows from `first` on: row `first` + b begins with prompt of_B[b].

        Args:
            prompts: keys and values of each layer, [prompts, heads, tokens, head_width]; what follows a shorter prompt
                is overwritten by its row's tokens before anything attends to it.
            of_B: int64.
            first: a row.
        """
        rows, length = slice(first, first + len(of_B)), prompts[0][0].shape[2]
        for own, new in zip(self.layers, prompts, strict=True):
            for states, of_prompts in zip(own, new, strict=True):
                states[rows, :, :length] = of_prompts[of_B]

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copy the first columns of rows `sources` to `targets` (int64, disjoint)."""
        for layer in self.layers:
            for states in layer:
                states[targets, :, :columns] = states[sources, :, :columns]


def prefill(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, [prompts, heads, tokens, head_width]; none where no prompt has a token."""
    if not any(prompts):
        return []
    cache = DynamicCache()
    backbone: Any = model.base_model
    backbone(input_ids=padded(prompts, model.device), past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


class Blocks:
    """The device's side: keys and values of the rows, and steps that draw.

    Args:
        job: what is to be sampled.
        decoder: of its policy.
        slots: most rows.
    """

    def __init__(self, job: Job, decoder: LeanDecoder, slots: int) -> None:
        self._job, self._decoder, self._device = job, decoder, decoder.device
        slots = width_of(slots)
        longest = max(len(request.prompt_ids) for request in job.requests) + job.params.max_tokens
        self._attention = ColumnAttention(decoder, slots, -(-longest // COLUMNS) * COLUMNS)

        def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        self._newest_B, self._cached_B, self._length_B = numbers(slots), numbers(slots), numbers(slots)
        self._uniforms_KB = numbers(BLOCK, slots, dtype=torch.float64)
        self._number_1 = numbers(1)  # of the step in its block
        wide = torch.promote_types(decoder.dtype, torch.float32)
        self._drawn = (numbers(BLOCK, slots), *(numbers(BLOCK, slots, dtype=wide) for _ in range(2)))
        state = (self._newest_B, self._cached_B, self._length_B, self._number_1, *self._drawn)
        records = self._device.type == "cuda" and decoder.has_fixed_steps
        self._recorded = Recorded(state, recorder_of(self._device) if records else None)
        self._columns = 0

    def enter(self, prompts: Sequence[tuple[int, ...]], of_B: Sequence[int], first: int) -> None:
        """Rows from `first` on begin: row `first` + b with all tokens of prompt of_B[b] but the last, its newest."""
        if layers := prefill(self._job.policy, [prompt[:-1] for prompt in prompts]):
            self._attention.place(layers, torch.tensor(of_B, device=self._device), first)

    def run(
        self, newest_B: Indices, cached_B: Indices, length_B: Indices, uniforms_KB: npt.NDArray[np.float64]
    ) -> list[npt.NDArray[Any]]:
        """K more tokens of each row, K at most `BLOCK`.

        Args:
            newest_B: each row's last token, whose keys and values are not known.
            cached_B: tokens before it.
            length_B: tokens of its response so far.
            uniforms_KB: what to draw with.

        Returns:
            Tokens, their log-probabilities and the entropies where they were drawn, each [K, B].
        """
        tokens, rows = uniforms_KB.shape
        width = width_of(rows)
        columns = -(-(int(cached_B.max()) + tokens) // COLUMNS) * COLUMNS
        for state_B, values_B in ((self._newest_B, newest_B), (self._cached_B, cached_B), (self._length_B, length_B)):
            state_B[:rows] = torch.from_numpy(values_B).to(self._device)
            state_B[rows:width] = 0  # rows that are computed for nothing
        self._uniforms_KB[:tokens, :rows] = torch.from_numpy(uniforms_KB).to(self._device)
        self._number_1.zero_()
        self._columns = columns
        with self._recorded.stream():
            for _ in range(tokens):
                self._recorded(self._step, width, columns)
        return [drawn_KB[:tokens, :rows].cpu().numpy() for drawn_KB in self._drawn]

    def move(self, sources: Indices, targets: Indices) -> None:
        """Copy rows `sources` to `targets`, which are others."""
        if len(sources):
            old, new = (torch.from_numpy(indices).to(self._device) for indices in (sources, targets))
            self._attention.move(old, new, self._columns)

    def _step(self, width: int, columns: int) -> None:
        """A token of the first `width` rows."""
        newest_B, cached_B, length_B = (state[:width] for state in (self._newest_B, self._cached_B, self._length_B))
        self._attention.begin(cached_B, columns)
        logits_BV = self._decoder.step(newest_B, cached_B, self._attention)
        self._job.support.mask_(logits_BV, length_B)
        uniforms_B = self._uniforms_KB.index_select(0, self._number_1)[0, :width]
        drawn = draw_each(logits_BV, self._job.params.temperature, uniforms_B)
        for all_KB, one_B in zip(self._drawn, drawn, strict=True):
            all_KB[:, :width].index_copy_(0, self._number_1, one_B.unsqueeze(0))
        newest_B.copy_(drawn[0])
        for count in (cached_B, length_B, self._number_1):
            count.add_(1)


class BlockByBlock(Generation):
    """The rows are looked at after a block of tokens; each is computed by itself.

    Args:
        job: what is to be sampled.
        decoder: of its policy.
    """

    def __init__(self, job: Job, decoder: LeanDecoder) -> None:
        super().__init__(job)
        self._blocks = Blocks(job, decoder, self.slots)
        self._prompt_tokens_R = np.array([len(request.prompt_ids) for request in job.requests], dtype=np.int64)
        self._last_token_R = np.array([request.prompt_ids[-1] for request in job.requests], dtype=np.int64)

    def run(self) -> list[list[Completion]]:
        """See `Generation.run`."""
        with without_cudnn_attention():
            return super().run()

    def advance(self) -> None:
        """See `Generation.advance`."""
        if self.refill_is_due():
            self._admit()
        rows = self.rows
        request_B, length_B = rows.of_each(rows.request_B), rows.of_each(rows.length_B)
        newest_B = np.where(length_B > 0, rows.newest_B, self._last_token_R[request_B])
        cached_B = self._prompt_tokens_R[request_B] + length_B - 1
        # None goes on beyond its longest.
        tokens = min(BLOCK, self.job.params.max_tokens - int(length_B.max()))
        drawn = self._blocks.run(newest_B, cached_B, length_B, rows.next_uniforms_KB(tokens))
        lane_B = np.arange(rows.count)  # where each row is on the device
        for tokens_B, log_probs_B, entropies_B in zip(*drawn, strict=True):
            sources, targets = self.append(tokens_B[lane_B], log_probs_B[lane_B], entropies_B[lane_B])
            lane_B[targets] = lane_B[sources]
            lane_B = lane_B[: rows.count]
            if not rows.count:
                break
        moved = np.flatnonzero(lane_B != np.arange(rows.count))
        self._blocks.move(lane_B[moved], moved)

    def _admit(self) -> None:
        first, of_B, prompts = self.rows.count, list[int](), list[tuple[int, ...]]()
        for index, samples in self.entering():
            request = self.job.requests[index]
            of_B += [len(prompts)] * len(samples)
            prompts.append(request.prompt_ids)
            for sample in samples:
                self.rows.add(index, sample, key=request.key, node=self.rows.count)
        self._blocks.enter(prompts, of_B, first)
