"""Gradients by the logits: worked out by hand, against autograd in float64, and what they say of PSR and NSR."""

from __future__ import annotations

import math

import pytest
import torch

from nsr.evaluation.mechanism import (
    GradientMismatch,
    check_gradient,
    gradient_by_autograd,
    logit_gradient,
    probability_gradient,
)
from nsr.models.sampling_mask import Support

# A vocabulary of 7 in an output layer of 9; ids 1 and 6 end a response, which they may from the third token on.
SUPPORT = Support(vocab_size=7, end_token_ids=(1, 6), min_tokens=2)
INDEX_N = torch.tensor([0, 1, 2, 3, 5])
TOKENS_N = torch.tensor([0, 5, 1, 4, 6])
WEIGHTS_N = torch.tensor([1.0, -1.0, 0.1, -1.3, 0.0], dtype=torch.float64)
OUTSIDE_NV = torch.tensor([[v >= 7 or (v in (1, 6) and index < 2) for v in range(9)] for index in INDEX_N.tolist()])


def random_logits() -> torch.Tensor:
    return 3 * torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def log_probs(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of the tokens, written out: only the ids inside take part."""
    rows = [
        logits_NV[n, TOKENS_N[n]] / temperature - torch.logsumexp(logits_NV[n][~OUTSIDE_NV[n]] / temperature, dim=0)
        for n in range(len(TOKENS_N))
    ]
    return torch.stack(rows)


def test_gradients_worked_out_by_hand() -> None:
    # Probabilities 0.5, 0.3 and 0.2 at temperature 2; the second was sampled, and the fourth id is outside.
    logits_1V = torch.tensor([[2 * math.log(0.5), 2 * math.log(0.3), 2 * math.log(0.2), -math.inf]])
    token_1, of = torch.tensor([1]), {w: torch.tensor([w]) for w in (1.0, -1.0)}
    raised = logit_gradient(logits_1V.double(), token_1, of[1.0], 2.0)
    torch.testing.assert_close(raised, torch.tensor([[-0.25, 0.35, -0.1, 0.0]], dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(logit_gradient(logits_1V, token_1, of[-1.0], 2.0), -raised)
    # The paper's form has one more factor, the 0.3 of the sampled token.
    paper = probability_gradient(logits_1V, token_1, of[-1.0], 2.0)
    expected = torch.tensor([[0.075, -0.105, 0.03, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(paper, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_the_formula_is_what_autograd_finds(temperature: float) -> None:
    logits_NV = random_logits()
    masked_NV = SUPPORT.mask_(logits_NV.clone(), INDEX_N)
    assert torch.equal(masked_NV.isneginf(), OUTSIDE_NV)
    for formula, objective in (
        (logit_gradient, lambda raw_NV: WEIGHTS_N * log_probs(raw_NV, temperature)),
        (probability_gradient, lambda raw_NV: WEIGHTS_N * log_probs(raw_NV, temperature).exp()),
    ):
        by_formula = formula(masked_NV, TOKENS_N, WEIGHTS_N, temperature)
        by_autograd = gradient_by_autograd(objective, logits_NV)
        torch.testing.assert_close(by_formula, by_autograd, rtol=1e-10, atol=1e-13)
        check_gradient(by_formula, by_autograd, WEIGHTS_N.abs() / temperature, tolerance=1e-12)
        assert (by_formula[OUTSIDE_NV] == 0).all()
        assert (by_autograd[OUTSIDE_NV] == 0).all()
        # What one token gains, others lose.
        torch.testing.assert_close(by_formula.sum(dim=1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_psr_raises_the_sampled_and_lowers_the_others_in_proportion_and_nsr_the_reverse() -> None:
    masked_NV = SUPPORT.mask_(random_logits(), INDEX_N)
    probs_NV = torch.softmax(masked_NV, dim=-1)
    others_NV = (probs_NV > 0).scatter(1, TOKENS_N[:, None], False)
    for weight in (1.0, -1.0):
        gradient_NV = logit_gradient(masked_NV, TOKENS_N, torch.full((5,), weight), 1.0)
        assert (weight * gradient_NV.gather(1, TOKENS_N[:, None]) > 0).all()
        torch.testing.assert_close(gradient_NV[others_NV], -weight * probs_NV[others_NV])


def test_a_mismatch_raises() -> None:
    masked_NV = SUPPORT.mask_(random_logits(), INDEX_N)
    right = logit_gradient(masked_NV, TOKENS_N, WEIGHTS_N, 1.0)
    largest_N = WEIGHTS_N.abs()
    check_gradient(right, right, largest_N)
    wrong_temperature = logit_gradient(masked_NV, TOKENS_N, WEIGHTS_N, 1.01)
    # Over all ids, those outside too, as if trainer and sampler did not share the support.
    unmasked = gradient_by_autograd(
        lambda raw_NV: WEIGHTS_N * torch.log_softmax(raw_NV, dim=-1).gather(1, TOKENS_N[:, None]).squeeze(1),
        random_logits(),
    )
    not_a_number = right.clone()
    not_a_number[0, 0] = math.nan
    for wrong in (-right, wrong_temperature, unmasked, not_a_number):
        with pytest.raises(GradientMismatch, match="the formula and autograd differ"):
            check_gradient(right, wrong, largest_N)
