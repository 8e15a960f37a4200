"""Rows of a request with the same tokens so far are computed once: the bookkeeping by hand, and the work it saves."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, Request
from nsr.rollout.native import steps
from nsr.rollout.native.engine import LocalEngine
from nsr.rollout.native.prefix_groups import Nodes


def advance(nodes: Nodes, node_B: list[int], tokens_B: list[int]) -> tuple[list[int], dict[int, int]]:
    """Each row's node and which slots were copied to which."""
    step = nodes.advance(np.array(node_B, dtype=np.int64), np.array(tokens_B, dtype=np.int64))
    assert not set(step.sources) & set(step.targets)
    return step.node_B.tolist(), dict(zip(step.targets.tolist(), step.sources.tolist(), strict=True))


def test_rows_part_when_they_draw_different_tokens() -> None:
    nodes = Nodes(6)
    assert nodes.add(4, 5, prompt_length=3).tolist() == [0] * 5
    assert nodes.add(9, 1, prompt_length=8).tolist() == [1]
    assert nodes.cached_N.tolist() == [2, 7]
    # Tokens 20, 21 and 22 of the first node: the least stays, the others are copies beyond the second node.
    node_B, copied = advance(nodes, [0, 0, 0, 0, 0, 1], [21, 20, 22, 20, 21, 20])
    assert (node_B, copied) == ([2, 0, 3, 0, 2, 1], {2: 0, 3: 0})
    assert nodes.newest_N.tolist() == [20, 20, 21, 22]
    assert nodes.request_N.tolist() == [4, 9, 4, 4]
    assert nodes.cached_N.tolist() == [3, 8, 3, 3]
    assert nodes.length_N.tolist() == [1] * 4


def test_nodes_of_one_row_each_stay_where_they_are() -> None:
    nodes = Nodes(4)
    for request in range(3):
        nodes.add(request, 1, prompt_length=request + 1)
    assert advance(nodes, [2, 0, 1], [9, 8, 9]) == ([2, 0, 1], {})
    assert nodes.newest_N.tolist() == [8, 9, 9]
    assert nodes.cached_N.tolist() == [1, 2, 3]
    # As many rows as nodes, but one node has none: its slot is filled.
    assert advance(nodes, [2, 0, 2], [9, 8, 7]) == ([1, 0, 2], {1: 2})
    assert nodes.newest_N.tolist() == [8, 9, 7]


def test_the_slots_of_ended_nodes_are_filled() -> None:
    nodes = Nodes(6)
    for request in range(4):
        nodes.add(request, 2, prompt_length=request + 1)
    # Nodes 0 and 1 have ended; node 2 splits into their place, and node 3, now beyond the last, moves there too.
    node_B, copied = advance(nodes, [3, 2, 2, 3], [7, 6, 5, 7])
    assert (node_B, copied) == ([1, 0, 2, 1], {0: 2, 1: 3})
    assert nodes.newest_N.tolist() == [6, 7, 5]
    assert nodes.request_N.tolist() == [2, 3, 2]
    assert nodes.cached_N.tolist() == [3, 4, 3]
    assert advance(nodes, [], []) == ([], {})
    assert nodes.count == 0


def test_without_sharing_node_r_is_row_r() -> None:
    nodes = Nodes(5, share=False)
    assert [*nodes.add(0, 3, 1).tolist(), *nodes.add(1, 2, 1).tolist()] == [0, 1, 2, 3, 4]
    assert advance(nodes, [0, 1, 2, 3, 4], [7] * 5) == ([0, 1, 2, 3, 4], {})
    # Rows 0 and 2 have ended, and rows 3 and 4 taken their places: so do the nodes.
    assert advance(nodes, [3, 1, 4], [7] * 3) == ([0, 1, 2], {0: 3, 2: 4})


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes of each step of the model."""
    taken: list[int] = []
    decode = steps.ModelSteps.decode

    def counted(self: steps.ModelSteps, nodes: Nodes) -> torch.Tensor:
        taken.append(nodes.count)
        return decode(self, nodes)

    monkeypatch.setattr(steps.ModelSteps, "decode", counted)
    return taken


@pytest.fixture
def engine(small_model, tokenizer, params, fed: list[int]):
    def make(max_batch_size: int = 64, *, exact: bool = False, kind: str = "qwen3") -> LocalEngine:
        model = small_model(len(tokenizer) + 10, kind=kind, dtype=torch.float64)
        support = Support.of(model, tokenizer, 4)
        made = LocalEngine(model, tokenizer, support, max_batch_size=max_batch_size, exact=exact)
        made.generate([Request(key="", prompt_ids=(3,), num_samples=1)], params(max_tokens=4))  # compares its decoder
        fed.clear()
        return made

    return make


def tokens_of(results: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in results]


def beginnings(group: list[Completion]) -> set[tuple[int, ...]]:
    """What is fed to draw the tokens after the first: every beginning but the prompt, without whole completions."""
    return {c.token_ids[:n] for c in group for n in range(1, len(c.token_ids))}


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_each_beginning_is_computed_once(engine, requests_of, params, fed: list[int], kind: str) -> None:
    # Cold enough for many equal beginnings, and for equal completions, which end at once.
    settings, requests = params(temperature=0.25, max_tokens=8), requests_of((3, 9), 24)
    found = engine(kind=kind).generate(requests, settings)
    assert sum(fed) == sum(len(beginnings(group)) for group in found)
    rows = sum(len(completion.token_ids) - 1 for group in found for completion in group)
    assert sum(fed) < 0.8 * rows
    assert any(len(set(group)) < len(group) for group in tokens_of(found))
    exact = engine(exact=True, kind=kind).generate(requests, settings)
    assert sum(fed) == rows
    assert tokens_of(found) == tokens_of(exact)
    for a, b in zip(chain(*found), chain(*exact), strict=True):
        np.testing.assert_allclose(a.log_probs_T, b.log_probs_T, atol=1e-5)
        assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
        assert a.entropy == pytest.approx(b.entropy, abs=1e-5)


def test_greedy_samples_are_one_row(engine, requests_of, params, fed: list[int]) -> None:
    [group] = engine().generate(requests_of((5,), 9), params(temperature=0))
    assert set(fed) == {1}
    assert len(fed) == len(group[0].token_ids) - 1
    assert len(set(tokens_of([group])[0])) == 1


@pytest.mark.parametrize("shared_tokens", [1, 1000])
@pytest.mark.parametrize("stop", ["a", ""])
@pytest.mark.parametrize("slots", [5, 11])
def test_waiting_rows_enter_and_rows_stop(
    engine, requests_of, params, monkeypatch: pytest.MonkeyPatch, shared_tokens: int, stop: str, slots: int
) -> None:
    monkeypatch.setattr(steps, "SHARED_TOKENS", shared_tokens)
    settings, requests = params(temperature=0.5, stop=stop, max_tokens=12), requests_of((3, 9, 1), 14)
    exact = engine(slots, exact=True).generate(requests, settings)
    found = engine(slots).generate(requests, settings)
    assert tokens_of(found) == tokens_of(exact)
    reasons = {completion.finish_reason for group in found for completion in group}
    assert reasons >= ({"stop", "length"} if stop else {"length"})


def test_requests_with_the_same_prompt_are_drawn_by_themselves(engine, params) -> None:
    requests = [Request(key=key, prompt_ids=(4, 9, 7), num_samples=6) for key in "abc"]
    found = engine().generate(requests, params(temperature=0.7))
    assert len({str(group) for group in tokens_of(found)}) == 3
    assert tokens_of(found) == [
        tokens_of(engine(exact=True).generate([r], params(temperature=0.7)))[0] for r in requests
    ]
