"""Random streams of completions, and one token drawn from each row of logits."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nsr.sampling.engine import SamplingParams


def uniforms(params: SamplingParams, key: str, sample: int) -> npt.NDArray[np.float64]:
    """The random numbers of one completion: [max_tokens] in [0, 1), one a token.

    They depend on (seed, purpose, step, puzzle key, sample) and on nothing else, in particular not on what else is
    sampled. Source: Philox, a counter-based generator, keyed by the hash of that tuple; its raw output is the same in
    every numpy version.
    """
    name = repr((params.seed, params.purpose, params.step, key, sample))
    digest = blake2b(name.encode(), digest_size=16).digest()
    raw_T = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(params.max_tokens)
    # 52 bits, not 53: then the largest value times any double is rounded to less than that double (see draw).
    return (raw_T >> np.uint64(12)).astype(np.float64) * 2.0**-52


def draw(logits_BV: Tensor, temperature: float, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row by inversion of the distribution function, so that rounding of the logits rarely changes it.

    Args:
        logits_BV: float32 or float64, -inf outside the support.
        temperature: divides the logits; 0 takes the most probable token.
        uniforms_B: float64 in [0, 1).

    Returns:
        tokens_B (int64), their log-probabilities [B] and the distributions' entropies [B] in nats, both of the
        distribution sampled from (greedy: 0). A row of logits that are not finite has a log-probability of nan.
    """
    if temperature == 0:
        best_B, tokens_B = logits_BV.max(dim=-1)
        zeros_B = best_B * 0  # 0, and nan for inf and nan
        return tokens_B, zeros_B, zeros_B
    log_probs_BV = torch.log_softmax(logits_BV / temperature, dim=-1)
    probs_BV = log_probs_BV.exp()
    cumulative_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
    # The first token whose cumulative probability exceeds u * total: never one of probability 0, because there the sum
    # does not grow, and always one inside the vocabulary, because u * total < total.
    thresholds_B1 = uniforms_B.unsqueeze(-1) * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, thresholds_B1, right=True)
    tokens_B1 = tokens_B1.clamp_(max=logits_BV.shape[-1] - 1)  # only rows of nan need it
    entropies_B = torch.special.entr(probs_BV).sum(dim=-1)
    return tokens_B1.squeeze(-1), log_probs_BV.gather(-1, tokens_B1).squeeze(-1), entropies_B
