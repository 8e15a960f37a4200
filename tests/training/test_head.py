"""The output layer in pieces, against softmax and autograd written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nsr.models.fast import output_layer as head
from nsr.models.fast.output_layer import head_log_probs
from nsr.models.sampling_mask import Support

SUPPORT = Support(vocab_size=11, end_token_ids=(1, 5), min_tokens=2)
N, D, V = 9, 4, 13


def inputs(dtype: torch.dtype = torch.float64, bias: bool = False):
    torch.manual_seed(0)
    layer = torch.nn.Linear(D, V, bias=bias).to(dtype)
    hidden_ND = torch.randn(N, D, dtype=dtype, requires_grad=True)
    index_N = torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3])
    tokens_N = torch.tensor([2, 3, 1, 5, 0, 10, 4, 1, 7])
    return layer, hidden_ND, tokens_N, index_N


def plain(layer, hidden_ND, tokens_N, index_N, temperature):
    logits_NV = SUPPORT.mask_logits(layer(hidden_ND)[None], index_N[None])[0] / temperature
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    entropy_N = torch.stack([-sum(p * p.log() for p in row.exp() if p > 0) for row in log_probs_NV.detach()])
    return log_probs_NV.gather(1, tokens_N[:, None])[:, 0], entropy_N


def gradients(layer, hidden_ND, log_probs_N):
    layer.zero_grad()
    hidden_ND.grad = None
    (log_probs_N * torch.linspace(-1, 2, N, dtype=log_probs_N.dtype)).sum().backward()
    return [hidden_ND.grad, *(weight.grad for weight in layer.parameters())]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kept", "cached"), [(10**6, 10**6), (10**6, 11), (22, 40), (1, 1)])
def test_values_and_gradients_are_those_of_the_plain_way(monkeypatch, kept, cached, bias, temperature) -> None:
    monkeypatch.setattr(head, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(head, "WIDE_ELEMENTS", {"cpu": cached})
    case = inputs(bias=bias)
    layer, hidden_ND, *_ = case
    log_probs_N, entropy_N = head_log_probs(layer, SUPPORT, *case[1:], temperature)
    expected, expected_entropy_N = plain(*case, temperature)
    torch.testing.assert_close(log_probs_N, expected)
    torch.testing.assert_close(entropy_N, expected_entropy_N)
    assert not entropy_N.requires_grad
    torch.testing.assert_close(gradients(layer, hidden_ND, log_probs_N), gradients(layer, hidden_ND, expected))


def test_by_hand() -> None:
    """Two ids, one of them the end: before min_tokens the other is certain, after it the odds are e to 1."""
    layer = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.0]]))
    support = Support(vocab_size=2, end_token_ids=(1,), min_tokens=1)
    hidden_ND = torch.ones(2, 1, requires_grad=True)
    log_probs_N, entropy_N = head_log_probs(
        layer, support, hidden_ND, torch.tensor([0, 1]), torch.tensor([0, 1]), temperature=1.0
    )
    p = 1 / (1 + math.e)
    assert log_probs_N.tolist() == pytest.approx([0.0, math.log(p)])
    assert entropy_N.tolist() == pytest.approx([0.0, -p * math.log(p) - (1 - p) * math.log(1 - p)], abs=1e-6)
    log_probs_N.sum().backward()
    # of the second token alone: (1[v = y] - p(v)) h
    assert layer.weight.grad is not None
    assert layer.weight.grad.flatten().tolist() == pytest.approx([-(1 - p), 1 - p])
    assert hidden_ND.grad is not None
    assert hidden_ND.grad.flatten().tolist() == pytest.approx([0.0, -(1 - p)])


def test_ids_that_are_out_get_no_gradient() -> None:
    layer, hidden_ND, tokens_N, index_N = inputs()
    tokens_N[:] = 0
    log_probs_N, _ = head_log_probs(layer, SUPPORT, hidden_ND, tokens_N, torch.zeros_like(index_N), 1.0)
    gradients(layer, hidden_ND, log_probs_N)
    out = [*SUPPORT.end_token_ids, *range(SUPPORT.vocab_size, V)]
    assert layer.weight.grad[out].abs().sum() == 0
    assert (layer.weight.grad[0] != 0).all()


def test_bfloat16_is_near_float64() -> None:
    exact = inputs()
    rough = exact[0].bfloat16(), exact[1].detach().bfloat16(), *exact[2:]
    log_probs_N, entropy_N = head_log_probs(rough[0], SUPPORT, *rough[1:], 1.0)
    assert log_probs_N.dtype == entropy_N.dtype == torch.float32
    exact[0].double()  # with the rounded weights
    expected, _ = plain(*exact, 1.0)
    assert (log_probs_N - expected).abs().max() < 0.05


def test_a_second_backward_pass_is_no_different() -> None:
    layer, hidden_ND, tokens_N, index_N = inputs()
    log_probs_N, _ = head_log_probs(layer, SUPPORT, hidden_ND, tokens_N, index_N, 0.7)
    passes = [torch.autograd.grad(log_probs_N.sum(), hidden_ND, retain_graph=True)[0] for _ in range(2)]
    torch.testing.assert_close(*passes)


def test_without_gradient_nothing_is_kept() -> None:
    layer, hidden_ND, tokens_N, index_N = inputs()
    with torch.no_grad():
        log_probs_N, _ = head_log_probs(layer, SUPPORT, hidden_ND, tokens_N, index_N, 1.0)
    assert not log_probs_N.requires_grad


def test_the_gradient_of_bfloat16_logits_is_never_made_wider() -> None:
    """No piece of memory that its backward pass asks for is as large as the logits in float32."""
    words, rows = 4096, 32
    layer = torch.nn.Linear(D, words, bias=False, dtype=torch.bfloat16)
    hidden_ND = torch.randn(rows, D, dtype=torch.bfloat16, requires_grad=True)
    tokens_N = torch.arange(rows)
    support = Support(vocab_size=words, end_token_ids=(1,), min_tokens=0)
    log_probs_N, _ = head_log_probs(layer, support, hidden_ND, tokens_N, torch.zeros_like(tokens_N), 1.0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        log_probs_N.sum().backward()
    sizes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert 0 < max(sizes) < rows * words * torch.float32.itemsize
