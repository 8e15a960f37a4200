"""Prompts and steps of a running batch: the model's own forward, and the lean decoder in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from nsr.models.fast.decode_model import LeanDecoder
from nsr.rollout.engine import Request
from nsr.rollout.native.attention import RowAttention, SharedPrompts
from nsr.rollout.native.cache import SlotCache
from nsr.rollout.native.prefix_groups import Nodes, Step

SPARE_COLUMNS = 64
"""Columns of the cache beyond a row's longest length: its contents are moved once in so many steps."""
SHARED_TOKENS = 48
"""Length of the longest prompt from which prompts are shared: attending to two parts costs more than it saves below."""
SHARED_ROWS = 3
"""Samples of a request, on average, from which prompts are shared."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that was computed: logits of the first token [V], and keys and values of each layer."""

    logits_V: Tensor
    layers: list[tuple[Tensor, Tensor]]


class ModelSteps:
    """The plain path: the model's own forward, prompts and responses in a row's own columns.

    Nodes are the first slots of the cache, in order. Every call is for the nodes as they are then.

    Args:
        model: the policy.
        requests: what is asked for.
        slots: most nodes at once.
        max_tokens: longest response.
    """

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], slots: int, max_tokens: int) -> None:
        self.model: Any = model  # untyped: each architecture has its own forward
        self.device = model.device
        self.requests = requests
        self.slots = slots
        self.longest_prompt = max((len(request.prompt_ids) for request in requests), default=0)
        waits = sum(request.num_samples for request in requests) > slots
        self.own_columns = max_tokens + (SPARE_COLUMNS if waits else 0)
        self._prompts: dict[int, Prompt] = {}
        self._cache: SlotCache | None = None

    def enter(self, entering: Sequence[tuple[int, int]], nodes: Nodes, again: int | None = None) -> Tensor:
        """Compute what is new among the prompts and put them before the nodes that were added last.

        Args:
            entering: requests and their numbers of nodes, in the nodes' order.
            nodes: the nodes, the entering ones at the end.
            again: a request of which more will enter later.

        Returns:
            Logits [new, V] of their first tokens.
        """
        self._prefill([request for request, _ in entering if request not in self._prompts])
        cache = self._cache = self._cache or self._new_cache(self._prompts[entering[0][0]].layers)
        first = nodes.count - sum(count for _, count in entering)
        logits: list[Tensor] = []
        for request, count in entering:
            prompt = self._prompts[request]
            self._place(cache, request, prompt, slice(first, first + count))
            logits.append(prompt.logits_V.expand(count, -1))
            first += count
            if request != again:
                del self._prompts[request]
        return torch.cat(logits)

    def decode(self, nodes: Nodes) -> Tensor:
        """Feed each node's newest token; logits of the next one, [B, V]."""
        cache = self._cache
        assert cache is not None
        cache.make_room(nodes.count, self._least_cursor)
        tokens_B, cached_B = self._padded(nodes.newest_N), self._padded(nodes.cached_N)
        logits_BV = self._logits(cache, tokens_B, cached_B, nodes)
        cache.window.cursor += 1
        return logits_BV[: nodes.count]

    def advance(self, nodes: Nodes, step: Step) -> None:
        """The nodes have one more token each and were copied as `step` says; the window is that of the longest."""
        assert self._cache is not None
        window = self._cache.window
        window.first = window.cursor - int(self._own(nodes).max(initial=0))
        if len(step.sources):
            self._cache.move(self._tensor(step.sources), self._tensor(step.targets))

    # What the lean path does otherwise

    @property
    def _least_cursor(self) -> int:
        """Columns to the left of the cursor that an entering row may need."""
        return self.longest_prompt

    def _own(self, nodes: Nodes) -> npt.NDArray[np.int64]:
        """Columns that each node fills."""
        return nodes.cached_N

    def _place(self, cache: SlotCache, request: int, prompt: Prompt, slots: slice) -> None:
        del request
        cache.place(prompt.layers, slots)

    def _logits(self, cache: SlotCache, tokens_B: Tensor, cached_B: Tensor, nodes: Nodes) -> Tensor:
        del nodes
        window = cache.window
        offsets_T = torch.arange(window.first - window.cursor, 1, device=self.device)  # 0 is the newest token
        output = self.model(
            input_ids=tokens_B.unsqueeze(-1),
            attention_mask=offsets_T >= -cached_B.unsqueeze(-1),
            position_ids=cached_B.unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def _compute_prompts(self, ids_PT: Tensor, last: list[int], rows: list[int]) -> tuple[Tensor, list[Any]]:
        """Logits [P, V] after the token `last` of each prompt, and the layers of the cache."""
        cache, kept = DynamicCache(), sorted(set(last))
        output = self.model(input_ids=ids_PT, past_key_values=cache, use_cache=True, logits_to_keep=self._tensor(kept))
        return output.logits[rows, [kept.index(column) for column in last]], cache.layers

    # What both do

    def _prefill(self, indices: list[int]) -> None:
        """Compute prompts together."""
        if not indices:
            return
        prompts = [self.requests[index].prompt_ids for index in indices]
        ids_PT = padded(prompts, self.device)
        lengths = [len(prompt) for prompt in prompts]
        logits_PV, cached = self._compute_prompts(ids_PT, [length - 1 for length in lengths], list(range(len(prompts))))
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            layers = [(layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cached]
            self._prompts[index] = Prompt(logits_V=logits_PV[row], layers=layers)

    def _new_cache(self, like: Sequence[tuple[Tensor, Tensor]]) -> SlotCache:
        return SlotCache(like, self.slots, self._least_cursor + self.own_columns, self._least_cursor)

    def _padded(self, values_B: npt.NDArray[np.int64]) -> Tensor:
        """Values of the nodes that are computed: of few numbers, as libraries prepare a kernel for each they meet."""
        width = batch_size(len(values_B), self.slots)
        return self._tensor(np.concatenate([values_B, np.zeros(width - len(values_B), dtype=np.int64)]))

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=self.device)


def padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """Token ids [prompts, tokens], padded on the right: no token sees what follows it, so padding changes nothing."""
    longest = max(map(len, prompts))
    return torch.tensor([ids + (0,) * (longest - len(ids)) for ids in prompts], dtype=torch.int64, device=device)


def batch_size(rows: int, slots: int) -> int:
    """Rows to compute for `rows` in use."""
    rounded = 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8
    return min(rounded, slots)


class LeanSteps(ModelSteps):
    """The lean decoder in the place of the model's forward; long prompts with many samples are kept once.

    Args:
        model: the policy.
        requests: what is asked for.
        slots: most nodes at once.
        max_tokens: longest response.
        decoder: of this model, with its weights as they are.
    """

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], slots: int, max_tokens: int, decoder: LeanDecoder
    ) -> None:
        super().__init__(model, requests, slots, max_tokens)
        samples = sum(request.num_samples for request in requests)
        self._shares = self.longest_prompt >= SHARED_TOKENS and samples >= SHARED_ROWS * len(requests)
        self._decoder = decoder
        self._shared: SharedPrompts | None = None
        self._attention: RowAttention | None = None

    def enter(self, entering: Sequence[tuple[int, int]], nodes: Nodes, again: int | None = None) -> Tensor:
        """As the plain path does, in the places of prompts that are no longer needed."""
        if self._shared is not None:
            self._shared.release(nodes.request_N)
        return super().enter(entering, nodes, again)

    @property
    def _least_cursor(self) -> int:
        return 0 if self._shares else self.longest_prompt

    def _own(self, nodes: Nodes) -> npt.NDArray[np.int64]:
        return nodes.length_N - 1 if self._shares else nodes.cached_N

    def _new_cache(self, like: Sequence[tuple[Tensor, Tensor]]) -> SlotCache:
        cache = super()._new_cache(like)
        if self._shares:
            self._shared = SharedPrompts(like, min(self.slots, len(self.requests)), self.longest_prompt)
        self._attention = RowAttention(cache, self._decoder.scale, self._shared)
        return cache

    def _place(self, cache: SlotCache, request: int, prompt: Prompt, slots: slice) -> None:
        if self._shared is None:
            super()._place(cache, request, prompt, slots)
        else:
            self._shared.place(request, prompt.layers)

    def _logits(self, cache: SlotCache, tokens_B: Tensor, cached_B: Tensor, nodes: Nodes) -> Tensor:
        del cache
        assert self._attention is not None
        if self._shared is not None:
            self._shared.arrange(nodes.request_N, len(tokens_B))
        self._attention.begin(self._padded(self._own(nodes)))
        return self._decoder.step(tokens_B, cached_B, self._attention)

    def _compute_prompts(self, ids_PT: Tensor, last: list[int], rows: list[int]) -> tuple[Tensor, list[Any]]:
        cache = DynamicCache()
        hidden_PTH = self.model.model(input_ids=ids_PT, past_key_values=cache, use_cache=True).last_hidden_state
        return self._decoder.project(hidden_PTH[rows, last]), cache.layers
