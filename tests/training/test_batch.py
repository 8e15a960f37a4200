from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_rollouts import BATCH, MAX_TOKENS, PAD, completion, group, random_groups, weights_of

from nsr.training.batch import Batch, build_batch, microbatches, packs, split_updates

# Two puzzles, two samples each. Responses of 2, 1, 1 and 3 tokens: 7 in all, 5 of them in the three that are wrong.
GROUPS = [
    group([10, 11], [completion([20, 21], [-0.1, -0.2]), completion([22], [-0.3])], right=[1, 0]),
    group([12], [completion([23], [-0.4]), completion([24, 25, 26], [-0.5, -0.6, -0.7])], right=[0, 0]),
]
WEIGHTS_PG = np.array([[0.0, -1.0], [-0.5, -2.0]])


def test_a_batch_worked_out_by_hand():
    batch = build_batch(GROUPS, WEIGHTS_PG, **BATCH)
    assert batch.tokens_BT.tolist() == [[10, 11, 22, PAD], [12, 23, PAD, PAD], [12, 24, 25, 26]]
    assert batch.response_mask_BT.tolist() == [
        [False, False, True, False],
        [False, True, False, False],
        [False, True, True, True],
    ]
    assert batch.prompt_lengths_B.tolist() == [2, 1, 1]
    assert batch.weights_B.tolist() == [-1.0, -0.5, -2.0]
    assert batch.group_B.tolist() == [0, 1, 1]
    log_probs = [[0, 0, -0.3, 0], [0, -0.4, 0, 0], [0, -0.5, -0.6, -0.7]]
    torch.testing.assert_close(batch.sampler_log_probs_BT, torch.tensor(log_probs))
    assert (batch.num_rows, batch.num_rollouts, batch.max_tokens) == (3, 4, MAX_TOKENS)


@pytest.mark.parametrize(
    ("loss_type", "normalize_over", "expected"),
    [
        ("standard", "all", 4),
        ("standard", "kept", 3),
        ("length_normalized", "all", 4),
        ("length_normalized", "kept", 3),
        ("token_mean", "all", 7),
        ("token_mean", "kept", 5),
    ],
)
def test_the_denominator_counts_all_rollouts_or_the_kept(loss_type, normalize_over, expected):
    batch = build_batch(GROUPS, WEIGHTS_PG, **{**BATCH, "loss_type": loss_type, "normalize_over": normalize_over})
    assert batch.denominator == expected
    assert {part.denominator for part in microbatches(batch, 1)} == {expected}


@pytest.mark.parametrize("normalize_over", ["all", "kept"])
def test_without_weights_the_batch_is_empty(normalize_over):
    batch = build_batch(GROUPS, np.zeros((2, 2)), **{**BATCH, "normalize_over": normalize_over})
    assert batch.is_empty
    assert batch.num_rows == 0
    assert microbatches(batch, 4) == []


def test_same_prompts_are_separate_groups():
    twins = [GROUPS[1], GROUPS[1]]
    assert build_batch(twins, np.full((2, 2), -1.0), **BATCH).group_B.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("weights_PG", [np.zeros((2, 3)), np.zeros((1, 2)), np.full((2, 2), math.nan)])
def test_weights_that_do_not_fit_are_an_invariant_broken(weights_PG):
    with pytest.raises(AssertionError):
        build_batch(GROUPS, weights_PG, **BATCH)


def rows_of(batch: Batch) -> list[tuple]:
    """Each row without its padding, in an order that does not depend on the batch's."""
    rows = []
    for row in range(batch.num_rows):
        mask_T = batch.response_mask_BT[row]
        end = int(mask_T.nonzero().max()) + 1
        rows.append(
            (
                batch.tokens_BT[row, :end].tolist(),
                mask_T[:end].tolist(),
                batch.sampler_log_probs_BT[row, :end].tolist(),
                int(batch.prompt_lengths_B[row]),
                float(batch.weights_B[row]),
                int(batch.group_B[row]),
            )
        )
    return sorted(rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), max_rows=st.integers(1, 40))
def test_microbatches_are_the_batch_cut_up(seed, max_rows):
    groups = random_groups(seed=seed)
    batch = build_batch(groups, weights_of("NSR", groups), **BATCH)
    parts = microbatches(batch, max_rows)
    assert len(parts) == math.ceil(batch.num_rows / max_rows)
    sizes = [part.num_rows for part in parts]
    assert sizes[:-1] == [max_rows] * (len(parts) - 1)
    assert sizes[-1] <= max_rows
    assert sorted(row for part in parts for row in rows_of(part)) == rows_of(batch)
    # cut to their longest row, rounded up within the batch; the longest parts first
    lengths = [part.tokens_BT.shape[1] for part in parts]
    assert lengths == sorted(lengths, reverse=True)
    longest = [int(part.response_mask_BT.any(dim=0).nonzero().max()) + 1 for part in parts]
    assert lengths == [min(math.ceil(length / 16) * 16, batch.tokens_BT.shape[1]) for length in longest]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), max_rows=st.integers(1, 40))
def test_packs_hold_every_row_once_and_no_more_tokens_than_so_many_longest_rows(seed, max_rows):
    groups = random_groups(seed=seed)
    batch = build_batch(groups, weights_of("NSR", groups), **BATCH)
    parts = packs(batch, max_rows)
    assert sorted(row for part in parts for row in rows_of(part)) == rows_of(batch)
    room = max_rows * (int(batch.prompt_lengths_B.max()) + MAX_TOKENS)
    split = 0
    for part in parts:
        tokens = int(part.response_mask_BT.sum())
        in_order = list(dict.fromkeys(part.group_B.tolist()))
        assert part.group_B.tolist() == sorted(part.group_B.tolist(), key=in_order.index)  # side by side
        for index in in_order:
            tokens += int(part.prompt_lengths_B[part.group_B == index][0])
        assert tokens <= room
        split += len(in_order)
    # a group is cut only where it alone is too large
    whole = [
        len(one.prompt_ids)
        + sum(len(c.token_ids) for c, weight in zip(one.completions, weights_G, strict=True) if weight)
        for one, weights_G in zip(groups, weights_of("NSR", groups), strict=True)
    ]
    if max(whole) <= room:
        assert split == len(set(batch.group_B.tolist()))
    assert {part.denominator for part in parts} == {batch.denominator}


def test_packs_worked_out_by_hand():
    """Tokens: 3 + 5 + 5, 2 + 4 + 4, and 3 + 12 + 12, which has the longest row. Room: 15 for each row of `max_rows`."""
    lengths = {3: 5, 2: 4, 4: 12}
    groups = [
        group([7] * min(prompt, 3), [completion([5] * length), completion([6] * length)], right=[0, 0])
        for prompt, length in lengths.items()
    ]
    batch = build_batch(groups, np.full((3, 2), -1.0), **BATCH)
    assert [part.group_B.tolist() for part in packs(batch, 2)] == [[2, 2], [0, 0, 1, 1]]
    assert [part.group_B.tolist() for part in packs(batch, 1)] == [[2], [2], [0, 0], [1, 1]]
    assert [part.group_B.tolist() for part in packs(batch, 4)] == [[2, 2, 0, 0, 1, 1]]
    assert packs(build_batch(groups, np.zeros((3, 2)), **BATCH), 2) == []


def test_sorting_by_length_saves_padding(monkeypatch):
    monkeypatch.setattr("nsr.training.batch.LENGTH_STEP", 1)  # these responses are too short to be rounded up
    groups = random_groups(num_groups=8)
    batch = build_batch(groups, np.ones((8, 8)), **BATCH)
    real = int(batch.response_mask_BT.sum() + batch.prompt_lengths_B.sum())
    padded = sum(part.tokens_BT.numel() for part in microbatches(batch, 8))
    assert padded < 1.15 * real
    assert batch.tokens_BT.numel() > 1.4 * real


def test_old_log_probs_are_cut_with_their_rows():
    batch = build_batch(GROUPS, WEIGHTS_PG, **BATCH)
    batch = dataclasses.replace(batch, old_log_probs_BT=2 * batch.sampler_log_probs_BT)
    for part in microbatches(batch, 1):
        assert part.old_log_probs_BT is not None
        torch.testing.assert_close(part.old_log_probs_BT, 2 * part.sampler_log_probs_BT)


def test_updates_take_whole_groups_each_once():
    groups = random_groups(num_groups=6, group_size=2)
    weights_PG = np.arange(12.0).reshape(6, 2)
    parts = split_updates(groups, weights_PG, 3, np.random.default_rng(0))
    assert [len(part) for part, _ in parts] == [2, 2, 2]
    index_of = {id(one): index for index, one in enumerate(groups)}
    order = [index_of[id(one)] for part, _ in parts for one in part]
    assert sorted(order) == list(range(6))
    assert order != list(range(6))
    for part, part_weights_PG in parts:
        np.testing.assert_array_equal(part_weights_PG, weights_PG[[index_of[id(one)] for one in part]])


def test_one_update_is_the_batch_as_it_is_and_draws_nothing():
    rng = np.random.default_rng(0)
    ((part, part_weights_PG),) = split_updates(GROUPS, WEIGHTS_PG, 1, rng)
    assert part == GROUPS
    np.testing.assert_array_equal(part_weights_PG, WEIGHTS_PG)
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("num_updates", [0, 3, -1])
def test_updates_that_do_not_divide_the_groups_are_refused(num_updates):
    with pytest.raises(ValueError, match=r"updates_per_rollout is .* number of groups, 2"):
        split_updates(GROUPS, WEIGHTS_PG, num_updates, np.random.default_rng(0))


def test_shapes_of_a_batch_are_checked_in_tests():
    batch = build_batch(GROUPS, WEIGHTS_PG, **BATCH)
    with pytest.raises(Exception, match=r"(?i)type.?check"):
        dataclasses.replace(batch, weights_B=torch.zeros(2))
