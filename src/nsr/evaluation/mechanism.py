"""What an objective asks of the logits at one token: the mechanism by which PSR and NSR differ.

Where a token y was sampled from pi = softmax(z / T) over the support, in a response of weight w:

- What is trained is the log-probability. The gradient of w log pi(y) by the logit z_v is w (1[v = y] - pi(v)) / T
  (`logit_gradient`). With w = +1 (PSR) it raises the sampled token and lowers every other in proportion to its
  probability. With w = -1 (NSR) it lowers the sampled token and hands the mass to the others in proportion to what the
  model already believed.
- The paper (arXiv 2506.01347, section 4) writes its losses with the probability itself. The gradient of w pi(y) is the
  same with one more factor: w pi(y) (1[v = y] - pi(v)) / T (`probability_gradient`).

Why training uses the first: the paper's loss is a sum over all responses, and samples stand in for that sum. A response
turns up in proportion to pi(y), so the factor is there already, in how often it is drawn: the expectation of
w grad log pi over samples is the sum of w grad pi. With the factor in each sample as well it would count twice.

A gradient is what the objective asks for at this one position. What the logit does follows from the parameters, which
all positions share, from the mean over tokens and samples, and from the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class GradientMismatch(RuntimeError):
    """The formula and autograd disagree about a gradient: one of them is not of what is trained."""


def logit_gradient(logits_NV: Tensor, tokens_N: Tensor, weights_N: Tensor, temperature: float) -> Tensor:
    """Gradient [N, V] of w log pi(token) by the logits, by the formula w (1[v = token] - pi(v)) / T, in float64.

    Args:
        logits_NV: before the temperature; -inf takes an id out of the support, and its gradient is exactly 0.
        tokens_N: the sampled ids, all within the support.
        weights_N: of any sign; above 0 makes the token likelier.
        temperature: T, above 0.
    """
    assert temperature > 0, temperature
    assert torch.isfinite(logits_NV.gather(-1, tokens_N.unsqueeze(-1))).all(), "a sampled token is within the support"
    probs_NV = torch.softmax(logits_NV.double() / temperature, dim=-1)
    sampled_NV = torch.zeros_like(probs_NV).scatter_(-1, tokens_N.unsqueeze(-1), 1.0)
    gradient_NV = weights_N.double().unsqueeze(-1) * (sampled_NV - probs_NV) / temperature
    return gradient_NV.masked_fill(logits_NV.isneginf(), 0.0)


def probability_gradient(logits_NV: Tensor, tokens_N: Tensor, weights_N: Tensor, temperature: float) -> Tensor:
    """The paper's own form: gradient [N, V] of w pi(token), which is that of w log pi(token) times pi(token)."""
    probs_NV = torch.softmax(logits_NV.double() / temperature, dim=-1)
    sampled_N1 = probs_NV.gather(-1, tokens_N.unsqueeze(-1))
    return sampled_N1 * logit_gradient(logits_NV, tokens_N, weights_N, temperature)


def gradient_by_autograd(objective: Callable[[Tensor], Tensor], logits_NV: Tensor) -> Tensor:
    """Gradient [N, V] by the logits of what `objective` makes of them, one value a token [N], in float64."""
    logits_NV = logits_NV.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient_NV,) = torch.autograd.grad(objective(logits_NV).sum(), logits_NV)
    return gradient_NV.double()


def check_gradient(formula_NV: Tensor, autograd_NV: Tensor, largest_N: Tensor, tolerance: float = 1e-5) -> None:
    """Raise GradientMismatch where the two differ by more than `tolerance` of `largest_N`, or one is not a number.

    `largest_N` is the most that an entry can be, |w| / T: where pi(token) is nearly 1 all of them are tiny, and float32
    rounds 1 - pi(token) to so many digits only.
    """
    error_N = (formula_NV - autograd_NV).abs().amax(dim=-1)
    if not bool((error_N <= tolerance * largest_N).all()):
        raise GradientMismatch(
            f"the formula and autograd differ by {float(error_N.max()):g}, where a gradient can be as large as "
            f"{float(largest_N.max()):g}."
        )
