from __future__ import annotations

import math

import pytest
import torch

from nsr.algorithms import surrogates as loss
from nsr.algorithms.surrogates import clipped_surrogate, is_clipped, reduce_tokens, response_log_probs, token_entropy

LN2, LN3 = math.log(2), math.log(3)
OUT = -math.inf
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(params=["one piece", "many pieces"])
def pieces(request, monkeypatch):
    if request.param == "many pieces":
        monkeypatch.setattr(loss, "PIECE_ELEMENTS", 8)


def test_log_probs_worked_out_by_hand(pieces):
    # temperature 2 makes of the logits (2 ln 3, 2 ln 2, 0) the odds 3 : 2 : 1
    logits_BTV = torch.tensor([[[2 * LN3, 2 * LN2, 0.0]] * 3, [[0.0, 0.0, OUT], [0.0, OUT, OUT], [1.0, 1.0, 1.0]]])
    tokens_BT = torch.tensor([[0, 1, 2], [1, 0, 2]])
    log_probs_BT = response_log_probs(logits_BTV, tokens_BT, 2.0)
    expected = [[1 / 2, 1 / 3, 1 / 6], [1 / 2, 1.0, 1 / 3]]
    torch.testing.assert_close(log_probs_BT.exp(), torch.tensor(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probs_are_float32_whatever_the_logits(dtype, pieces):
    logits_BTV = torch.randn(2, 5, 7, generator=torch.manual_seed(0)).to(dtype)
    tokens_BT = torch.randint(7, (2, 5), generator=torch.manual_seed(1))
    log_probs_BT = response_log_probs(logits_BTV, tokens_BT, 0.7)
    assert log_probs_BT.dtype == torch.float32
    # against float64 arithmetic on the very logits that were given: only float32's rounding is left
    exact_BTV = torch.log_softmax(logits_BTV.double() / 0.7, dim=-1)
    exact_BT = exact_BTV.gather(-1, tokens_BT.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs_BT.double(), exact_BT, rtol=0, atol=1e-6)


def test_a_token_that_is_out_has_no_probability_and_no_gradient_is_nan(pieces):
    logits_BTV = torch.tensor([[[0.0, 1.0, OUT], [0.0, 1.0, 2.0]]], requires_grad=True)
    log_probs_BT = response_log_probs(logits_BTV, torch.tensor([[2, 0]]), 1.0)
    assert log_probs_BT[0, 0] == OUT
    torch.where(torch.tensor([[False, True]]), log_probs_BT, 0.0).sum().backward()
    assert logits_BTV.grad is not None
    assert logits_BTV.grad[0, 0].tolist() == [0.0, 0.0, 0.0]
    probabilities = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), dim=0)
    torch.testing.assert_close(logits_BTV.grad[0, 1], torch.tensor([1.0, 0.0, 0.0]) - probabilities)


def test_pieces_change_nothing(monkeypatch):
    logits_BTV = torch.randn(3, 5, 7, generator=torch.manual_seed(0))
    tokens_BT = torch.randint(7, (3, 5), generator=torch.manual_seed(1))
    results = []
    for elements in (2**20, 30, 1):
        monkeypatch.setattr(loss, "PIECE_ELEMENTS", elements)
        leaf_BTV = logits_BTV.clone().requires_grad_()
        log_probs_BT = response_log_probs(leaf_BTV, tokens_BT, 0.7)
        (log_probs_BT.sum() + 2 * token_entropy(leaf_BTV).sum()).backward()
        results.append((log_probs_BT.detach(), leaf_BTV.grad))
    for log_probs_BT, gradient_BTV in results[1:]:
        torch.testing.assert_close(log_probs_BT, results[0][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient_BTV, results[0][1], rtol=0, atol=1e-6)


def test_what_is_kept_for_the_backward_pass_does_not_hold_the_float32_logits(monkeypatch):
    # a bound on work: of bfloat16 logits nothing of their number of elements is kept in a wider type
    monkeypatch.setattr(loss, "PIECE_ELEMENTS", 100)
    logits_BTV = torch.zeros(2, 50, 10, dtype=torch.bfloat16, requires_grad=True)
    wide_elements = []

    def count(tensor):
        if tensor.dtype == torch.float32:
            wide_elements.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        response_log_probs(logits_BTV, torch.zeros(2, 50, dtype=torch.int64), 1.0)
    assert sum(wide_elements) < logits_BTV.numel() / 2


def test_entropy_worked_out_by_hand(pieces):
    logits_BTV = torch.tensor([[[0.0, 0.0, 0.0], [LN2, 0.0, 0.0], [0.0, 0.0, OUT], [5.0, OUT, OUT]]])
    entropy_BT = token_entropy(logits_BTV)
    # (1/2, 1/4, 1/4) has 1.5 bits
    torch.testing.assert_close(entropy_BT, torch.tensor([[LN3, 1.5 * LN2, LN2, 0.0]]))
    assert entropy_BT.dtype == torch.float32


def test_the_gradient_of_the_entropy_is_right_where_ids_are_out(pieces):
    inside = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    leaf = inside.clone().requires_grad_()
    padded = torch.cat([leaf, torch.full((1, 4, 2), OUT, dtype=torch.float64)], dim=-1)
    token_entropy(padded).sum().backward()
    # dH/dz_i = -p_i (log p_i + H), by hand
    log_p = torch.log_softmax(inside, dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1, keepdim=True)
    torch.testing.assert_close(leaf.grad, -log_p.exp() * (log_p + entropy), rtol=0, atol=1e-6)


def test_the_entropy_of_very_unlike_logits_is_finite(pieces):
    logits_BTV = torch.tensor([[[0.0, -1e4, -1e30]]], requires_grad=True)
    entropy_BT = token_entropy(logits_BTV)
    entropy_BT.sum().backward()
    assert entropy_BT.tolist() == [[0.0]]
    assert logits_BTV.grad is not None
    assert torch.isfinite(logits_BTV.grad).all()


# rho, weight -> objective, its derivative by log pi, and whether the clip takes the gradient away; eps is 0.2.
SURROGATE = [
    (1.0, 1.0, 1.0, 1.0, False),
    (1.0, -1.0, -1.0, -1.0, False),
    (1.1, 1.0, 1.1, 1.1, False),
    (1.1, -1.0, -1.1, -1.1, False),
    (0.9, 0.5, 0.45, 0.45, False),
    (0.9, -2.0, -1.8, -1.8, False),
    (1.5, 1.0, 1.2, 0.0, True),  # already raised enough
    (1.5, -1.0, -1.5, -1.5, False),  # raised though it should be lowered: no clip
    (0.5, 1.0, 0.5, 0.5, False),  # lowered though it should be raised: no clip
    (0.5, -1.0, -0.8, 0.0, True),  # already lowered enough
    (0.5, -2.0, -1.6, 0.0, True),
    (3.0, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("rho", "weight", "value", "slope", "clipped"), SURROGATE)
def test_clipped_surrogate_worked_out_by_hand(rho, weight, value, slope, clipped):
    old_BT = torch.tensor([[-1.0]], dtype=torch.float64)
    log_probs_BT = (old_BT + math.log(rho)).requires_grad_()
    weights_B = torch.tensor([weight], dtype=torch.float64)
    surrogate_BT = clipped_surrogate(log_probs_BT, old_BT, weights_B, 0.2)
    surrogate_BT.sum().backward()
    assert surrogate_BT.item() == pytest.approx(value, abs=1e-12)
    assert log_probs_BT.grad is not None
    assert log_probs_BT.grad.item() == pytest.approx(slope, abs=1e-12)
    assert is_clipped(log_probs_BT.detach(), old_BT, weights_B, 0.2).item() is clipped


def test_the_weight_of_a_row_reaches_all_its_tokens_and_no_other_row():
    zeros_BT = torch.zeros(2, 3)
    surrogate_BT = clipped_surrogate(zeros_BT, zeros_BT, torch.tensor([2.0, -3.0]), 0.2)
    assert surrogate_BT.tolist() == [[2.0] * 3, [-3.0] * 3]


# Rows of three and of one token under the mask: sums 6 and 5, means 2 and 5.
VALUES_BT = torch.tensor([[math.nan, 1.0, 2.0, 3.0], [math.inf, 5.0, OUT, math.nan]])
MASK_BT = torch.tensor([[False, True, True, True], [False, True, False, False]])


@pytest.mark.parametrize(
    ("loss_type", "denominator", "expected"),
    [
        ("standard", 2.0, 3.5),
        ("standard", 7.0, 1.0),
        ("length_normalized", 2.0, 11 / 10 / 2),
        ("token_mean", 4.0, 11 / 4),
        ("token_mean", 11.0, 1.0),
    ],
)
def test_reduction_worked_out_by_hand(loss_type, denominator, expected):
    reduced = reduce_tokens(VALUES_BT, MASK_BT, loss_type, denominator=denominator, max_tokens=10)
    assert reduced.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss_type", ["standard", "length_normalized", "token_mean"])
def test_parts_add_up_to_the_whole(loss_type):
    def reduce(rows):
        return reduce_tokens(VALUES_BT[rows], MASK_BT[rows], loss_type, denominator=4.0, max_tokens=10).item()

    assert reduce([0]) + reduce([1]) == pytest.approx(reduce([0, 1]))


def test_no_gradient_comes_from_off_the_mask():
    values_BT = torch.ones(1, 3, requires_grad=True)
    reduce_tokens(values_BT, torch.tensor([[False, True, True]]), "standard", denominator=1.0).backward()
    assert values_BT.grad is not None
    assert values_BT.grad.tolist() == [[0.0, 0.5, 0.5]]


def test_shapes_are_checked_in_tests():
    with pytest.raises(Exception, match=r"(?i)type.?check"):
        response_log_probs(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64), 1.0)
