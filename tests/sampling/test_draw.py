"""Random streams and inversion of the distribution function."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from nsr.sampling.draw import draw, uniforms


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


def test_draw_inverts_the_distribution_function() -> None:
    logits_V = torch.tensor([0.2, 0.3, 0.0, 0.5]).log()
    numbers = torch.tensor([0.0, 0.199, 0.201, 0.499, 0.501, 1 - 2**-52], dtype=torch.float64)
    tokens, log_probs, entropies = draw(logits_V.expand(6, -1), 1.0, numbers)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.2, 0.2, 0.3, 0.3, 0.5, 0.5]))
    expected = -sum(p * math.log(p) for p in (0.2, 0.3, 0.5))
    torch.testing.assert_close(entropies, torch.full((6,), expected))


def test_draw_divides_logits_by_the_temperature() -> None:
    logits = torch.tensor([[math.log(4.0), 0.0]])  # 4 : 1, and at temperature 2 it is 2 : 1
    token, log_prob, _ = draw(logits, 2.0, torch.tensor([0.66], dtype=torch.float64))
    assert token.item() == 0
    assert math.isclose(log_prob.item(), math.log(2 / 3), rel_tol=1e-6)


def test_largest_uniform_never_falls_outside() -> None:
    # The last tokens have probability 0; sums of many sizes, so that rounding of u * total has every chance.
    largest = torch.full((400,), 1 - 2**-52, dtype=torch.float64)
    logits = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    logits[:, 200:] = -math.inf
    tokens, log_probs, _ = draw(logits, 1.0, largest)
    assert tokens.max() < 200
    assert torch.isfinite(log_probs).all()


def test_a_first_token_of_probability_zero_is_never_drawn() -> None:
    tokens, _, _ = draw(torch.tensor([[-math.inf, 0.0]]), 1.0, torch.zeros(1, dtype=torch.float64))
    assert tokens.item() == 1


def test_tokens_too_rare_for_float32_sums_are_drawn() -> None:
    # Probability 2e-9 after a sum of nearly 1, where float32 has steps of 6e-8.
    numbers = torch.tensor([1 - 1e-9, 1 - 4e-9], dtype=torch.float64)
    tokens, _, _ = draw(torch.tensor([[0.0, -20.0]]).expand(2, -1), 1.0, numbers)
    assert tokens.tolist() == [1, 0]


def test_greedy_takes_the_most_probable_token_with_certainty() -> None:
    tokens, log_probs, entropies = draw(torch.tensor([[0.0, 3.0, 2.0]]), 0.0, torch.zeros(1, dtype=torch.float64))
    assert (tokens.item(), log_probs.item(), entropies.item()) == (1, 0.0, 0.0)


def test_logits_that_are_not_finite_give_nan() -> None:
    logits = torch.tensor([[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [0.0, 1.0, 2.0]])
    for temperature in (0.0, 1.0):
        _, log_probs, _ = draw(logits, temperature, torch.full((3,), 0.5, dtype=torch.float64))
        assert log_probs.isnan().tolist() == [True, True, False]
