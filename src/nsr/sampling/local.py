"""The local engine: the policy itself samples, in this process.

Rows are completions in progress. Each step feeds every row's last token to the model, whose keys and values lie in a
preallocated cache, and draws the next one. A row that ends leaves the batch at once, and waiting ones enter when most
places are free. Prompts are computed once for all samples of a request, and so is what samples have in common after
them: rows are grouped in nodes.

A model of the Llama kind goes through the lean decoder, any other (and every one where `exact` asks for it) through its
own forward.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsr.models.kernels import fast_linears
from nsr.models.lean import LeanDecoder, misfit
from nsr.sampling.check import deviation, is_rounding
from nsr.sampling.draw import draw, draw_in_blocks
from nsr.sampling.engine import Completion, FinishReason, Request, SamplingParams
from nsr.sampling.nodes import Nodes
from nsr.sampling.rows import Rows
from nsr.sampling.steps import LeanSteps, ModelSteps
from nsr.sampling.stop import StopString, decode
from nsr.sampling.support import Support

_LOGGER = logging.getLogger(__name__)


class LocalEngine:
    """Samples from the policy object it is given, under its weights as they are at each call.

    Args:
        policy: any causal LM of `transformers` whose layers are all attention (full or sliding window).
        tokenizer: decodes completions and finds the stop string.
        support: what may be sampled.
        max_batch_size: most rows at once; bounds memory, and changes completions by no more than rounding.
        exact: take the plain path everywhere: the model's own forward, torch's own products, one sum over all words,
            every row by itself.

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
        exact: bool = False,
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
        self.exact = exact
        self._stop_strings: dict[str, StopString] = {}
        self._deviation: float | None = None
        self._said = False

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
        is_plain = self.exact or self._says_misfit(misfit(self.policy))
        quick = nullcontext() if self.exact else fast_linears(self.policy)
        with torch.inference_mode(), _evaluating(self.policy), quick:
            # Made for this call: its weights are copies, which the next call makes again of what they are then.
            decoder = None if is_plain else self._lean_decoder()
            return _Generation(self, decoder, requests, params).run()

    def _lean_decoder(self) -> LeanDecoder | None:
        """The lean decoder with the weights as they are now, if its logits are the model's."""
        decoder = LeanDecoder(self.policy, self.support.vocab_size)
        if self._deviation is None:
            self._deviation = deviation(self.policy, decoder, self.support.vocab_size)
        if is_rounding(self._deviation, self.policy.dtype):
            return decoder
        self._says_misfit(f"its logits differ by {self._deviation:.2g} of their spread")
        return None

    def _says_misfit(self, reason: str | None) -> bool:
        """Whether there is a reason; it is said once."""
        if reason is not None and not self._said:
            self._said = True
            _LOGGER.warning("Sampling takes the model's own, slower forward: %s.", reason)
        return reason is not None

    def stop_string(self, stop: str) -> StopString:
        """What finds a stop string; made once for each."""
        if stop not in self._stop_strings:
            self._stop_strings[stop] = StopString(self.tokenizer, stop, self.support.vocab_size)
        return self._stop_strings[stop]

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


class _Generation:
    """One call of `generate`."""

    def __init__(
        self,
        engine: LocalEngine,
        decoder: LeanDecoder | None,
        requests: Sequence[Request],
        params: SamplingParams,
    ) -> None:
        self.device = engine.policy.device
        self.tokenizer = engine.tokenizer
        self.support = engine.support
        self.requests = requests
        self.params = params
        self.stop = engine.stop_string(params.stop)
        self.exact = engine.exact
        self.results: list[list[Completion | None]] = [[None] * request.num_samples for request in requests]
        self.waiting = deque((r, s) for r, request in enumerate(requests) for s in range(request.num_samples))
        self.slots = min(engine.max_batch_size, len(self.waiting))
        self.rows = Rows(self.slots, params)
        self.nodes = Nodes(self.slots, share=not engine.exact)
        sizes = engine.policy, requests, self.slots, params.max_tokens
        self.steps = ModelSteps(*sizes) if decoder is None else LeanSteps(*sizes, decoder)
        self.is_end_V = np.zeros(engine.support.vocab_size, dtype=bool)
        self.is_end_V[list(engine.support.end_token_ids)] = True

    def run(self) -> list[list[Completion]]:
        while self.rows.count or self.waiting:
            logits = [self.steps.decode(self.nodes)] if self.rows.count else []
            if self._refill_is_due():
                logits.append(self._admit())
            self._draw(logits[0] if len(logits) == 1 else torch.cat(logits))
            self._retire()
        return [[completion for completion in group if completion is not None] for group in self.results]

    def _refill_is_due(self) -> bool:
        """Waiting rows enter when three quarters of the slots are free, or all that wait have room.

        All rows attend to a window as wide as the longest of them, so rows of one age are quickest together. But to
        wait until all have ended takes twice the time where few rows are long.
        """
        free = self.slots - self.rows.count
        return bool(self.waiting) and free >= min(len(self.waiting), max(1, self.slots * 3 // 4))

    def _admit(self) -> Tensor:
        """Fill the free slots with waiting completions; logits of their first tokens, [new, V]."""
        count = min(self.slots - self.rows.count, len(self.waiting))
        entering = [self.waiting.popleft() for _ in range(count)]
        new: list[tuple[int, int]] = []
        for index, members in groupby(entering, key=lambda pair: pair[0]):
            request, samples = self.requests[index], [sample for _, sample in members]
            before = self.nodes.count
            node_B = self.nodes.add(index, len(samples), len(request.prompt_ids))
            new.append((index, self.nodes.count - before))
            for sample, node in zip(samples, node_B.tolist(), strict=True):
                self.rows.add(index, sample, key=request.key, node=node)
        return self.steps.enter(new, self.nodes, self.waiting[0][0] if self.waiting else None)

    def _draw(self, logits_NV: Tensor) -> None:
        """Draw every row's next token from its node's logits."""
        positions_N = torch.from_numpy(self.nodes.length_N).to(self.device)
        self.support.mask_(logits_NV, positions_N)
        uniforms_B = torch.from_numpy(self.rows.uniforms_B).to(self.device)
        node_B, temperature = self.rows.of_each(self.rows.node_B), self.params.temperature
        if self.exact:
            assert np.array_equal(node_B, np.arange(len(logits_NV))), "without sharing node r is row r's"
            wide_BV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
            drawn = draw(wide_BV, temperature, uniforms_B)
        else:
            drawn = draw_in_blocks(logits_NV, temperature, uniforms_B, node_B)
        tokens_B, log_probs_B, entropies_B = (values_B.cpu().numpy() for values_B in drawn)
        if np.isnan(log_probs_B).any():
            raise ValueError("The policy's logits are not finite: its training diverged; lower the learning rate.")
        self.rows.append(tokens_B, log_probs_B, entropies_B)

    def _retire(self) -> None:
        """Record the rows that ended; the last rows take their places, and rows that drew different tokens part."""
        ended = self._endings()
        for row, (reason, overhang) in ended.items():
            completion = self._completion(row, reason, overhang)
            self.results[self.rows.request_B[row]][self.rows.sample_B[row]] = completion
        staying = self.rows.count - len(ended)
        gaps = np.array([row for row in sorted(ended) if row < staying], dtype=np.int64)
        movers = np.array([row for row in range(staying, self.rows.count) if row not in ended], dtype=np.int64)
        self.rows.keep(staying, movers, gaps)
        step = self.nodes.advance(self.rows.of_each(self.rows.node_B), self.rows.newest_B)
        self.rows.node_B[: self.rows.count] = step.node_B
        self.steps.advance(self.nodes, step)

    def _endings(self) -> dict[int, tuple[FinishReason, int]]:
        """Rows whose newest token is their last: why, and how many characters of the text to cut off."""
        newest_B, length_B = self.rows.newest_B, self.rows.of_each(self.rows.length_B)
        ended: dict[int, tuple[FinishReason, int]] = {
            int(row): ("length", 0) for row in np.flatnonzero(length_B == self.params.max_tokens)
        }
        may_stop_B = self.stop.may_complete_V[newest_B] & (length_B >= self.params.min_tokens)
        for row in np.flatnonzero(may_stop_B):
            overhang = self.stop.overhang(self.rows.tokens_BT[row, : length_B[row]].tolist())
            if overhang is not None:
                ended[int(row)] = "stop", overhang
        ended.update({int(row): ("end", 0) for row in np.flatnonzero(self.is_end_V[newest_B])})
        return ended

    def _completion(self, row: int, reason: FinishReason, overhang: int) -> Completion:
        length = int(self.rows.length_B[row])
        token_ids = self.rows.tokens_BT[row, :length].tolist()
        text = decode(self.tokenizer, token_ids)
        return Completion(
            token_ids=tuple(token_ids),
            text=text[: len(text) - overhang],
            log_probs_T=self.rows.log_probs_BT[row, :length].copy(),
            entropy=float(self.rows.entropy_B[row]) / length,
            finish_reason=reason,
        )
