"""One call of the local engine: rows enter, draw a token after another, and leave when they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsr.errors import UserError
from nsr.models.fast.decode_model import LeanDecoder
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, FinishReason, Request, SamplingParams
from nsr.rollout.native.draw import draw, draw_in_parts
from nsr.rollout.native.prefix_groups import Nodes
from nsr.rollout.native.rows import Rows
from nsr.rollout.native.steps import LeanSteps, ModelSteps
from nsr.rollout.native.stop_string import StopString, decode

_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be sampled, and with what."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    support: Support
    stop: StopString
    requests: Sequence[Request]
    params: SamplingParams
    max_batch_size: int
    """Most rows at once."""


class Generation:
    """What every way of sampling has in common: which rows are in progress, which wait, and when one ends."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = job.policy.device
        self.results: list[list[Completion | None]] = [[None] * request.num_samples for request in job.requests]
        self.waiting = deque((r, s) for r, request in enumerate(job.requests) for s in range(request.num_samples))
        self.slots = min(job.max_batch_size, len(self.waiting))
        self.rows = Rows(self.slots, job.params)
        self.is_end_V = np.zeros(job.support.vocab_size, dtype=bool)
        self.is_end_V[list(job.support.end_token_ids)] = True

    def run(self) -> list[list[Completion]]:
        """All completions, in the order of the requests and of the samples."""
        while self.rows.count or self.waiting:
            self.advance()
        return [[completion for completion in group if completion is not None] for group in self.results]

    def advance(self) -> None:
        """Let rows enter where it is time, and draw at least one token of each."""
        raise NotImplementedError

    def refill_is_due(self) -> bool:
        """Waiting rows enter when three quarters of the slots are free, or all that wait have room.

        All rows attend to a window as wide as the longest of them, so rows of one age are quickest together. But to
        wait until all have ended takes twice the time where few rows are long.
        """
        free = self.slots - self.rows.count
        return bool(self.waiting) and free >= min(len(self.waiting), max(1, self.slots * 3 // 4))

    def entering(self) -> list[tuple[int, list[int]]]:
        """As many as have room, no longer waiting: requests and the samples of each."""
        count = min(self.slots - self.rows.count, len(self.waiting))
        entering = [self.waiting.popleft() for _ in range(count)]
        return [
            (index, [sample for _, sample in pairs]) for index, pairs in groupby(entering, key=lambda pair: pair[0])
        ]

    def append(
        self,
        tokens_B: npt.NDArray[np.int64],
        log_probs_B: npt.NDArray[np.floating[Any]],
        entropies_B: npt.NDArray[np.floating[Any]],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """One more token of each row; those that end leave, and the last rows take their places.

        Returns:
            Rows that moved, where they were and where they are.

        Raises:
            ValueError: the policy's logits are not finite.
        """
        if np.isnan(log_probs_B).any():
            raise UserError("The policy's logits are not finite: its training diverged; lower the learning rate.")
        self.rows.append(tokens_B, log_probs_B, entropies_B)
        ended = self._endings()
        if not ended:
            return _NONE, _NONE
        for row, (reason, overhang) in ended.items():
            completion = self._completion(row, reason, overhang)
            self.results[self.rows.request_B[row]][self.rows.sample_B[row]] = completion
        staying = self.rows.count - len(ended)
        gaps = np.array([row for row in sorted(ended) if row < staying], dtype=np.int64)
        movers = np.array([row for row in range(staying, self.rows.count) if row not in ended], dtype=np.int64)
        self.rows.keep(staying, movers, gaps)
        return movers, gaps

    def _endings(self) -> dict[int, tuple[FinishReason, int]]:
        """Rows whose newest token is their last: why, and how many characters of the text to cut off."""
        stop, params = self.job.stop, self.job.params
        newest_B, length_B = self.rows.newest_B, self.rows.of_each(self.rows.length_B)
        ended: dict[int, tuple[FinishReason, int]] = {
            int(row): ("length", 0) for row in np.flatnonzero(length_B == params.max_tokens)
        }
        may_stop_B = stop.may_complete_V[newest_B] & (length_B >= params.min_tokens)
        for row in np.flatnonzero(may_stop_B):
            overhang = stop.overhang(self.rows.tokens_BT[row, : length_B[row]].tolist())
            if overhang is not None:
                ended[int(row)] = "stop", overhang
        ended.update({int(row): ("end", 0) for row in np.flatnonzero(self.is_end_V[newest_B])})
        return ended

    def _completion(self, row: int, reason: FinishReason, overhang: int) -> Completion:
        length = int(self.rows.length_B[row])
        token_ids = self.rows.tokens_BT[row, :length].tolist()
        text = decode(self.job.tokenizer, token_ids)
        return Completion(
            token_ids=tuple(token_ids),
            text=text[: len(text) - overhang],
            log_probs_T=self.rows.log_probs_BT[row, :length].copy(),
            entropy=float(self.rows.entropy_B[row]) / length,
            finish_reason=reason,
        )


class TokenByToken(Generation):
    """The rows are looked at after each token: samples that have said the same so far are computed once.

    Args:
        job: what is to be sampled.
        decoder: the lean decoder, None for the model's own forward.
        exact: draw by one sum over all words, and compute every row by itself.
    """

    def __init__(self, job: Job, decoder: LeanDecoder | None, *, exact: bool) -> None:
        super().__init__(job)
        self.exact = exact
        self.nodes = Nodes(self.slots, share=not exact)
        sizes = job.policy, job.requests, self.slots, job.params.max_tokens
        self.steps = ModelSteps(*sizes) if decoder is None else LeanSteps(*sizes, decoder)

    def advance(self) -> None:
        """See `Generation.advance`."""
        logits = [self.steps.decode(self.nodes)] if self.rows.count else []
        if self.refill_is_due():
            logits.append(self._admit())
        self.append(*self._draw(logits[0] if len(logits) == 1 else torch.cat(logits)))
        # Rows that drew different tokens part.
        step = self.nodes.advance(self.rows.of_each(self.rows.node_B), self.rows.newest_B)
        self.rows.node_B[: self.rows.count] = step.node_B
        self.steps.advance(self.nodes, step)

    def _admit(self) -> Tensor:
        """Fill the free slots with waiting completions; logits of their first tokens, [new, V]."""
        new: list[tuple[int, int]] = []
        for index, samples in self.entering():
            request = self.job.requests[index]
            before = self.nodes.count
            node_B = self.nodes.add(index, len(samples), len(request.prompt_ids))
            new.append((index, self.nodes.count - before))
            for sample, node in zip(samples, node_B.tolist(), strict=True):
                self.rows.add(index, sample, key=request.key, node=node)
        return self.steps.enter(new, self.nodes, self.waiting[0][0] if self.waiting else None)

    def _draw(self, logits_NV: Tensor) -> list[npt.NDArray[Any]]:
        """Every row's next token from its node's logits, its log-probability, and the entropy there."""
        positions_N = torch.from_numpy(self.nodes.length_N).to(self.device)
        self.job.support.mask_(logits_NV, positions_N)
        uniforms_B = torch.from_numpy(self.rows.uniforms_B).to(self.device)
        node_B, temperature = self.rows.of_each(self.rows.node_B), self.job.params.temperature
        if self.exact:
            assert np.array_equal(node_B, np.arange(len(logits_NV))), "without sharing node r is row r's"
            wide_BV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
            drawn = draw(wide_BV, temperature, uniforms_B)
        else:
            drawn = draw_in_parts(logits_NV, temperature, uniforms_B, node_B)
        return [values_B.cpu().numpy() for values_B in drawn]
