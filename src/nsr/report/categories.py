"""Accuracy by kind of puzzle: how many numbers it has, and whether + and - alone can solve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nsr.evaluation.compare import Interval
from nsr.evaluation.evaluate import OPERATIONS, operations_needed
from nsr.evaluation.methods import method_difference, method_interval
from nsr.evaluation.pass_at_k import pass_at_k
from nsr.report.methods import Arm, Member, Section
from nsr.tasks.countdown.puzzle import Puzzle

MOST_ARMS = 24
"""Methods of a section with such a table; with more of them it is left out."""


@dataclass(frozen=True, kw_only=True)
class KindRow:
    """A method on the puzzles of each kind."""

    arm: Arm
    cells: tuple[tuple[Interval, Interval | None] | None, ...]
    """For each kind: accuracy, and its change from the base; None where no seed has such puzzles."""


@dataclass(frozen=True, kw_only=True)
class KindTable:
    """A section's methods by kind of puzzle."""

    kinds: tuple[str, ...]
    rows: tuple[KindRow, ...]


class Kinds:
    """The kinds of puzzles, each puzzle looked at once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[str, tuple[str, str]] = {}

    def table(self, section: Section) -> KindTable | None:
        """The table of a section; None where there is one kind alone, or there are too many methods."""
        if len(section.arms) > MOST_ARMS:
            return None
        found = {kind for arm in section.arms for member in arm.members for kind in self._of_all(member)}
        kinds = tuple(sorted(kind for kind in found if kind not in OPERATIONS) + [k for k in OPERATIONS if k in found])
        if len(kinds) <= 2:  # one size, one need
            return None
        rows = tuple(KindRow(arm=arm, cells=tuple(self._cell(arm, kind) for kind in kinds)) for arm in section.arms)
        return KindTable(kinds=kinds, rows=rows)

    def _cell(self, arm: Arm, kind: str) -> tuple[Interval, Interval | None] | None:
        chosen = [(member, self._mask(member, kind)) for member in arm.members]
        chosen = [(member, mask_P) for member, mask_P in chosen if mask_P.any()]
        if not chosen:
            return None
        accuracy = method_interval(_after(chosen), _keys(chosen))
        paired = [(member, mask_P) for member, mask_P in chosen if member.base is not None]
        if not paired:
            return accuracy, None
        return accuracy, method_difference(_before(paired), _after(paired), _keys(paired))

    def _mask(self, member: Member, kind: str) -> NDArray[np.bool_]:
        return np.array([kind in self._of(key) for key in member.evaluation.puzzles])

    def _of_all(self, member: Member) -> set[str]:
        return {kind for key in member.evaluation.puzzles for kind in self._of(key)}

    def _of(self, key: str) -> tuple[str, ...]:
        if key not in self._known:
            try:
                puzzle = Puzzle.from_key(key)
            except ValueError:  # a damaged file
                return ()
            self._known[key] = (f"{len(puzzle.numbers)} numbers", operations_needed(puzzle))
        return self._known[key]


_Chosen = Sequence[tuple[Member, NDArray[np.bool_]]]


def _after(chosen: _Chosen) -> list[NDArray[np.float64]]:
    return [
        pass_at_k(member.evaluation.num_samples, member.evaluation.num_correct, 1)[mask_P] for member, mask_P in chosen
    ]


def _before(chosen: _Chosen) -> list[NDArray[np.float64]]:
    return [
        pass_at_k(member.base.num_samples, member.base.num_correct, 1)[mask_P]
        for member, mask_P in chosen
        if member.base is not None
    ]


def _keys(chosen: _Chosen) -> list[list[str]]:
    return [
        [key for key, is_chosen in zip(member.evaluation.puzzles, mask_P, strict=True) if is_chosen]
        for member, mask_P in chosen
    ]
