"""Keys and values of a running batch, in place: slots for rows, columns for tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass
class Window:
    """Columns in use: tokens so far are in [first, cursor), and the next token's go to `cursor`."""

    first: int
    cursor: int


class SlotLayer(DynamicLayer):
    """One layer's keys and values, [slots, heads, columns, head_dim]; what the model sees is the window of its rows."""

    def __init__(self, window: Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.window = window
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values of the first rows at the cursor; return these rows' window with it."""
        rows, end = key_states.shape[0], self.window.cursor + 1
        self.keys[:rows, :, end - 1 : end] = key_states
        self.values[:rows, :, end - 1 : end] = value_states
        columns = slice(self.window.first, end)
        return self.keys[:rows, :, columns], self.values[:rows, :, columns]

    def get_seq_length(self) -> int:
        """Tokens before the next one."""
        return self.window.cursor - self.window.first


class SlotCache(Cache):
    """A `transformers` cache whose rows end at the same column, so that a step writes one column of the first rows.

    Row r's tokens are the last ones before the cursor; columns before them hold what other rows left and are masked by
    the caller, as left padding is. Rows come and go while the batch runs: `place` puts a prompt's keys and values into
    slots, `move` closes the gaps that finished rows leave, and `make_room` moves the window back to the left.

    Args:
        like: keys and values of one prompt for each layer, [heads, tokens, head_dim]: gives the shapes.
        slots: number of rows.
        columns: tokens that fit side by side.
        cursor: column at which the first rows end.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], slots: int, columns: int, cursor: int) -> None:
        self.window = Window(first=cursor, cursor=cursor)
        self.columns = columns
        # Zeros: a masked column counts with weight 0, and 0 times uninitialized memory may be nan.
        self.slot_layers = [
            SlotLayer(self.window, *(t.new_zeros(slots, t.shape[0], columns, t.shape[2]) for t in layer))
            for layer in like
        ]
        super().__init__(layers=list(self.slot_layers))

    def place(self, prompt: Sequence[tuple[Tensor, Tensor]], slots: slice) -> None:
        """Write a prompt's keys and values, for each layer [heads, tokens, head_dim], to end at the cursor."""
        columns = slice(self.window.cursor - prompt[0][0].shape[1], self.window.cursor)
        assert columns.start >= 0, "the prompt does not fit before the cursor"
        for layer, (keys, values) in zip(self.slot_layers, prompt, strict=True):
            layer.keys[slots, :, columns] = keys
            layer.values[slots, :, columns] = values

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the rows in slots `sources` to slots `targets` (int64, disjoint)."""
        columns = slice(self.window.first, self.window.cursor)
        for layer in self.slot_layers:
            layer.keys[targets, :, columns] = layer.keys[sources, :, columns]
            layer.values[targets, :, columns] = layer.values[sources, :, columns]

    def make_room(self, rows: int, at_least: int) -> None:
        """If the columns are used up, move the window of the first rows left; its end stays at `at_least` or later."""
        if self.window.cursor < self.columns:
            return
        width = self.window.cursor - self.window.first
        cursor = max(width, at_least)
        assert cursor < self.columns, "a row is longer than the cache"
        for layer in self.slot_layers:
            for tensor in (layer.keys, layer.values):
                tensor[:rows, :, cursor - width : cursor] = tensor[:rows, :, self.window.first :].clone()
        self.window.first, self.window.cursor = cursor - width, cursor
