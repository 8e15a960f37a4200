"""The local engine: the policy itself samples, in this process.

Rows are completions in progress. Each step feeds every row's last token to the model, whose keys and values lie in a
preallocated cache, and draws the next one. A row that ends leaves the batch, and waiting ones enter when most places
are free. Prompts are computed once for all samples of a request that enter together. On a CPU rows are looked at after
every token, and what samples have in common after their prompt is computed once too: rows are grouped in nodes. On a
GPU they are looked at after a block of tokens, each is computed by itself, and steps are CUDA graphs.

A model of the Llama kind goes through the lean decoder, any other (and every one where `exact` asks for it) through its
own forward.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsr.errors import UserError
from nsr.models.fast.decode_model import LeanDecoder, misfit
from nsr.models.fast.kernels import fast_linears
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, Request, SamplingParams
from nsr.rollout.native.blocks import BlockByBlock
from nsr.rollout.native.generation import Generation, Job, TokenByToken
from nsr.rollout.native.self_check import deviation, is_rounding
from nsr.rollout.native.stop_string import StopString

IN_BLOCKS = ("cuda",)
"""Devices on which rows are looked at after a block of tokens."""

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
            raise UserError(
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
        """Nothing to release: between calls the engine keeps no tensors."""

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
            return self._generation(requests, params, decoder).run()

    def _generation(
        self, requests: Sequence[Request], params: SamplingParams, decoder: LeanDecoder | None
    ) -> Generation:
        job = Job(
            policy=self.policy,
            tokenizer=self.tokenizer,
            support=self.support,
            stop=self.stop_string(params.stop),
            requests=requests,
            params=params,
            max_batch_size=self.max_batch_size,
        )
        if decoder is not None and requests and self._in_blocks:
            return BlockByBlock(job, decoder)
        return TokenByToken(job, decoder, exact=self.exact)

    @property
    def _in_blocks(self) -> bool:
        return self.policy.device.type in IN_BLOCKS

    def _lean_decoder(self) -> LeanDecoder | None:
        """The lean decoder with the weights as they are now, if its logits are the model's."""
        decoder = LeanDecoder(self.policy, self.support.vocab_size)
        if self._deviation is None:
            self._deviation = deviation(self.policy, decoder, self.support.vocab_size, in_blocks=self._in_blocks)
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
            raise UserError(
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
