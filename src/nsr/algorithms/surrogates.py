"""Logits -> log-probs, entropy, the clipped surrogate and its mean. Pure torch functions, to be maximized.

`B` sequences, `T` tokens, `V` vocabulary. Nothing here knows which objective runs: an objective is a weight a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nsr.config import LossType
from nsr.memory.estimate import PIECE_ELEMENTS


def response_log_probs(
    logits_BTV: Float[Tensor, "B T V"], tokens_BT: Int[Tensor, "B T"], temperature: float
) -> Float[Tensor, "B T"]:
    """Log-probability of each token under the softmax of its logits at a temperature, in float32 (nats).

    Args:
        logits_BTV: logits_BTV[:, t] predict tokens_BT[:, t]: the caller has aligned them. -inf takes an id out.
        tokens_BT: token ids. An id that is out gets -inf.
        temperature: divides the logits; above 0.
    """
    assert temperature > 0, temperature
    return in_pieces(partial(_log_probs, temperature), logits_BTV, tokens_BT)


def token_entropy(logits_BTV: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Entropy of the softmax of the logits at each position, in float32 (nats). -inf takes an id out."""
    return in_pieces(_entropy, logits_BTV)


def clipped_surrogate(
    log_probs_BT: Float[Tensor, "B T"],
    old_log_probs_BT: Float[Tensor, "B T"],
    weights_B: Float[Tensor, " B"],
    clip_range: float,
) -> Float[Tensor, "B T"]:
    """Objective of each token, to be maximized: min(rho * w, clip(rho, 1 - eps, 1 + eps) * w), rho = pi / pi_old.

    Where rho is 1 its gradient is w times that of the log-probability, as in REINFORCE. (PPO, arXiv 1707.06347, eq. 7.)

    Args:
        log_probs_BT: of the policy as it is; gradients flow through them.
        old_log_probs_BT: of the policy at the start of the rollout batch's updates; constant.
        weights_B: one weight a sequence, of any sign.
        clip_range: eps.
    """
    ratio_BT = torch.exp(log_probs_BT - old_log_probs_BT)
    weights_B1 = weights_B.unsqueeze(1)
    return torch.minimum(ratio_BT * weights_B1, ratio_BT.clamp(1 - clip_range, 1 + clip_range) * weights_B1)


def is_clipped(
    log_probs_BT: Float[Tensor, "B T"],
    old_log_probs_BT: Float[Tensor, "B T"],
    weights_B: Float[Tensor, " B"],
    clip_range: float,
) -> Bool[Tensor, "B T"]:
    """Where the clip takes the gradient away: rho has gone beyond it in the direction that the weight asks for."""
    ratio_BT = torch.exp(log_probs_BT - old_log_probs_BT)
    weights_B1 = weights_B.unsqueeze(1)
    return ((weights_B1 > 0) & (ratio_BT > 1 + clip_range)) | ((weights_B1 < 0) & (ratio_BT < 1 - clip_range))


def reduce_tokens(
    values_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    loss_type: LossType,
    *,
    denominator: float,
    max_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """One number from the tokens under the mask: numerator / denominator.

    The denominator is given, not counted: these rows may be a part of a batch, whose parts must add up.

    Args:
        values_BT: what the mask does not cover is not looked at, whatever it is.
        mask_BT: True at response tokens.
        loss_type: the numerator. "standard": the mean of each sequence's tokens, added up. "length_normalized": the sum
            of all tokens / max_tokens. "token_mean": the sum of all tokens.
        denominator: of the whole batch, the number of sequences ("standard", "length_normalized") or of tokens
            ("token_mean").
        max_tokens: the longest response; "length_normalized" needs it.
    """
    assert denominator > 0, denominator
    sums_B = torch.where(mask_BT, values_BT, 0.0).sum(dim=1)
    if loss_type == "standard":
        return (sums_B / mask_BT.sum(dim=1).clamp(min=1)).sum() / denominator
    if loss_type == "length_normalized":
        assert max_tokens is not None, "length_normalized divides by max_tokens"
        return sums_B.sum() / max_tokens / denominator
    assert loss_type == "token_mean", loss_type
    return sums_B.sum() / denominator


def in_pieces(function: Callable[..., Tensor], logits_BTV: Tensor, *others_BT: Tensor) -> Tensor:
    """function(logits_NV, *others_N) -> N applied over positions, a bounded number of logits at a time.

    Where there are several pieces, the backward pass computes each again: no more than one is ever held in float32.
    """
    rows = max(1, PIECE_ELEMENTS // logits_BTV.shape[-1])
    # split, unlike slicing, has one backward that joins the pieces' gradients: slices would add up full-sized zeros
    columns = [tensor.flatten(0, 1).split(rows) for tensor in (logits_BTV, *others_BT)]
    pieces = list(zip(*columns, strict=True))
    if len(pieces) > 1 and torch.is_grad_enabled():
        function = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([function(*piece) for piece in pieces]).unflatten(0, logits_BTV.shape[:2])


def _log_probs(temperature: float, logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    log_probs_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    return log_probs_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


def _entropy(logits_NV: Tensor) -> Tensor:
    log_probs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    # 0 * -inf is NaN, in the value and in the gradient: ids that are out become 1 * 0, a constant
    log_probs_NV = log_probs_NV.masked_fill(log_probs_NV.isneginf(), 0.0)
    return -(torch.exp(log_probs_NV) * log_probs_NV).sum(dim=-1)
