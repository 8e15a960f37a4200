"""The local engine's fast paths against the plain one, and weights that change under it."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from torch import nn

from nsr.models.fast.decode_model import LeanDecoder
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, Request
from nsr.rollout.native import blocks, steps
from nsr.rollout.native import engine as local
from nsr.rollout.native.engine import LocalEngine

LENGTHS = (3, 9, 5, 9, 1, 12)


def tokens_of(results: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in results]


@pytest.fixture
def engine(small_model, tokenizer):
    def make(max_batch_size: int = 7, *, exact: bool = False, **kwargs) -> LocalEngine:
        model = small_model(len(tokenizer) + 10, **kwargs)
        support = Support.of(model, tokenizer, 4)
        return LocalEngine(model, tokenizer, support, max_batch_size=max_batch_size, exact=exact)

    return make


@pytest.fixture(params=["prompts shared", "prompts apart", "in blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prompts are shared, or are not, whatever their length; or rows are drawn in blocks, as on a GPU."""
    monkeypatch.setattr(steps, "SHARED_TOKENS", 1 if request.param == "prompts shared" else 1000)
    monkeypatch.setattr(local, "IN_BLOCKS", ("cpu",) if request.param == "in blocks" else ())
    return request.param


@pytest.fixture
def lean_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step that the lean decoder took."""
    taken: list[int] = []
    step = LeanDecoder.step

    def counted(decoder: LeanDecoder, tokens_B: torch.Tensor, *args) -> torch.Tensor:
        taken.append(len(tokens_B))
        return step(decoder, tokens_B, *args)

    monkeypatch.setattr(LeanDecoder, "step", counted)
    return taken


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[int]:
    """A one for each call of a method from here on."""
    calls: list[int] = []
    method = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: calls.append(1) or method(*args))
    return calls


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2"])
def test_the_same_samples_in_float64(
    engine, requests_of, params, kind: str, temperature: float, way: str, lean_steps: list[int]
) -> None:
    requests, settings = requests_of(LENGTHS, 5), params(temperature=temperature, max_tokens=40)
    plain = engine(exact=True, kind=kind, dtype=torch.float64).generate(requests, settings)
    assert not lean_steps
    lean = engine(kind=kind, dtype=torch.float64).generate(requests, settings)
    assert len(lean_steps) > 40
    assert tokens_of(lean) == tokens_of(plain)
    if temperature:  # rows end at different times
        assert len({len(completion.token_ids) for group in plain for completion in group}) > 3
    for a, b in zip(itertools.chain(*lean), itertools.chain(*plain), strict=True):
        assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
        np.testing.assert_allclose(a.log_probs_T, b.log_probs_T, atol=1e-5)
        assert a.entropy == pytest.approx(b.entropy, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batch_mates_change_nothing(engine, requests_of, params, size: int, way: str) -> None:
    requests, settings = requests_of(LENGTHS, 5), params()
    expected = tokens_of(engine(7, dtype=torch.float64).generate(requests, settings))
    assert tokens_of(engine(size, dtype=torch.float64).generate(requests, settings)) == expected


def test_the_cache_moves(engine, requests_of, params, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(LENGTHS, 5)
    roomy = engine(64, dtype=torch.float64).generate(requests, params())
    monkeypatch.setattr(steps, "SPARE_COLUMNS", 1)
    assert tokens_of(engine(2, dtype=torch.float64).generate(requests, params())) == tokens_of(roomy)


def test_log_probs_in_float32(engine, requests_of, params, way: str, lean_steps: list[int]) -> None:
    local_engine, requests = engine(), requests_of(LENGTHS, 3)
    for request, group in zip(requests, local_engine.generate(requests, params()), strict=True):
        for completion in group:
            length = len(completion.token_ids)
            with torch.no_grad():
                ids = torch.tensor([request.prompt_ids + completion.token_ids])
                logits = local_engine.policy(ids).logits[:, -length - 1 : -1]
            masked = local_engine.support.mask_logits(logits, torch.arange(length).unsqueeze(0))
            tokens = torch.tensor(completion.token_ids).unsqueeze(-1)
            expected = masked.log_softmax(dim=-1)[0].gather(-1, tokens).squeeze(-1)
            np.testing.assert_allclose(completion.log_probs_T, expected, atol=1e-4)
    assert lean_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_repeats_bit_for_bit(engine, requests_of, params, dtype: torch.dtype, way: str) -> None:
    requests = requests_of(LENGTHS, 4)
    first, second = (engine(dtype=dtype).generate(requests, params()) for _ in range(2))
    for a, b in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert a.token_ids == b.token_ids
        assert np.array_equal(a.log_probs_T, b.log_probs_T)
        assert a.entropy == b.entropy


def test_blocks_of_any_length_draw_the_same(engine, requests_of, params, monkeypatch) -> None:
    requests, settings = requests_of(LENGTHS, 5), params(max_tokens=40)
    expected = tokens_of(engine(dtype=torch.float64).generate(requests, settings))
    monkeypatch.setattr(local, "IN_BLOCKS", ("cpu",))
    for block, columns in ((1, 64), (3, 8), (7, 1), (64, 16)):
        monkeypatch.setattr(blocks, "BLOCK", block)
        monkeypatch.setattr(blocks, "COLUMNS", columns)
        assert tokens_of(engine(dtype=torch.float64).generate(requests, settings)) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_responses_of_one_token(engine, requests_of, params, way: str, dtype: torch.dtype) -> None:
    requests, settings = requests_of((1, 5), 3), params(min_tokens=0, max_tokens=1)
    drawn = engine(2, dtype=dtype).generate(requests, settings)
    assert all(len(tokens) == 1 for group in tokens_of(drawn) for tokens in group)
    if dtype == torch.float64:
        plain = engine(2, dtype=dtype, exact=True).generate(requests, settings)
        assert tokens_of(drawn) == tokens_of(plain)


def test_in_blocks_rows_are_looked_at_once_a_block(engine, requests_of, params, monkeypatch) -> None:
    monkeypatch.setattr(local, "IN_BLOCKS", ("cpu",))
    looks, steps_taken = count_calls(monkeypatch, blocks.Blocks, "run"), count_calls(monkeypatch, LeanDecoder, "step")
    engine(64).generate(requests_of((3, 9), 4), params(min_tokens=24, max_tokens=24, stop=""))
    assert len(looks) == 24 // blocks.BLOCK
    assert len(steps_taken) == 24 + 3  # three of the comparison with the model's own forward


def test_short_prompts_and_few_samples_are_not_shared(engine, requests_of, params, monkeypatch) -> None:
    monkeypatch.setattr(steps, "SHARED_TOKENS", 10)
    made: list[int] = []
    shared_prompts = steps.SharedPrompts
    monkeypatch.setattr(steps, "SharedPrompts", lambda *args: made.append(1) or shared_prompts(*args))
    local_engine = engine()
    local_engine.generate(requests_of((3, 9), 4), params(max_tokens=4))
    local_engine.generate(requests_of((3, 12), 2), params(max_tokens=4))
    assert not made
    local_engine.generate(requests_of((3, 12), 3), params(max_tokens=4))
    assert made


# Weights that change


def assign_data(weight: nn.Parameter) -> None:
    weight.data = -weight.data


def write_through_data(weight: nn.Parameter) -> None:
    weight.data.neg_()


def copy(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.copy_(-weight)


def step_of_an_optimizer(weight: nn.Parameter) -> None:
    weight.grad = weight.detach().clone()
    torch.optim.SGD([weight], lr=2.0).step()
    weight.grad = None


def write_through_numpy(weight: nn.Parameter) -> None:
    array = weight.detach().numpy()
    array *= -1


def assign_and_assign_back(weight: nn.Parameter) -> None:
    # A new tensor may come to lie where the first one was.
    for _ in range(3):
        weight.data = weight.data.clone().neg_()


CHANGES = (
    assign_data, write_through_data, copy, step_of_an_optimizer, write_through_numpy, assign_and_assign_back,
)  # fmt: skip
PARTS = (
    "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_sampled_from_without_being_told(engine, requests_of, params, change) -> None:
    requests = requests_of((3, 5), 2)
    local_engine, other = engine(), engine(exact=True)
    before = local_engine.generate(requests, params())
    for part in PARTS:
        change(local_engine.policy.get_parameter(part))
        other.policy.load_state_dict(local_engine.policy.state_dict())
        after, expected = (made.generate(requests, params()) for made in (local_engine, other))
        assert tokens_of(after) == tokens_of(expected) != tokens_of(before)
        for a, b in zip(itertools.chain(*after), itertools.chain(*expected), strict=True):
            np.testing.assert_allclose(a.log_probs_T, b.log_probs_T, atol=1e-4)
        before = after


def test_weights_that_are_loaded_or_replaced_are_sampled_from(engine, small_model, requests_of, params) -> None:
    requests, local_engine = requests_of((3, 5), 2), engine()
    before = tokens_of(local_engine.generate(requests, params()))
    state = {name: value.roll(1, dims=0) for name, value in local_engine.policy.state_dict().items()}
    local_engine.policy.load_state_dict(state)
    loaded = tokens_of(local_engine.generate(requests, params()))
    replaced = local_engine.policy.model.layers[0].mlp
    replaced.gate_proj.weight = nn.Parameter(-replaced.gate_proj.weight.detach())
    last = tokens_of(local_engine.generate(requests, params()))
    assert len({str(drawn) for drawn in (before, loaded, last)}) == 3
    other = engine(exact=True)
    other.policy.load_state_dict(local_engine.policy.state_dict())
    assert tokens_of(other.generate(requests, params())) == last


# Falling back


def test_another_architecture_takes_the_plain_path_and_says_so_once(
    engine, requests_of, params, lean_steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    local_engine, requests = engine(kind="gpt2"), requests_of((3,), 2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            local_engine.generate(requests, params())
    assert not lean_steps
    [record] = caplog.records
    assert "slower forward: GPT2LMHeadModel is not" in record.getMessage()


def test_a_hook_that_comes_later_is_heard(engine, requests_of, params, lean_steps: list[int]) -> None:
    local_engine, requests = engine(), requests_of((3, 5), 2)
    before = local_engine.generate(requests, params())
    assert lean_steps
    lean_steps.clear()
    local_engine.policy.model.layers[1].mlp.register_forward_hook(lambda _module, _inputs, output: -output)
    assert tokens_of(local_engine.generate(requests, params())) != tokens_of(before)
    assert not lean_steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_decoder_that_computes_something_else_is_not_used(
    engine, requests_of, params, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    local_engine, requests = engine(dtype=dtype), requests_of((3, 5), 2)
    expected = engine(exact=True, dtype=dtype).generate(requests, params())
    step = LeanDecoder.step
    # As if a `transformers` to come began positions at 1: rotations are relative, so one of them is left out.
    monkeypatch.setattr(LeanDecoder, "step", lambda decoder, t, p, attend: step(decoder, t, p // 2, attend))
    with caplog.at_level(logging.WARNING):
        found = [local_engine.generate(requests, params()) for _ in range(2)]
    if dtype != torch.bfloat16:
        assert tokens_of(found[0]) == tokens_of(found[1]) == tokens_of(expected)
    [record] = caplog.records
    assert "its logits differ by" in record.getMessage()


def test_a_decoder_is_compared_once(engine, requests_of, params, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[float] = []
    deviation = local.deviation
    monkeypatch.setattr(
        local, "deviation", lambda *args, **how: compared.append(deviation(*args, **how)) or compared[-1]
    )
    local_engine = engine()
    for _ in range(3):
        local_engine.generate(requests_of((3,), 1), params())
    assert len(compared) == 1
    assert compared[0] < 1e-5


def test_attention_that_is_wrong_on_a_device_is_found(engine, requests_of, params, monkeypatch, caplog) -> None:
    monkeypatch.setattr(local, "IN_BLOCKS", ("cpu",))
    begin = blocks.ColumnAttention.begin
    monkeypatch.setattr(
        blocks.ColumnAttention,
        "begin",
        lambda self, cached_B, columns: begin(self, (cached_B - 1).clamp(min=0), columns),
    )
    local_engine = engine()
    with caplog.at_level(logging.WARNING):
        found = local_engine.generate(requests_of(LENGTHS, 2), params())
    assert "slower forward: its logits differ" in caplog.text
    monkeypatch.undo()
    assert tokens_of(found) == tokens_of(engine().generate(requests_of(LENGTHS, 2), params()))


def test_requests_of_one_sample_in_a_large_batch(engine, requests_of, params, way: str) -> None:
    requests = [Request(key=str(n), prompt_ids=(3, 4, 5 + n), num_samples=1) for n in range(20)]
    expected = engine(exact=True, dtype=torch.float64).generate(requests, params())
    assert tokens_of(engine(16, dtype=torch.float64).generate(requests, params())) == tokens_of(expected)
