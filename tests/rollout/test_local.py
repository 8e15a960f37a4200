"""The local engine against fresh forward passes of the whole sequence, which have no cache and no batch."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, Request
from nsr.rollout.native import steps
from nsr.rollout.native.cache import SlotCache
from nsr.rollout.native.engine import LocalEngine

LENGTHS = (3, 9, 5, 9, 1, 12)
pytestmark = pytest.mark.usefixtures("in_blocks")


def fresh_log_probs(model, support: Support, request: Request, completion: Completion, temperature: float):
    """[T, V] log-probabilities over the support, as the trainer computes them: one pass over prompt and response."""
    length = len(completion.token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([request.prompt_ids + completion.token_ids])).logits[:, -length - 1 : -1]
    masked = support.mask_logits(logits.float(), torch.arange(length).unsqueeze(0))
    return torch.log_softmax(masked / temperature, dim=-1)[0]


def tokens_of(results: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in results]


@pytest.fixture
def engine(small_model, tokenizer):
    """Makes engines for a small model with ten padded ids."""

    def make(max_batch_size: int = 64, **kwargs) -> LocalEngine:
        model = small_model(len(tokenizer) + 10, **kwargs)
        return LocalEngine(model, tokenizer, Support.of(model, tokenizer, 4), max_batch_size=max_batch_size)

    return make


# Distribution


def outcome_probabilities(model, support: Support, prompt: tuple[int, ...], temperature: float) -> dict[tuple, float]:
    """Exact probability of every completion of at most two tokens."""

    def next_token(*response: int) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[:, -1].double()
        return torch.softmax(support.mask_(logits, len(response)) / temperature, dim=-1)[0].tolist()

    probabilities: dict[tuple, float] = {}
    for first, p_first in enumerate(next_token()):
        if first in support.end_token_ids:
            probabilities[first,] = p_first
        else:
            for second, p_second in enumerate(next_token(first)):
                probabilities[first, second] = p_first * p_second
    return {outcome: p for outcome, p in probabilities.items() if p > 0}


def chi_square(counts: Counter, probabilities: dict[tuple, float]) -> float:
    """p-value of the counts; outcomes expected fewer than 5 times are one cell."""
    total = sum(counts.values())
    common = [outcome for outcome, p in probabilities.items() if p * total >= 5]
    observed = [counts[outcome] for outcome in common]
    expected = [probabilities[outcome] * total for outcome in common]
    return float(stats.chisquare([*observed, total - sum(observed)], [*expected, total - sum(expected)]).pvalue)


def test_samples_follow_the_models_distribution(small_model, pieces_tokenizer, params) -> None:
    tokenizer = pieces_tokenizer(list("abcdefgh"))
    model = small_model(12)
    support = Support.of(model, tokenizer, 0)
    request = Request(key="k", prompt_ids=(2, 5, 3), num_samples=6000)
    engine = LocalEngine(model, tokenizer, support, max_batch_size=1024)
    [completions] = engine.generate([request], params(temperature=0.7, max_tokens=2, min_tokens=0))
    counts = Counter(completion.token_ids for completion in completions)

    right = outcome_probabilities(model, support, request.prompt_ids, 0.7)
    assert counts.keys() <= right.keys()
    assert math.isclose(sum(right.values()), 1)
    assert chi_square(counts, right) > 0.01
    assert chi_square(counts, outcome_probabilities(model, support, request.prompt_ids, 0.8)) < 1e-6


def test_samples_of_a_puzzle_are_independent(bigram_model, pieces_tokenizer, params) -> None:
    # Two equally probable tokens: in n fair pairs of neighbouring samples, n/2 agree.
    logits_VV = torch.zeros(4, 4)
    logits_VV[:, :2] = -100.0
    tokenizer = pieces_tokenizer(["a", "b"])
    model = bigram_model(logits_VV)
    engine = LocalEngine(model, tokenizer, Support.of(model, tokenizer, 4))
    requests = [Request(key=f"k{i}", prompt_ids=(2,), num_samples=8) for i in range(64)]
    drawn = np.array(tokens_of(engine.generate(requests, params(max_tokens=4))))
    for along in (drawn[:, 1:] == drawn[:, :-1], drawn[1:] == drawn[:-1], drawn[..., 1:] == drawn[..., :-1]):
        assert stats.binomtest(int(along.sum()), along.size).pvalue > 0.001


# Random streams


def test_repeats_with_the_same_key_and_differs_with_any_other(engine, requests_of, params) -> None:
    local_engine, requests = engine(), requests_of((5,), 3)
    drawn = [
        tokens_of(local_engine.generate(requests, params(**changes)))
        for changes in ({}, {}, {"seed": 8}, {"step": 1}, {"purpose": "eval"})
    ]
    assert drawn[0] == drawn[1]
    assert all(other != drawn[0] for other in drawn[2:])
    assert len(set(drawn[0][0])) == 3  # samples differ


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "sliding"])
def test_batch_mates_change_nothing(engine, requests_of, params, kind: str) -> None:
    requests, settings = requests_of(LENGTHS, 4), params()
    make = {size: engine(size, kind=kind, dtype=torch.float64) for size in (64, 1, 3, 7)}
    together = make[64].generate(requests, settings)
    lengths = {len(completion.token_ids) for group in together for completion in group}
    assert len(lengths) > 3  # rows end at different times

    assert tokens_of([make[64].generate([request], settings)[0] for request in requests]) == tokens_of(together)
    assert tokens_of(make[64].generate(requests[::-1], settings)[::-1]) == tokens_of(together)
    for size in (1, 3, 7):
        assert tokens_of(make[size].generate(requests, settings)) == tokens_of(together)
    fewer = [Request(key=r.key, prompt_ids=r.prompt_ids, num_samples=2) for r in requests[1:4]]
    assert tokens_of(make[3].generate(fewer, settings)) == [group[:2] for group in tokens_of(together)[1:4]]


@pytest.mark.parametrize("in_blocks", [False], indirect=True)  # where rows have columns of their own nothing moves
def test_moving_the_cache_changes_nothing(engine, requests_of, params, monkeypatch) -> None:
    requests = requests_of(LENGTHS, 4)
    roomy = engine(64, dtype=torch.float64).generate(requests, params())
    monkeypatch.setattr(steps, "SPARE_COLUMNS", 1)
    moves: list[int] = []
    make_room = SlotCache.make_room

    def counted(cache: SlotCache, *args: int) -> None:
        before = cache.window.cursor
        make_room(cache, *args)
        moves.append(before - cache.window.cursor)

    monkeypatch.setattr(SlotCache, "make_room", counted)
    cramped = engine(2, dtype=torch.float64).generate(requests, params())
    assert sum(move > 0 for move in moves) > 3
    assert tokens_of(cramped) == tokens_of(roomy)


# What is recorded


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "sliding"])
def test_log_probs_and_entropy_equal_a_fresh_forward_pass(
    engine, requests_of, params, kind: str, temperature: float
) -> None:
    local_engine, requests = engine(7, kind=kind), requests_of(LENGTHS, 3)
    for request, group in zip(requests, local_engine.generate(requests, params(temperature=temperature)), strict=True):
        for completion in group:
            expected = fresh_log_probs(local_engine.policy, local_engine.support, request, completion, temperature)
            tokens = torch.tensor(completion.token_ids).unsqueeze(-1)
            assert completion.log_probs_T.dtype == np.float32
            np.testing.assert_allclose(completion.log_probs_T, expected.gather(-1, tokens).squeeze(-1), atol=1e-4)
            entropies = torch.special.entr(expected.exp()).sum(dim=-1)
            assert math.isclose(completion.entropy, entropies.mean(), abs_tol=1e-4)


def test_bfloat16_log_probs_are_those_of_bfloat16_logits(engine, requests_of, params) -> None:
    local_engine, requests = engine(7, dtype=torch.bfloat16), requests_of(LENGTHS, 2)
    for request, group in zip(requests, local_engine.generate(requests, params()), strict=True):
        for completion in group:
            expected = fresh_log_probs(local_engine.policy, local_engine.support, request, completion, 1.0)
            tokens = torch.tensor(completion.token_ids).unsqueeze(-1)
            difference = completion.log_probs_T - expected.gather(-1, tokens).squeeze(-1).numpy()
            assert np.abs(difference).mean() < 0.1


def test_greedy_is_the_argmax_of_a_fresh_forward_pass(engine, requests_of, params) -> None:
    local_engine, requests = engine(3), requests_of(LENGTHS, 1)
    for request, [completion] in zip(requests, local_engine.generate(requests, params(temperature=0)), strict=True):
        expected = fresh_log_probs(local_engine.policy, local_engine.support, request, completion, 1.0)
        assert expected.argmax(dim=-1).tolist() == list(completion.token_ids)
        assert completion.entropy == 0
        assert not completion.log_probs_T.any()


def test_support_by_hand(bigram_model, pieces_tokenizer, params) -> None:
    # Ids: pad, end, a, b, c, and three of padding. Logits: end ln 12, padding 50, others 0. So the other four have
    # probability 1/4 each in the first four positions, and then the end token has 12/16 and they have 1/16.
    logits_VV = torch.zeros(8, 8)
    logits_VV[:, 1] = math.log(12)
    logits_VV[:, 5:] = 50.0
    tokenizer = pieces_tokenizer(["a", "b", "c"])
    model = bigram_model(logits_VV)
    engine = LocalEngine(model, tokenizer, Support.of(model, tokenizer, 4))
    [completions] = engine.generate([Request(key="k", prompt_ids=(2, 3), num_samples=300)], params())
    early, late = math.log(4), 0.75 * math.log(4 / 3) + 0.25 * math.log(16)
    for completion in completions:
        assert completion.finish_reason == "end"
        assert max(completion.token_ids) < 5
        assert completion.token_ids.index(1) == len(completion.token_ids) - 1 >= 4
        expected = [-math.log(4)] * 4 + [-math.log(16)] * (len(completion.token_ids) - 5) + [math.log(0.75)]
        np.testing.assert_allclose(completion.log_probs_T, expected, atol=1e-5)
        mean = (4 * early + (len(completion.token_ids) - 4) * late) / len(completion.token_ids)
        assert math.isclose(completion.entropy, mean, abs_tol=1e-5)
        assert len(completion.text.replace("<", "")) == sum(token > 1 for token in completion.token_ids)


# Endings


def say(script_model, pieces_tokenizer, params, pieces: list[str], **changes) -> tuple[list[str], Completion]:
    """What an engine samples from a model that says these pieces and then the end token; also as pieces."""
    tokenizer = pieces_tokenizer(["prompt", *pieces])
    model = script_model(len(tokenizer), [2, *range(3, 3 + len(pieces)), 1])
    engine = LocalEngine(model, tokenizer, Support.of(model, tokenizer, 4))
    [[completion]] = engine.generate([Request(key="k", prompt_ids=(2,), num_samples=1)], params(**changes))
    said = ["<end>" if token == 1 else pieces[token - 3] for token in completion.token_ids]
    return said, completion


@pytest.mark.parametrize(
    "pieces",
    [
        ["a", "b", "1+2", "</answer>"],
        ["a", "1+2", "<", "/", "ans", "wer", ">"],
        ["a", "b", "c", "1+2</ans", "wer>\n\n"],
        ["a", "b", "<", "1+2</ans", "wer></answer>x"],
    ],
)
def test_stop_string_ends_a_completion_and_its_text(script_model, pieces_tokenizer, params, pieces: list[str]) -> None:
    said, completion = say(script_model, pieces_tokenizer, params, [*pieces, "more", "even more"])
    assert said == pieces
    assert completion.finish_reason == "stop"
    assert completion.text == "".join(pieces).partition("</answer>")[0] + "</answer>"
    assert not completion.truncated


def test_end_token_is_a_sampled_token_but_no_text(script_model, pieces_tokenizer, params) -> None:
    said, completion = say(script_model, pieces_tokenizer, params, ["a", "b", "c", "d"])
    assert said == ["a", "b", "c", "d", "<end>"]
    assert (completion.finish_reason, completion.text) == ("end", "abcd")
    assert len(completion.log_probs_T) == 5


def test_stop_string_among_the_first_tokens_does_not_stop(script_model, pieces_tokenizer, params) -> None:
    said, completion = say(script_model, pieces_tokenizer, params, ["a", "b", "</answer>", "c", ">", "d"])
    assert said == ["a", "b", "</answer>", "c", ">", "d", "<end>"]
    assert (completion.finish_reason, completion.text) == ("end", "ab</answer>c>d")
    said, completion = say(script_model, pieces_tokenizer, params, ["a", "b", "</answer>", "c"], min_tokens=3)
    assert (said, completion.finish_reason) == (["a", "b", "</answer>"], "stop")


def test_max_tokens_cuts_off(script_model, pieces_tokenizer, params) -> None:
    said, completion = say(script_model, pieces_tokenizer, params, list("abcdefgh"), max_tokens=5)
    assert said == list("abcde")
    assert (completion.finish_reason, completion.text, completion.truncated) == ("length", "abcde", True)


@pytest.mark.parametrize(("pieces", "reason"), [(["a", "b", "c", "</answer>"], "stop"), (["a", "b", "c", "d"], "end")])
def test_an_ending_at_the_last_token_is_no_truncation(
    script_model, pieces_tokenizer, params, pieces: list[str], reason: str
) -> None:
    length = 4 if reason == "stop" else 5
    said, completion = say(script_model, pieces_tokenizer, params, pieces, max_tokens=length)
    assert (len(said), completion.finish_reason) == (length, reason)


# The policy


def test_samples_from_the_weights_as_they_are_now(engine, requests_of, params) -> None:
    local_engine, requests = engine(), requests_of(LENGTHS, 2)
    before = tokens_of(local_engine.generate(requests, params()))
    with torch.no_grad():
        local_engine.policy.model.layers[0].mlp.down_proj.weight.mul_(-1)
    local_engine.load_weights(local_engine.policy)
    after = tokens_of(local_engine.generate(requests, params()))
    other = engine()
    with torch.no_grad():
        other.policy.model.layers[0].mlp.down_proj.weight.mul_(-1)
    assert after != before
    assert after == tokens_of(other.generate(requests, params()))


def test_weights_of_another_object_are_refused(engine, small_model) -> None:
    with pytest.raises(AssertionError, match="shares"):
        engine().load_weights(small_model(20))


def test_policy_is_left_as_it_was(engine, requests_of, params) -> None:
    local_engine = engine()
    policy = local_engine.policy.train()  # with attention dropout, which must not act while sampling
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    requests = requests_of((4,), 2)
    [[completion, _]] = local_engine.generate(requests, params())
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    policy.eval()
    expected = fresh_log_probs(policy, local_engine.support, requests[0], completion, 1.0)
    tokens = torch.tensor(completion.token_ids).unsqueeze(-1)
    np.testing.assert_allclose(completion.log_probs_T, expected.gather(-1, tokens).squeeze(-1), atol=1e-4)
    policy(torch.tensor([[3, 4]])).logits.sum().backward()  # it learns as before


# Work


def test_each_prompt_is_computed_once_and_finished_rows_leave(engine, requests_of, params, monkeypatch) -> None:
    local_engine, requests = engine(4), requests_of(LENGTHS, 10)
    shapes: list[tuple[int, int]] = []
    forward = local_engine.policy.forward

    def counted(*, input_ids: torch.Tensor, **kwargs):
        shapes.append((input_ids.shape[0], input_ids.shape[1]) if "position_ids" in kwargs else (input_ids.shape[0], 0))
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(local_engine.policy, "forward", counted)
    results = local_engine.generate(requests, params())
    tokens = sum(len(completion.token_ids) for group in results for completion in group)
    computed = sum(rows * length for rows, length in shapes)
    assert sum(rows for rows, length in shapes if length == 0) == len(LENGTHS)
    assert computed >= tokens - 60  # the first token of each completion comes from its prompt
    assert computed < 1.1 * tokens


def test_no_requests_no_completions(engine, params) -> None:
    assert engine().generate([], params()) == []


# Errors


def test_a_response_beyond_the_context_is_refused(engine, requests_of, params) -> None:
    with pytest.raises(ValueError, match="max_tokens of at most 116"):
        engine().generate(requests_of((3, 12), 1), params(max_tokens=117))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(engine, requests_of, params, temperature: float) -> None:
    local_engine = engine()
    with torch.no_grad():
        local_engine.policy.lm_head.weight[5] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        local_engine.generate(requests_of((3,), 1), params(temperature=temperature))


def test_models_with_other_layers_are_refused(small_model, tokenizer) -> None:
    model = small_model(len(tokenizer))
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        LocalEngine(model, tokenizer, Support.of(model, tokenizer, 4))
