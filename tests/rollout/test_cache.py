"""Slots and columns, with keys and values whose numbers say whose they are."""

from __future__ import annotations

import pytest
import torch

from nsr.rollout.native.cache import SlotCache


def prompt_of(values: list[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One layer, one head of dimension 1: keys are the values, and values are their negatives."""
    keys = torch.tensor(values).reshape(1, -1, 1)
    return [(keys, -keys)]


def window_of(cache: SlotCache, rows: int) -> list[list[float]]:
    """Keys of the first rows in the window; checks that the values go with them."""
    columns = slice(cache.window.first, cache.window.cursor)
    keys, values = cache.slot_layers[0].keys[:rows, 0, columns, 0], cache.slot_layers[0].values[:rows, 0, columns, 0]
    assert torch.equal(values, -keys)
    return keys.tolist()


def feed(cache: SlotCache, tokens: list[float]) -> list[list[float]]:
    """One step of the first rows, as a model and the engine take it; the keys that the model attends to."""
    assert cache.get_seq_length() == cache.window.cursor - cache.window.first
    states = torch.tensor(tokens).reshape(-1, 1, 1, 1)
    keys, values = cache.update(states, -states, 0)
    assert torch.equal(values, -keys)
    cache.window.cursor += 1
    return keys[:, 0, :, 0].tolist()


@pytest.fixture
def cache() -> SlotCache:
    """Three slots of 6 columns; the first two rows hold 1, 2 and 3 (ends at column 2)."""
    cache = SlotCache(prompt_of([1, 2]), slots=3, columns=6, cursor=2)
    cache.place(prompt_of([1, 2]), slice(0, 1))
    cache.place(prompt_of([3]), slice(1, 2))
    cache.window.first = 0
    return cache


def test_rows_end_at_the_same_column(cache: SlotCache) -> None:
    assert window_of(cache, 2) == [[1, 2], [0, 3]]
    assert feed(cache, [4, 5]) == [[1, 2, 4], [0, 3, 5]]
    cache.place(prompt_of([7, 8]), slice(2, 3))
    assert feed(cache, [4, 5, 9]) == [[1, 2, 4, 4], [0, 3, 5, 5], [0, 7, 8, 9]]


def test_a_step_of_fewer_rows_touches_only_them(cache: SlotCache) -> None:
    assert feed(cache, [4]) == [[1, 2, 4]]
    assert window_of(cache, 2) == [[1, 2, 4], [0, 3, 0]]


def test_a_prompt_goes_to_all_its_slots(cache: SlotCache) -> None:
    cache.place(prompt_of([6]), slice(0, 3))
    assert window_of(cache, 3) == [[1, 6], [0, 6], [0, 6]]


def test_move_takes_a_whole_row(cache: SlotCache) -> None:
    cache.move(torch.tensor([1]), torch.tensor([0]))
    assert window_of(cache, 2) == [[0, 3], [0, 3]]


def test_room_is_made_only_when_the_columns_are_used_up(cache: SlotCache) -> None:
    for token in (4, 5, 6):
        feed(cache, [token] * 2)
    cache.make_room(2, at_least=0)
    assert (cache.window.first, cache.window.cursor) == (0, 5)
    feed(cache, [7, 7])
    cache.window.first = 3
    cache.make_room(2, at_least=0)
    assert (cache.window.first, cache.window.cursor) == (0, 3)
    assert window_of(cache, 2) == [[5, 6, 7], [5, 6, 7]]
    assert feed(cache, [8, 9]) == [[5, 6, 7, 8], [5, 6, 7, 9]]


def test_room_is_left_for_a_longer_prompt(cache: SlotCache) -> None:
    for token in (4, 5, 6, 7):
        feed(cache, [token] * 2)
    cache.window.first = 4
    cache.make_room(2, at_least=5)
    assert (cache.window.first, cache.window.cursor) == (3, 5)
    assert window_of(cache, 2) == [[6, 7], [6, 7]]
    with pytest.raises(AssertionError, match="does not fit"):
        cache.place(prompt_of([1.0] * 6), slice(2, 3))


def test_a_row_as_long_as_the_cache_has_no_room(cache: SlotCache) -> None:
    for token in (4, 5, 6, 7):
        feed(cache, [token] * 2)
    with pytest.raises(AssertionError, match="longer than the cache"):
        cache.make_room(2, at_least=0)
