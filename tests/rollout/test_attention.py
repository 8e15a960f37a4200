"""Attention in two parts against attention to everything at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nsr.rollout.native.attention import RowAttention, SharedPrompts, additive, attend, merge
from nsr.rollout.native.cache import SlotCache

SCALE = 0.3


def plain(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One row: queries [K, Q, D], keys and values [K, T, D] -> [K, Q, D], in float64."""
    scores = torch.einsum("kqd,ktd->kqt", queries.double(), keys.double()) * SCALE
    return torch.einsum("kqt,ktd->kqd", scores.softmax(dim=-1), values.double())


def tensors(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_masked_attention_and_its_sums(dtype: torch.dtype, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = (tensors(2, 3, n, 8, dtype=dtype, seed=n) for n in (2, 7, 7))
    allowed = torch.ones(2, 7, dtype=torch.bool)
    allowed[1, :4] = False
    if elsewhere:  # as on a device without this kernel
        monkeypatch.setattr("nsr.rollout.native.attention.FUSED", ())
    output, sums = attend(queries, keys, values, additive(allowed, dtype), SCALE)
    assert output.dtype == dtype
    tolerance = 1e-6 if dtype.itemsize > 2 else 0.02
    for row in range(2):
        seen = allowed[row]
        expected = plain(queries[row], keys[row][:, seen], values[row][:, seen])
        torch.testing.assert_close(output[row].double(), expected, rtol=0, atol=tolerance)
        scores = torch.einsum("kqd,ktd->kqt", queries[row].double(), keys[row][:, seen].double()) * SCALE
        torch.testing.assert_close(sums[row].double(), scores.logsumexp(dim=-1), rtol=0, atol=tolerance)


def test_merging_by_hand() -> None:
    # Sums e^0 = 1 and e^ln 3 = 3: a quarter of the first and three quarters of the second.
    first = torch.tensor([[[[8.0, 0.0]]]]), torch.tensor([[[0.0]]])
    second = torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[math.log(3.0)]]])
    torch.testing.assert_close(merge(first, second), torch.tensor([[[[2.0, 3.0]]]]))


def random_prompt(length: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two layers of 2 heads of width 4."""
    return [(tensors(2, length, 4, seed=10 * seed + n), tensors(2, length, 4, seed=10 * seed + n + 5)) for n in (0, 1)]


def test_rows_attend_to_their_prompt_and_their_own_columns_while_others_come_and_go() -> None:
    prompts = {request: random_prompt(length, request) for request, length in enumerate((3, 6, 1))}
    cache = SlotCache(prompts[0], slots=8, columns=12, cursor=0)
    shared = SharedPrompts(prompts[0], places=2, columns=6)
    attention = RowAttention(cache, SCALE, shared)
    own: list[list[list[tuple[torch.Tensor, torch.Tensor]]]] = [[[], []] for _ in range(8)]
    seed = 1000

    def step(requests: list[int], width: int) -> None:
        nonlocal seed
        shared.arrange(np.array(requests), width)
        lengths = [len(row[0]) for row in own[: len(requests)]]
        attention.begin(torch.tensor(lengths + [0] * (width - len(requests))))
        for layer in (0, 1):
            seed += 10
            queries, keys, values = tensors(width, 2, 3, 4, seed=seed), tensors(width, 2, 4, seed=seed + 1), None
            values = tensors(width, 2, 4, seed=seed + 2)
            output = attention(layer, queries, keys, values).unflatten(-1, (2, 3, 4))
            for row, request in enumerate(requests):
                own[row][layer].append((keys[row], values[row]))
                parts = [torch.stack(part, dim=1) for part in zip(*own[row][layer], strict=True)]
                both = [torch.cat([a, b], dim=1) for a, b in zip(prompts[request][layer], parts, strict=True)]
                torch.testing.assert_close(output[row], plain(queries[row], *both), rtol=0, atol=1e-9)
        cache.window.cursor += 1

    shared.place(0, prompts[0])
    shared.place(1, prompts[1])
    shared.place(1, prompts[1])  # a second time changes nothing
    for _ in range(2):
        step([0, 1, 1, 0, 1], 8)
    # Rows 0 and 3 end, and with them the first prompt; the last row takes a place, and a third prompt the first's.
    cache.move(torch.tensor([4]), torch.tensor([0]))
    own[0], own[3], own[4] = own[4], [[], []], [[], []]
    shared.release(np.array([1, 1, 1]))
    shared.place(2, prompts[2])
    step([1, 1, 1, 2], 4)
    step([1, 1, 1, 2], 8)
    # Only the third prompt's row is left.
    cache.move(torch.tensor([3]), torch.tensor([0]))
    own[0] = own[3]
    step([2], 1)
    assert len(own[0][0]) == 3


def test_in_bfloat16_two_parts_are_rounded_once() -> None:
    prompt = [(tensors(2, 40, 8, dtype=torch.bfloat16, seed=1), tensors(2, 40, 8, dtype=torch.bfloat16, seed=2))]
    cache = SlotCache(prompt, slots=4, columns=8, cursor=0)
    shared = SharedPrompts(prompt, places=1, columns=40)
    shared.place(7, prompt)
    shared.arrange(np.array([7, 7, 7, 7]), 4)
    attention = RowAttention(cache, SCALE, shared)
    attention.begin(torch.zeros(4, dtype=torch.int64))
    queries, keys, values = (tensors(4, 2, *rest, 8, dtype=torch.bfloat16, seed=9) for rest in ((3,), (), ()))
    output = attention(0, queries, keys, values).unflatten(-1, (2, 3, 8))
    assert output.dtype == torch.bfloat16
    for row in range(4):
        both = [
            torch.cat([part, own[row].unsqueeze(1)], dim=1) for part, own in zip(prompt[0], (keys, values), strict=True)
        ]
        expected = plain(queries[row], *both)
        torch.testing.assert_close(output[row].double(), expected, rtol=2**-8, atol=1e-5)
