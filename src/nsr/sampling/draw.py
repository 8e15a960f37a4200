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


BLOCK = 256
"""Words whose probabilities are summed together."""
PIECE_ELEMENTS = 2**18
"""Logits that are worked on at a time on a CPU: their float32 copies stay in its cache and reuse memory."""
_NEVER = -1e4  # a scaled logit so far below the largest has probability 0, in float64 too


def draw_in_blocks(logits_BV: Tensor, temperature: float, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `draw` gives, in fewer passes: it sums blocks of words, and then the words of one block.

    The random numbers pick the same tokens, except where rounding of a sum decides. Arguments and results are those of
    `draw`; logits in 16 bits are worked with in float32, some rows at a time.
    """
    rows = max(1, PIECE_ELEMENTS // logits_BV.shape[1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece_BV, numbers_B in zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True):
        wide_BV = piece_BV if piece_BV.dtype == torch.float64 else piece_BV.float()
        pieces.append((draw if temperature == 0 else _draw_piece)(wide_BV, temperature, numbers_B))
    tokens_B, log_probs_B, entropies_B = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return tokens_B, log_probs_B, entropies_B


def _draw_piece(logits_BV: Tensor, temperature: float, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, words = logits_BV.shape
    blocks = -(-words // BLOCK)
    scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).div_(temperature).clamp_(min=_NEVER)
    terms_BV = scaled_BV.new_zeros(batch, blocks * BLOCK)
    torch.exp(scaled_BV, out=terms_BV[:, :words])
    terms_BNK = terms_BV.unflatten(-1, (blocks, BLOCK))
    sums_BN = terms_BNK.sum(dim=-1).double()
    cumulative_BN = sums_BN.cumsum(dim=-1)
    totals_B = cumulative_BN[:, -1]
    thresholds_B1 = (uniforms_B * totals_B).unsqueeze(-1)
    block_B1 = torch.searchsorted(cumulative_BN, thresholds_B1, right=True).clamp_(max=blocks - 1)
    before_B1 = torch.where(block_B1 > 0, cumulative_BN.gather(-1, (block_B1 - 1).clamp_(min=0)), 0.0)
    rows_B = torch.arange(batch, device=logits_BV.device)
    inner_BK = terms_BNK[rows_B, block_B1.squeeze(-1)].cumsum(dim=-1, dtype=torch.float64)
    # What is left of the threshold, as a share of the block's sum, which is more exact here: in float64.
    rest_B1 = (thresholds_B1 - before_B1) * (inner_BK[:, -1:] / sums_BN.gather(-1, block_B1))
    # As in `draw` a word of probability 0 is never taken: the threshold stays below the sum.
    below_B1 = inner_BK[:, -1:].nextafter(torch.zeros_like(before_B1))
    inner_B1 = torch.searchsorted(inner_BK, torch.minimum(rest_B1, below_B1), right=True)
    tokens_B1 = (block_B1 * BLOCK + inner_B1).clamp_(max=words - 1)  # only rows of nan need it
    log_totals_B = totals_B.log()
    log_probs_B = scaled_BV.gather(-1, tokens_B1).squeeze(-1) - log_totals_B
    entropies_B = log_totals_B - scaled_BV.mul_(terms_BV[:, :words]).sum(dim=-1) / totals_B
    return tokens_B1.squeeze(-1), log_probs_B.to(logits_BV.dtype), entropies_B.to(logits_BV.dtype)
