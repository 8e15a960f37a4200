"""The local engine: the policy itself samples, in this process.

Rows are completions in progress. Each step feeds every row's last token to the model, whose keys and values lie in a
preallocated cache, and draws the next one. A row that ends leaves the batch at once, and waiting ones enter when a few
places are free. Prompts are computed once for all samples of a request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from nsr.models.kernels import fast_linears
from nsr.sampling.cache import SlotCache
from nsr.sampling.draw import draw, uniforms
from nsr.sampling.engine import Completion, FinishReason, Request, SamplingParams
from nsr.sampling.stop import StopString, decode
from nsr.sampling.support import Support

SPARE_COLUMNS = 64
"""Columns of the cache beyond a row's longest length: its contents are moved once in so many steps."""


class LocalEngine:
    """Samples from the policy object it is given, under its weights as they are at each call.

    Args:
        policy: any causal LM of `transformers` whose layers are all attention (full or sliding window).
        tokenizer: decodes completions and finds the stop string.
        support: what may be sampled.
        max_batch_size: most rows at once; bounds memory, and changes completions by no more than rounding.

    Raises:
        ValueError: the policy has layers whose state is not keys and values.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        support: Support,
        *,
        max_batch_size: int = 128,
    ) -> None:
        assert max_batch_size >= 1, max_batch_size
        layer_types = set[str](getattr(policy.config, "layer_types", None) or ())
        if unknown := layer_types - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"The local engine samples from models with attention layers only, and this one has {sorted(unknown)}; "
                "choose another model or another engine."
            )
        self.policy = policy
        self.tokenizer = tokenizer
        self.support = support
        self.max_batch_size = max_batch_size
        self._stop_strings: dict[str, StopString] = {}

    def load_weights(self, policy: PreTrainedModel) -> None:
        """Nothing to copy: the engine samples from this very object."""
        assert policy is self.policy, "the local engine shares its policy's weights and has no copy of its own"

    def release_memory(self) -> None:
        """Nothing to release: between calls the engine keeps nothing."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Completions of each request, in order. No state is kept between calls.

        Raises:
            ValueError: a prompt and max_tokens exceed the model's context, or the logits are not finite.
        """
        self._check_context(requests, params)
        if params.stop not in self._stop_strings:
            self._stop_strings[params.stop] = StopString(self.tokenizer, params.stop, self.support.vocab_size)
        with torch.inference_mode(), _evaluating(self.policy), fast_linears(self.policy):
            return _Generation(self, requests, params, self._stop_strings[params.stop]).run()

    def _check_context(self, requests: Sequence[Request], params: SamplingParams) -> None:
        context: int | None = getattr(self.policy.config, "max_position_embeddings", None)
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        if context is not None and longest + params.max_tokens > context:
            raise ValueError(
                f"A prompt of {longest} tokens and max_tokens {params.max_tokens} exceed the model's context of "
                f"{context}; give a max_tokens of at most {context - longest}."
            )


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _batch_size(rows: int, slots: int) -> int:
    """Rows to compute for `rows` in use: of few sizes, because libraries prepare a kernel for each that they meet."""
    rounded = 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8
    return min(rounded, slots)


@dataclass
class _Row:
    """A completion in progress."""

    request: int
    sample: int
    prompt_length: int
    uniforms: list[float]
    token_ids: list[int] = field(default_factory=list[int])
    log_probs: list[float] = field(default_factory=list[float])
    entropy: float = 0.0  # summed over its tokens
    finished: tuple[FinishReason, int] | None = None  # why, and how many characters of its text to cut off

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest."""
        return self.prompt_length + len(self.token_ids) - 1


@dataclass
class _Prompt:
    """A prompt that was computed: logits of the first token [V], and keys and values of each layer."""

    logits_V: Tensor
    layers: list[tuple[Tensor, Tensor]]


class _Generation:
    """One call of `generate`. The rows are the first slots of the cache, in order."""

    def __init__(
        self, engine: LocalEngine, requests: Sequence[Request], params: SamplingParams, stop: StopString
    ) -> None:
        self.model: Any = engine.policy  # untyped: each architecture has its own forward
        self.device = engine.policy.device
        self.tokenizer = engine.tokenizer
        self.support = engine.support
        self.requests = requests
        self.params = params
        self.stop = stop
        self.results: list[list[Completion | None]] = [[None] * request.num_samples for request in requests]
        self.waiting = deque((r, s) for r, request in enumerate(requests) for s in range(request.num_samples))
        self.slots = min(engine.max_batch_size, len(self.waiting))
        self.longest_prompt = max((len(request.prompt_ids) for request in requests), default=0)
        self.rows: list[_Row] = []
        self.prompts: dict[int, _Prompt] = {}
        self.cache: SlotCache | None = None

    def run(self) -> list[list[Completion]]:
        while self.rows or self.waiting:
            logits = [self._decode()] if self.rows else []
            if self._refill_is_due():
                logits.append(self._admit())
            self._draw(torch.cat(logits))
            self._retire()
        return [[completion for completion in group if completion is not None] for group in self.results]

    def _decode(self) -> Tensor:
        """Feed each row's newest token; logits of the next one, [B, V]."""
        assert self.cache is not None
        self.cache.make_room(len(self.rows), self.longest_prompt)
        window = self.cache.window
        idle = [0] * (_batch_size(len(self.rows), self.slots) - len(self.rows))
        cached_B1 = self._tensor([row.cached for row in self.rows] + idle).unsqueeze(-1)
        offsets_T = torch.arange(window.first - window.cursor, 1, device=self.device)  # 0 is the newest token
        output = self.model(
            input_ids=self._tensor([row.token_ids[-1] for row in self.rows] + idle).unsqueeze(-1),
            attention_mask=offsets_T >= -cached_B1,
            position_ids=cached_B1,
            past_key_values=self.cache,
            use_cache=True,
        )
        window.cursor += 1
        return output.logits[: len(self.rows), -1]

    def _refill_is_due(self) -> bool:
        """An entry costs about one more step, so it waits until an eighth of the slots is free."""
        free = self.slots - len(self.rows)
        return bool(self.waiting) and free >= min(len(self.waiting), max(1, self.slots // 8))

    def _admit(self) -> Tensor:
        """Fill the free slots with waiting completions; logits of their first tokens, [new, V]."""
        count = min(self.slots - len(self.rows), len(self.waiting))
        entering = [self.waiting.popleft() for _ in range(count)]
        self._prefill([r for r in dict.fromkeys(r for r, _ in entering) if r not in self.prompts])
        if self.cache is None:
            spare = SPARE_COLUMNS if self.waiting else 0
            columns = self.longest_prompt + self.params.max_tokens + spare
            self.cache = SlotCache(self.prompts[entering[0][0]].layers, self.slots, columns, self.longest_prompt)
        logits: list[Tensor] = []
        for request in dict.fromkeys(r for r, _ in entering):
            first, samples = len(self.rows), [s for r, s in entering if r == request]
            self.rows.extend(self._new_row(request, sample) for sample in samples)
            self.cache.place(self.prompts[request].layers, slice(first, len(self.rows)))
            logits.append(self.prompts[request].logits_V.expand(len(samples), -1))
            if samples[-1] == self.requests[request].num_samples - 1:
                del self.prompts[request]
        return torch.cat(logits)

    def _new_row(self, request: int, sample: int) -> _Row:
        key, prompt_ids = self.requests[request].key, self.requests[request].prompt_ids
        stream = uniforms(self.params, key, sample).tolist()
        return _Row(request=request, sample=sample, prompt_length=len(prompt_ids), uniforms=stream)

    def _prefill(self, indices: list[int]) -> None:
        """Compute prompts together, padded on the right: no token sees what follows it, so padding changes nothing."""
        if not indices:
            return
        prompts = [self.requests[index].prompt_ids for index in indices]
        longest = max(map(len, prompts))
        last = sorted({len(prompt) - 1 for prompt in prompts})
        cache = DynamicCache()
        output = self.model(
            input_ids=self._tensor([prompt + (0,) * (longest - len(prompt)) for prompt in prompts]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=self._tensor(last),
        )
        cached: list[Any] = cache.layers  # filled by the forward pass: keys and values are tensors now
        for row, (index, prompt) in enumerate(zip(indices, prompts, strict=True)):
            layers = [(layer.keys[row, :, : len(prompt)], layer.values[row, :, : len(prompt)]) for layer in cached]
            self.prompts[index] = _Prompt(logits_V=output.logits[row, last.index(len(prompt) - 1)], layers=layers)

    def _draw(self, logits_BV: Tensor) -> None:
        """Draw every row's next token and see which rows end with it."""
        if logits_BV.dtype != torch.float64:
            logits_BV = logits_BV.float()
        self.support.mask_(logits_BV, self._tensor([len(row.token_ids) for row in self.rows]))
        numbers = [row.uniforms[len(row.token_ids)] for row in self.rows]
        uniforms_B = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        drawn = draw(logits_BV, self.params.temperature, uniforms_B)
        for row, token_id, log_prob, entropy in zip(self.rows, *(t.tolist() for t in drawn), strict=True):
            if math.isnan(log_prob):
                raise ValueError("The policy's logits are not finite: its training diverged; lower the learning rate.")
            row.token_ids.append(token_id)
            row.log_probs.append(log_prob)
            row.entropy += entropy
            row.finished = self._finish(row)

    def _finish(self, row: _Row) -> tuple[FinishReason, int] | None:
        if row.token_ids[-1] in self.support.end_token_ids:
            return "end", 0
        if len(row.token_ids) >= self.params.min_tokens:
            overhang = self.stop.overhang(row.token_ids)
            if overhang is not None:
                return "stop", overhang
        return ("length", 0) if len(row.token_ids) == self.params.max_tokens else None

    def _retire(self) -> None:
        """Record the rows that ended; the last rows take their slots, and the window shrinks to the longest row."""
        staying = sum(row.finished is None for row in self.rows)
        if staying < len(self.rows):
            gaps = [slot for slot, row in enumerate(self.rows[:staying]) if row.finished is not None]
            movers = [slot for slot in range(staying, len(self.rows)) if self.rows[slot].finished is None]
            for row in self.rows:
                if row.finished is not None:
                    self.results[row.request][row.sample] = self._completion(row, *row.finished)
            for gap, mover in zip(gaps, movers, strict=True):
                self.rows[gap] = self.rows[mover]
            del self.rows[staying:]
        else:
            gaps = movers = []
        assert self.cache is not None
        longest = max((row.cached for row in self.rows), default=0)
        self.cache.window.first = self.cache.window.cursor - longest
        if gaps:
            self.cache.move(self._tensor(movers), self._tensor(gaps))

    def _completion(self, row: _Row, reason: FinishReason, overhang: int) -> Completion:
        text = decode(self.tokenizer, row.token_ids)
        return Completion(
            token_ids=tuple(row.token_ids),
            text=text[: len(text) - overhang],
            log_probs_T=np.array(row.log_probs, dtype=np.float32),
            entropy=row.entropy / len(row.token_ids),
            finish_reason=reason,
        )

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
