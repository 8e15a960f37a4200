"""The local engine on a GPU: blocks of tokens and CUDA graphs against the plain path, here and on the CPU."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from nsr.models.registry import LoadedPolicy, load_policy, prompt_encoder
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, Request, SamplingParams
from nsr.rollout.native import blocks, graphs
from nsr.rollout.native import engine as local
from nsr.rollout.native.engine import LocalEngine
from nsr.rollout.native.graphs import Recorded, Recorder
from nsr.tasks.countdown.puzzle import generate

pytestmark = pytest.mark.cuda
MAX_TOKENS = 48
RECORDERS: list[Recorder] = []
"""Those that failed: their graphs must not go while the process lives."""
DRAWN = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=3, purpose="train")
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1}


@pytest.fixture(scope="module")
def tiny() -> LoadedPolicy:
    return load_policy("tiny", device="cpu", dtype=torch.float32)


def engine_of(
    tiny: LoadedPolicy, device: str, dtype: torch.dtype, *, exact: bool = False, rows: int = 64
) -> LocalEngine:
    model = copy.deepcopy(tiny.model).to(device=device, dtype=dtype)
    support = Support.of(model, tiny.tokenizer, 4)
    return LocalEngine(model, tiny.tokenizer, support, max_batch_size=rows, exact=exact)


def requests_of(tiny: LoadedPolicy, puzzles: int, samples: int) -> list[Request]:
    encode = prompt_encoder(tiny.tokenizer, MAX_TOKENS)
    return [Request(key=puzzle.key, prompt_ids=encode(puzzle), num_samples=samples) for puzzle in generate(puzzles)]


def all_of(results: list[list[Completion]]) -> list[Completion]:
    return list(itertools.chain(*results))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What was sampled with, each with its graphs."""
    made: list[Recorded] = []
    start = Recorded.__init__

    def kept(self: Recorded, state: Sequence[torch.Tensor], recorder: Recorder | None) -> None:
        start(self, state, recorder)
        made.append(self)

    monkeypatch.setattr(Recorded, "__init__", kept)
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_same_samples_in_float64(tiny: LoadedPolicy, replays: list[Recorded], temperature: float, caplog) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=MAX_TOKENS, seed=3, purpose="train")
    requests = requests_of(tiny, 12, 16)
    with caplog.at_level(logging.WARNING):
        there = all_of(engine_of(tiny, "cuda", torch.float64).generate(requests, params))
    assert not caplog.records
    (recorded,) = replays
    assert recorded._graphs
    plain = all_of(engine_of(tiny, "cuda", torch.float64, exact=True).generate(requests, params))
    here = all_of(engine_of(tiny, "cpu", torch.float64, exact=True).generate(requests, params))
    for one, on_cuda, on_cpu in zip(there, plain, here, strict=True):
        assert one.token_ids == on_cuda.token_ids == on_cpu.token_ids
        assert one.finish_reason == on_cuda.finish_reason
        np.testing.assert_allclose(one.log_probs_T, on_cpu.log_probs_T, atol=ROUNDING[torch.float64])
        assert one.entropy == pytest.approx(on_cpu.entropy, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_are_the_models(tiny: LoadedPolicy, dtype: torch.dtype) -> None:
    engine, requests = engine_of(tiny, "cuda", dtype), requests_of(tiny, 4, 4)
    for request, group in zip(requests, engine.generate(requests, DRAWN), strict=True):
        for completion in group:
            length = len(completion.token_ids)
            with torch.no_grad():
                ids = torch.tensor([request.prompt_ids + completion.token_ids], device="cuda")
                logits = engine.policy(ids).logits[:, -length - 1 : -1].float()
            masked = engine.support.mask_logits(logits, torch.arange(length, device="cuda").unsqueeze(0))
            tokens = torch.tensor(completion.token_ids, device="cuda").unsqueeze(-1)
            expected = masked.log_softmax(dim=-1)[0].gather(-1, tokens).squeeze(-1).cpu().numpy()
            np.testing.assert_allclose(completion.log_probs_T, expected, atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_repeats_bit_for_bit(tiny: LoadedPolicy, dtype: torch.dtype) -> None:
    requests = requests_of(tiny, 12, 16)
    first, second = (all_of(engine_of(tiny, "cuda", dtype).generate(requests, DRAWN)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.token_ids == b.token_ids
        assert np.array_equal(a.log_probs_T, b.log_probs_T)
        assert a.entropy == b.entropy


def test_graphs_change_no_bit(tiny: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, replays: list[Recorded]) -> None:
    requests = requests_of(tiny, 6, 16)
    recorded = all_of(engine_of(tiny, "cuda", torch.bfloat16).generate(requests, DRAWN))
    assert replays[0]._graphs
    monkeypatch.setattr(Recorded, "__call__", lambda _, function, *shape: function(*shape))
    called = all_of(engine_of(tiny, "cuda", torch.bfloat16).generate(requests, DRAWN))
    for a, b in zip(recorded, called, strict=True):
        assert a.token_ids == b.token_ids
        assert np.array_equal(a.log_probs_T, b.log_probs_T)


def test_changed_weights_are_sampled_from(tiny: LoadedPolicy) -> None:
    requests, engine = requests_of(tiny, 4, 4), engine_of(tiny, "cuda", torch.float64)
    before = all_of(engine.generate(requests, DRAWN))
    with torch.no_grad():
        for weight in engine.policy.parameters():
            weight.mul_(0.9)
    after = all_of(engine.generate(requests, DRAWN))
    fresh = engine_of(tiny, "cuda", torch.float64, exact=True)
    fresh.policy.load_state_dict(engine.policy.state_dict())
    expected = all_of(fresh.generate(requests, DRAWN))
    assert [one.token_ids for one in after] == [one.token_ids for one in expected]
    assert [one.token_ids for one in after] != [one.token_ids for one in before]


def test_nothing_is_kept_between_calls(tiny: LoadedPolicy) -> None:
    engine, requests = engine_of(tiny, "cuda", torch.bfloat16), requests_of(tiny, 12, 16)
    for _ in range(2):
        engine.generate(requests, DRAWN)
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        engine.generate(requests, DRAWN)
    assert torch.cuda.memory_allocated() <= allocated + 2**20
    assert torch.cuda.memory_reserved() <= reserved + 2**22, "graphs find the memory of the last call's"
    assert graphs.recorder_of(engine.policy.device).works


@pytest.mark.parametrize("fault", ["raises", "computes something else"])
def test_steps_that_cannot_be_recorded_are_taken_as_they_are(
    tiny: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, caplog, fault: str
) -> None:
    requests = requests_of(tiny, 4, 4)
    expected = all_of(engine_of(tiny, "cuda", torch.bfloat16).generate(requests, DRAWN))
    recorder = Recorder(torch.device("cuda", 0))
    RECORDERS.append(recorder)
    monkeypatch.setattr(blocks, "recorder_of", lambda _: recorder)  # its failure is not the process's
    step = blocks.Blocks._step

    def faulty(self: blocks.Blocks, width: int, columns: int) -> None:
        step(self, width, columns)
        if torch.cuda.is_current_stream_capturing():
            if fault == "raises":
                torch.cuda.synchronize()  # which a recording does not allow
            self._newest_B.add_(1)
            rows = torch.arange(width, device="cuda")
            for keys, _ in self._attention.layers:
                keys[rows, :, self._cached_B[:width] - 1] = 7.0

    monkeypatch.setattr(blocks.Blocks, "_step", faulty)
    with caplog.at_level(logging.WARNING, logger=graphs.__name__):
        found = all_of(engine_of(tiny, "cuda", torch.bfloat16).generate(requests, DRAWN))
    (record,) = caplog.records
    assert "without CUDA graphs" in record.getMessage()
    assert ("something else" in record.getMessage()) == (fault == "computes something else")
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_token_by_token_on_a_gpu_too(tiny: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(tiny, 4, 8)
    expected = all_of(engine_of(tiny, "cuda", torch.float64).generate(requests, DRAWN))
    monkeypatch.setattr(local, "IN_BLOCKS", ())
    found = all_of(engine_of(tiny, "cuda", torch.float64).generate(requests, DRAWN))
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
