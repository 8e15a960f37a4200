"""What the model computes of a running batch: rows of a request with the same tokens so far are one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a token of each row makes of the nodes: nodes `sources` are copied to the places `targets`."""

    node_B: Indices
    """The node of each row now."""
    sources: Indices
    targets: Indices


class Nodes:
    """Nodes 0 to `count` - 1 are in use, each with a slot of the cache. Names end in N for one value a slot.

    Rows that draw different tokens part: one node stays where it is, every other token gets a copy. There are never
    more nodes than rows, so slots for the rows are enough.

    Args:
        slots: most nodes.
        share: whether rows have nodes in common; otherwise node r is row r's.
    """

    def __init__(self, slots: int, *, share: bool = True) -> None:
        self.count = 0
        self.share = share
        self._request_N = np.zeros(slots, dtype=np.int64)
        self._prompt_length_N = np.zeros(slots, dtype=np.int64)
        self._length_N = np.zeros(slots, dtype=np.int64)
        self._newest_N = np.zeros(slots, dtype=np.int64)

    @property
    def request_N(self) -> Indices:
        """The request that each node belongs to."""
        return self._request_N[: self.count]

    @property
    def length_N(self) -> Indices:
        """Tokens so far, without the prompt."""
        return self._length_N[: self.count]

    @property
    def newest_N(self) -> Indices:
        """Each node's last token."""
        return self._newest_N[: self.count]

    @property
    def cached_N(self) -> Indices:
        """Tokens whose keys and values are known: all but the newest, whose position this is too."""
        return self._prompt_length_N[: self.count] + self._length_N[: self.count] - 1

    def add(self, request: int, rows: int, prompt_length: int) -> Indices:
        """Nodes for new rows of a request, without tokens; returns each row's."""
        first, new = self.count, 1 if self.share else rows
        self.count += new
        places = slice(first, self.count)
        self._request_N[places], self._prompt_length_N[places], self._length_N[places] = request, prompt_length, 0
        return np.full(rows, first) if self.share else np.arange(first, self.count)

    def advance(self, node_B: Indices, tokens_B: Indices) -> Step:
        """One more token of each row that goes on.

        Args:
            node_B: the node of each; nodes without rows are dropped.
            tokens_B: what was drawn, ids of 32 bits.
        """
        if len(node_B) == self.count and (np.bincount(node_B, minlength=self.count) == 1).all():
            # Every node has one row: none is dropped, and nothing can part.
            self._newest_N[node_B] = tokens_B
            self._length_N[: self.count] += 1
            none = np.empty(0, dtype=np.int64)
            return Step(node_B=node_B.copy(), sources=none, targets=none)
        parting_B = tokens_B if self.share else np.arange(len(tokens_B))
        keys_B = (node_B << 32) | parting_B
        _, first_N, group_B = np.unique(keys_B, return_index=True, return_inverse=True)
        source_N, count = node_B[first_N], len(first_N)
        # Sorted by node: the first token of each stays in its place, unless that is beyond the new number of nodes.
        stays_N = (np.diff(source_N, prepend=-1) != 0) & (source_N < count)
        place_N = source_N.copy()
        is_free = np.ones(count, dtype=bool)
        is_free[source_N[stays_N]] = False
        place_N[~stays_N] = np.flatnonzero(is_free)
        for values in (self._request_N, self._prompt_length_N, self._length_N):
            values[place_N] = values[source_N]
        self._newest_N[place_N] = tokens_B[first_N]
        self._length_N[:count] += 1
        self.count = count
        return Step(node_B=place_N[group_B], sources=source_N[~stays_N], targets=place_N[~stays_N])
