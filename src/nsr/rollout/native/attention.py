"""Attention of one new token a row, for the lean decoder: a row's own columns, and prompts that rows have in common.

Keys and values are read once for all query heads that go with them, and a prompt's once for all rows that began with
it: softmax over two parts is each part's, weighted by its sum of exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nsr.models.sampling_mask import OUT
from nsr.rollout.native.cache import SlotCache

FEW_COLUMNS = 96
"""Columns up to which plain products in float32 are quicker than the fused kernel in 16 bits."""
FUSED = ("cpu",)
"""Devices whose fused kernel also returns the sums."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention and the logarithm of its sums of exponentials.

    Args:
        queries: [N, heads, queries, width].
        keys: [N, heads, tokens, width]; every query of a head attends to all of its tokens.
        values: as the keys.
        mask: what is added to the scores, [N, 1, 1, tokens], in the queries' type.
        scale: multiplies the scores.

    Returns:
        [N, heads, queries, width] in the queries' type, and [N, heads, queries] in float32 at least.
    """
    if queries.device.type in FUSED:
        # What torch's own attention comes to on a CPU; asked directly it also returns the sums.
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
        return flash(queries, keys, values, 0.0, False, attn_mask=mask, scale=scale)
    output, sums = attend_widely(queries, keys, values, mask, scale)
    return output.to(queries.dtype), sums


def attend_widely(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """What `attend` gives, by plain products in float32 at least and not rounded to the queries' type."""
    wide = _wide(queries.dtype)
    scores = queries.to(wide).matmul(keys.to(wide).transpose(-1, -2)).mul_(scale)
    scores = scores if mask is None else scores.add_(mask)
    sums = scores.logsumexp(dim=-1)
    weights = scores.sub_(sums.unsqueeze(-1)).exp_()
    return weights.matmul(values.to(wide)), sums


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """What attention to two sets of tokens at once would give, from what `attend` returns for each; not rounded."""
    share = torch.sigmoid(first[1] - second[1]).unsqueeze(-1)
    return torch.lerp(second[0].to(share.dtype), first[0].to(share.dtype), share)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where it is allowed and -inf elsewhere: bool [N, tokens] -> [N, 1, 1, tokens]."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, OUT)
    return mask[:, None, None, :]


class SharedPrompts:
    """Keys and values of prompts that several rows have in common, one place a prompt.

    They are kept in float32 at least: there are few, the kernel is quicker, and a merged result is rounded once.

    Args:
        like: keys and values of one prompt for each layer, [heads, tokens, width]: gives the shapes.
        places: most prompts at a time.
        columns: length of the longest.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], places: int, columns: int) -> None:
        self._layers = [
            tuple(t.new_zeros(places, t.shape[0], columns, t.shape[2], dtype=_wide(t.dtype)) for t in layer)
            for layer in like
        ]
        self._lengths = np.ones(places, dtype=np.int64)
        self._free = list(range(places))
        self._of_request: dict[int, int] = {}
        self._mask: Tensor | None = None
        self._used = self._columns = 0
        self._requests_B = np.empty(0, dtype=np.int64)
        self._queries_N = self._answers_B = torch.empty(0, dtype=torch.int64)

    def place(self, request: int, prompt: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Keep a prompt's keys and values, for each layer [heads, tokens, width], unless they are kept already."""
        if request in self._of_request:
            return
        place = self._of_request[request] = self._free.pop(0)
        self._lengths[place] = length = prompt[0][0].shape[1]
        for (keys, values), (new_keys, new_values) in zip(self._layers, prompt, strict=True):
            keys[place, :, :length] = new_keys
            values[place, :, :length] = new_values

    def release(self, requests_B: npt.NDArray[np.int64]) -> None:
        """Let go of the prompts that none of the rows began with."""
        for request in set(self._of_request) - set(requests_B.tolist()):
            self._free.append(self._of_request.pop(request))
        self._free.sort()

    def arrange(self, requests_B: npt.NDArray[np.int64], width: int) -> None:
        """Say which prompts the rows of the next steps began with.

        Args:
            requests_B: of the rows in use.
            width: number of rows that are computed, the first of them in use.
        """
        if width == len(self._answers_B) and np.array_equal(requests_B, self._requests_B):
            return
        self._requests_B = requests_B.copy()
        places_B = np.array([self._of_request[request] for request in requests_B.tolist()], dtype=np.int64)
        self._used = int(places_B.max(initial=0)) + 1
        counts = np.bincount(places_B, minlength=self._used)
        most = int(counts.max())
        order = np.argsort(places_B, kind="stable")
        rank_B = np.empty_like(places_B)
        rank_B[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        answers_B = places_B * most + rank_B
        queries_N = np.zeros(self._used * most, dtype=np.int64)
        queries_N[answers_B] = np.arange(len(answers_B))
        idle = np.zeros(width - len(answers_B), dtype=np.int64)
        keys = self._layers[0][0]
        self._queries_N = torch.from_numpy(queries_N).to(keys.device)
        self._answers_B = torch.from_numpy(np.concatenate([answers_B, idle])).to(keys.device)
        lengths_P = torch.from_numpy(self._lengths[: self._used])
        columns = int(lengths_P.max())
        allowed_PT = torch.arange(columns) < lengths_P.unsqueeze(-1)
        self._mask = None if allowed_PT.all() else additive(allowed_PT.to(keys.device), keys.dtype)
        self._columns = columns

    def attend(self, layer: int, queries_BKQD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of each row to its prompt, as `attend_widely` returns it."""
        places, (kv_heads, group, width) = self._used, queries_BKQD.shape[1:]
        keys, values = (tensor[:places, :, : self._columns] for tensor in self._layers[layer])
        by_prompt = queries_BKQD.index_select(0, self._queries_N).unflatten(0, (places, -1)).transpose(1, 2)
        output, sums = attend(by_prompt.flatten(2, 3).to(keys.dtype), keys, values, self._mask, scale)
        rows = (places, kv_heads, -1, group)
        output = output.reshape(*rows, width).transpose(1, 2).flatten(0, 1)
        sums = sums.reshape(rows).transpose(1, 2).flatten(0, 1)
        return output.index_select(0, self._answers_B), sums.index_select(0, self._answers_B)


class RowAttention:
    """The lean decoder's attention over a cache of slots, with or without shared prompts.

    Args:
        cache: the rows' own columns, one more of which each step fills.
        scale: multiplies the scores.
        shared: where the rows' prompts are, if not in their own columns.
    """

    def __init__(self, cache: SlotCache, scale: float, shared: SharedPrompts | None) -> None:
        self._cache, self._scale, self._shared = cache, scale, shared
        self._mask: Tensor | None = None

    def begin(self, own_B: Tensor) -> None:
        """Before a step: how many columns each row has of its own so far."""
        window = self._cache.window
        offsets_T = torch.arange(window.first - window.cursor, 1, device=own_B.device)  # 0 is the newest token
        allowed_BT = offsets_T >= -own_B.unsqueeze(-1)
        self._mask = additive(allowed_BT, self._cache.slot_layers[0].keys.dtype)

    def __call__(self, layer: int, queries_BKQD: Tensor, keys_BKD: Tensor, values_BKD: Tensor) -> Tensor:
        """See `nsr.models.fast.decode_model.Attend`."""
        keys, values = self._cache.slot_layers[layer].update(keys_BKD.unsqueeze(2), values_BKD.unsqueeze(2))
        if self._shared is None:
            return attend(queries_BKQD, keys, values, self._mask, self._scale)[0].flatten(1)
        few = queries_BKQD.dtype.itemsize == 2 and keys.shape[2] <= FEW_COLUMNS
        own = (attend_widely if few else attend)(queries_BKQD, keys, values, self._mask, self._scale)
        both = merge(self._shared.attend(layer, queries_BKQD, self._scale), own)
        return both.flatten(1).to(queries_BKQD.dtype)
