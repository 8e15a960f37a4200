"""Random streams and inversion of the distribution function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nsr.rollout.native import draw as module
from nsr.rollout.native.draw import draw_in_parts, uniforms

BOTH = pytest.mark.parametrize("draw", [module.draw, draw_in_parts])


def test_stream_repeats_and_depends_on_every_part_of_its_key(params) -> None:
    first = uniforms(params(), "3,4,5=12", 0)
    others = [
        uniforms(params(seed=8), "3,4,5=12", 0),
        uniforms(params(purpose="eval"), "3,4,5=12", 0),
        uniforms(params(step=1), "3,4,5=12", 0),
        uniforms(params(), "3,4,5=13", 0),
        uniforms(params(), "3,4,5=12", 1),
    ]
    assert np.array_equal(first, uniforms(params(), "3,4,5=12", 0))
    assert len({stream[0] for stream in [first, *others]}) == 6


def test_stream_of_a_longer_completion_continues_that_of_a_shorter_one(params) -> None:
    short, long = uniforms(params(max_tokens=8), "k", 3), uniforms(params(max_tokens=20), "k", 3)
    assert np.array_equal(short, long[:8])


def test_stream_is_the_same_on_every_machine(params) -> None:
    # Recorded: a change of this value changes every run ever recorded.
    assert uniforms(params(), "19,35,44=98", 0)[0] == 0.1865488665531192


def test_streams_are_uniform(params) -> None:
    numbers = np.concatenate([uniforms(params(max_tokens=50), "k", sample) for sample in range(200)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.01


@BOTH
def test_draw_inverts_the_distribution_function(draw) -> None:
    logits_V = torch.tensor([0.2, 0.3, 0.0, 0.5]).log()
    numbers = torch.tensor([0.0, 0.199, 0.201, 0.499, 0.501, 1 - 2**-52], dtype=torch.float64)
    tokens, log_probs, entropies = draw(logits_V.expand(6, -1), 1.0, numbers)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.2, 0.2, 0.3, 0.3, 0.5, 0.5]))
    expected = -sum(p * math.log(p) for p in (0.2, 0.3, 0.5))
    torch.testing.assert_close(entropies, torch.full((6,), expected))


@BOTH
def test_draw_divides_logits_by_the_temperature(draw) -> None:
    logits = torch.tensor([[math.log(4.0), 0.0]])  # 4 : 1, and at temperature 2 it is 2 : 1
    token, log_prob, _ = draw(logits, 2.0, torch.tensor([0.66], dtype=torch.float64))
    assert token.item() == 0
    assert math.isclose(log_prob.item(), math.log(2 / 3), rel_tol=1e-6)


@BOTH
def test_largest_uniform_never_falls_outside(draw) -> None:
    # The last tokens have probability 0; sums of many sizes, so that rounding of u * total has every chance.
    largest = torch.full((400,), 1 - 2**-52, dtype=torch.float64)
    logits = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    logits[:, 200:] = -math.inf
    tokens, log_probs, _ = draw(logits, 1.0, largest)
    assert tokens.max() < 200
    assert torch.isfinite(log_probs).all()


@BOTH
def test_a_first_token_of_probability_zero_is_never_drawn(draw) -> None:
    tokens, _, _ = draw(torch.tensor([[-math.inf, 0.0]]), 1.0, torch.zeros(1, dtype=torch.float64))
    assert tokens.item() == 1


@BOTH
def test_tokens_too_rare_for_float32_sums_are_drawn(draw) -> None:
    # Probability 2e-9 after a sum of nearly 1, where float32 has steps of 6e-8.
    numbers = torch.tensor([1 - 1e-9, 1 - 4e-9], dtype=torch.float64)
    tokens, _, _ = draw(torch.tensor([[0.0, -20.0]]).expand(2, -1), 1.0, numbers)
    assert tokens.tolist() == [1, 0]


@BOTH
def test_greedy_takes_the_most_probable_token_with_certainty(draw) -> None:
    tokens, log_probs, entropies = draw(torch.tensor([[0.0, 3.0, 2.0]]), 0.0, torch.zeros(1, dtype=torch.float64))
    assert (tokens.item(), log_probs.item(), entropies.item()) == (1, 0.0, 0.0)


@BOTH
def test_logits_that_are_not_finite_give_nan(draw) -> None:
    logits = torch.tensor([[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [0.0, 1.0, 2.0]])
    for temperature in (0.0, 1.0):
        _, log_probs, _ = draw(logits, temperature, torch.full((3,), 0.5, dtype=torch.float64))
        assert log_probs.isnan().tolist() == [True, True, False]


# Part by part


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("words", [1, 5, 255, 256, 257, 512, 3000])
def test_parts_draw_the_same_tokens(words: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(words)
    logits = 4 * torch.randn(300, words, generator=generator, dtype=torch.float64)
    logits[:, words // 2 : words - 1 : 3] = -math.inf
    numbers = torch.rand(300, generator=generator, dtype=torch.float64)
    numbers[0] = 0.0
    expected, found = (function(logits.clone(), temperature, numbers) for function in (module.draw, draw_in_parts))
    assert torch.equal(found[0], expected[0])
    for value, wanted in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    single = draw_in_parts(logits.float(), temperature, numbers)
    for value, wanted in zip(single[1:], module.draw(logits.float(), temperature, numbers)[1:], strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_part_by_part_at_the_edges_of_parts() -> None:
    # 600 equally probable words: number k/600 and a little is word k, whichever part it is in.
    words = torch.tensor([0, 255, 256, 511, 512, 599])
    for offset, expected in ((1e-9, words), (-1e-9, (words - 1).clamp(min=0))):
        numbers = ((words.double() + offset * 600) / 600).clamp(min=0)
        assert torch.equal(draw_in_parts(torch.zeros(6, 600), 1.0, numbers)[0], expected)


def test_a_part_of_words_that_are_out_is_passed_over() -> None:
    logits = torch.full((3, 1024), -math.inf)
    logits[:, [0, 1023]] = 0.0
    tokens, log_probs, entropies = draw_in_parts(logits, 1.0, torch.tensor([0.0, 0.4999, 0.5], dtype=torch.float64))
    assert tokens.tolist() == [0, 0, 1023]
    torch.testing.assert_close(log_probs, torch.full((3,), -math.log(2)))
    torch.testing.assert_close(entropies, torch.full((3,), math.log(2)))


def test_parts_follow_the_distribution() -> None:
    logits = torch.randn(1500, generator=torch.Generator().manual_seed(3))
    numbers = torch.rand(200_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    tokens = torch.cat([draw_in_parts(logits.expand(2000, -1), 1.0, part)[0] for part in numbers.split(2000)])
    counts = tokens.bincount(minlength=1500).double()
    expected = logits.double().softmax(dim=-1) * 200_000
    assert stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("piece", [1, 2**18])
def test_rows_draw_from_logits_they_have_in_common(temperature: float, piece: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "PIECE_ELEMENTS", piece)
    torch.manual_seed(3)
    logits = torch.randn(4, 300, dtype=torch.float64) * 3
    node_B = np.array([3, 0, 2, 0, 3, 3, 0])  # none of node 1
    uniforms = torch.rand(7, dtype=torch.float64)
    found = draw_in_parts(logits, temperature, uniforms, node_B)
    expected = module.draw(logits[torch.from_numpy(node_B)], temperature, uniforms)
    assert torch.equal(found[0], expected[0])
    for value, wanted in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(value, wanted)
