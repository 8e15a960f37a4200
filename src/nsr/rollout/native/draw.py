"""Random streams of completions, and one token drawn from each row of logits."""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nsr.rollout.engine import SamplingParams


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


PART = 256
"""Words whose probabilities are summed together."""
PIECE_ELEMENTS = 2**18
"""Logits that are worked on at a time on a CPU: their float32 copies stay in its cache and reuse memory."""
_NEVER = -1e4  # a scaled logit so far below the largest has probability 0, in float64 too


def draw_in_parts(
    logits_NV: Tensor, temperature: float, uniforms_B: Tensor, node_B: npt.NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `draw` gives, in fewer passes: it sums parts of the words, and then the words of one part.

    The random numbers pick the same tokens, except where rounding of a sum decides. Arguments and results are those of
    `draw`, but rows may have their logits in common: row b's are logits_NV[node_B[b]], logits_NV[b] if None. Logits in
    16 bits are worked with in float32, some of them at a time.
    """
    places_B = np.arange(len(logits_NV)) if node_B is None else node_B
    size = max(1, PIECE_ELEMENTS // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else len(logits_NV)
    order_B = np.argsort(places_B, kind="stable")
    firsts = list(range(0, len(logits_NV), size))
    bounds = np.searchsorted(places_B[order_B], np.array([*firsts, len(logits_NV)])).tolist()
    of_node_B, there_B, back_B = (
        torch.from_numpy(indices).to(logits_NV.device) for indices in (places_B[order_B], order_B, np.argsort(order_B))
    )
    uniforms_B = uniforms_B[there_B]
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    for first, piece_NV, (start, end) in zip(firsts, logits_NV.split(size), pairwise(bounds), strict=True):
        wide_NV = piece_NV if piece_NV.dtype == torch.float64 else piece_NV.float()
        pieces.append(_draw_piece(wide_NV, temperature, uniforms_B[start:end], of_node_B[start:end] - first))
    tokens_B, log_probs_B, entropies_B = (torch.cat(parts)[back_B] for parts in zip(*pieces, strict=True))
    return tokens_B, log_probs_B, entropies_B


def draw_each(logits_BV: Tensor, temperature: float, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `draw_in_parts` gives, of rows with logits of their own, all at once and without a word to the host."""
    wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    return _draw_piece(wide_BV, temperature, uniforms_B, torch.arange(len(wide_BV), device=wide_BV.device))


def _draw_piece(
    logits_NV: Tensor, temperature: float, uniforms_B: Tensor, node_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if temperature == 0:
        tokens_N, log_probs_N, entropies_N = draw(logits_NV, temperature, uniforms_B)
        return tokens_N[node_B], log_probs_N[node_B], entropies_N[node_B]
    nodes, words = logits_NV.shape
    parts = -(-words // PART)
    scaled_NV = (logits_NV - logits_NV.amax(dim=-1, keepdim=True)).div_(temperature).clamp_(min=_NEVER)
    terms_NV = scaled_NV.new_zeros(nodes, parts * PART)
    torch.exp(scaled_NV, out=terms_NV[:, :words])
    terms_NSK = terms_NV.unflatten(-1, (parts, PART))
    sums_NS = terms_NSK.sum(dim=-1).double()
    cumulative_NS = sums_NS.cumsum(dim=-1)
    log_totals_N = cumulative_NS[:, -1].log()
    # From here on a row, not a node.
    cumulative_BS = cumulative_NS[node_B]
    thresholds_B1 = uniforms_B.unsqueeze(-1) * cumulative_BS[:, -1:]
    part_B1 = torch.searchsorted(cumulative_BS, thresholds_B1, right=True).clamp_(max=parts - 1)
    before_B1 = torch.where(part_B1 > 0, cumulative_BS.gather(-1, (part_B1 - 1).clamp_(min=0)), 0.0)
    part_B = part_B1.squeeze(-1)
    inner_BK = terms_NSK[node_B, part_B].cumsum(dim=-1, dtype=torch.float64)
    # What is left of the threshold, as a share of the part's sum, which is more exact here: in float64.
    rest_B1 = (thresholds_B1 - before_B1) * (inner_BK[:, -1:] / sums_NS[node_B, part_B].unsqueeze(-1))
    # As in `draw` a word of probability 0 is never taken: the threshold stays below the sum.
    below_B1 = inner_BK[:, -1:].nextafter(torch.zeros_like(before_B1))
    inner_B1 = torch.searchsorted(inner_BK, torch.minimum(rest_B1, below_B1), right=True)
    tokens_B = (part_B1 * PART + inner_B1).clamp_(max=words - 1).squeeze(-1)  # only rows of nan need it
    log_probs_B = scaled_NV[node_B, tokens_B] - log_totals_N[node_B]
    entropies_N = log_totals_N - scaled_NV.mul_(terms_NV[:, :words]).sum(dim=-1) / cumulative_NS[:, -1]
    return tokens_B, log_probs_B.to(logits_NV.dtype), entropies_N[node_B].to(logits_NV.dtype)
