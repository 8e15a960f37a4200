"""Hidden states -> log-probs and entropy of tokens: the output layer, a piece at a time.

Logits are by far the largest thing in a step: 152 thousand for each token of Qwen3. They are never there in float32 but
for a few rows. What the gradient needs, the probabilities, is kept in the type of the weights where it is little, and
made again a piece at a time where it is much.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsr.memory.estimate import KEPT_ELEMENTS, WIDE_ELEMENTS, of_device
from nsr.models.fast.kernels import matmul
from nsr.models.sampling_mask import Support


def head_log_probs(
    head: nn.Linear,
    support: Support,
    hidden_ND: Float[Tensor, "N D"],
    tokens_N: Int[Tensor, " N"],
    index_N: Int[Tensor, " N"],
    temperature: float,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probs of tokens and the entropy where each was sampled; both over the support, float32 or wider, nats.

    Gradients flow through the log-probs alone, to hidden states, weight and bias.

    Args:
        head: the model's output layer.
        support: what could be sampled; other ids are not computed, or are out.
        hidden_ND: hidden_ND[n] predicts tokens_N[n].
        tokens_N: token ids inside the support.
        index_N: the index of each token in its response.
        temperature: divides the logits; above 0.
    """
    return _HeadLogProbs.apply(hidden_ND, head.weight, head.bias, tokens_N, index_N, support, temperature)


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        tokens_N: Tensor,
        index_N: Tensor,
        support: Support,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.support, ctx.temperature = support, temperature
        ctx.kept = None
        values: list[tuple[Tensor, Tensor]] = []
        pieces = _pieces(len(tokens_N), support.vocab_size)
        for piece in pieces:
            inputs = hidden_ND[piece], weight_VD, bias_V, tokens_N[piece], index_N[piece]
            probs_NV, *of_tokens = _score(*inputs, support, temperature)
            values.append((of_tokens[0], of_tokens[1]))
            if len(pieces) == 1 and any(ctx.needs_input_grad):
                ctx.kept = probs_NV
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, tokens_N, index_N)
        log_probs_N, entropy_N = (torch.cat(parts) for parts in zip(*values, strict=True))
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, tokens_N, index_N = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # they turn into the gradient in place: another backward pass makes them again
        used = slice(0, ctx.support.vocab_size)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        by_log_prob_N = (gradients[0] / ctx.temperature).to(hidden_ND.dtype)
        by_hidden: list[Tensor] = []
        by_weight = _Sum()
        by_bias = _Sum()
        for piece in _pieces(len(tokens_N), ctx.support.vocab_size):
            inputs = hidden_ND[piece], weight_VD, bias_V, tokens_N[piece], index_N[piece]
            probs_NV = _score(*inputs, ctx.support, ctx.temperature)[0] if kept is None else kept
            # d log p(y) / d z = (1[v = y] - p(v)) / T
            gradient_N = by_log_prob_N[piece]
            by_logit_NV = probs_NV.mul_(-gradient_N.unsqueeze(-1))
            # not scatter_add_, which on a CPU makes a float32 copy of all that is in 16 bits
            rows_N = torch.arange(len(gradient_N), device=gradient_N.device)
            by_logit_NV.index_put_((rows_N, tokens_N[piece]), gradient_N, accumulate=True)
            if needs_hidden:
                by_hidden.append(matmul(by_logit_NV, weight_VD[used]))
            if needs_weight:
                by_weight.add(matmul(by_logit_NV.t(), hidden_ND[piece]))
            if needs_bias:
                by_bias.add(by_logit_NV.sum(dim=0))
        return (
            torch.cat(by_hidden) if needs_hidden else None,
            by_weight.padded_like(weight_VD) if needs_weight else None,
            by_bias.padded_like(bias_V) if bias_V is not None and needs_bias else None,
            *[None] * 4,
        )


class _Sum:
    """A sum of tensors, in at least float32 once there is a second."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, part: Tensor) -> None:
        if self.total is None:
            self.total = part
        else:
            self.total = self.total.to(torch.promote_types(part.dtype, torch.float32)).add_(part)

    def padded_like(self, weight: Tensor) -> Tensor:
        """The sum as the gradient of a weight, whose rows beyond the sum's get none."""
        assert self.total is not None
        total = self.total.to(weight.dtype)
        missing = weight.shape[0] - total.shape[0]
        return torch.cat([total, total.new_zeros(missing, *weight.shape[1:])]) if missing else total


def _pieces(tokens: int, vocab_size: int) -> list[slice]:
    size = max(1, KEPT_ELEMENTS // vocab_size)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _score(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    tokens_N: Tensor,
    index_N: Tensor,
    support: Support,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [N, V] in the type of the weights, and in at least float32 log-probs of tokens and entropies [N].

    V is the vocabulary without its padding. Some rows at a time go through float32, on a CPU so few that they stay in
    its caches.
    """
    used = slice(0, support.vocab_size)
    logits_NV = matmul(hidden_ND, weight_VD[used].t())
    if bias_V is not None:
        logits_NV += bias_V[used]
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    log_probs: list[Tensor] = []
    entropies: list[Tensor] = []
    rows = max(1, of_device(WIDE_ELEMENTS, logits_NV.device.type) // support.vocab_size)
    for some_NV, tokens, index in zip(logits_NV.split(rows), tokens_N.split(rows), index_N.split(rows), strict=True):
        scores_NV = support.mask_(some_NV.to(wide, copy=True).div_(temperature), index)
        scores_NV -= scores_NV.amax(dim=-1, keepdim=True)
        chosen_N = scores_NV.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        probs_NV = torch.exp(scores_NV)
        sum_N = probs_NV.sum(dim=-1)
        for token_id in support.end_token_ids:  # where it is out: 0 x -inf is NaN
            scores_NV[:, token_id].clamp_(min=torch.finfo(wide).min)
        # entropy = log of the sum - mean score
        mean_N = _dot(probs_NV, scores_NV) / sum_N
        log_probs.append(chosen_N - sum_N.log())
        entropies.append(sum_N.log() - mean_N)
        some_NV.copy_(probs_NV.div_(sum_N.unsqueeze(-1)))
    return logits_NV, torch.cat(log_probs), torch.cat(entropies)


def _dot(left_NV: Tensor, right_NV: Tensor) -> Tensor:
    """The product of each row of one with that of the other: by the quicker way, which the device decides."""
    if left_NV.device.type == "cuda":
        return torch.linalg.vecdot(left_NV, right_NV)
    return (left_NV.unsqueeze(1) @ right_NV.unsqueeze(2)).flatten()
