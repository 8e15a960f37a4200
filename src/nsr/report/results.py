"""The numbers of a report: pass@k of each method with intervals, changes from base, and methods beside each other."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nsr.evaluation.compare import Interval
from nsr.evaluation.evaluate import Evaluation, PassAtK
from nsr.evaluation.methods import holm, method_differences, method_intervals, method_p_value
from nsr.evaluation.pass_at_k import is_rough, k_values, pass_at_k
from nsr.report.methods import Arm, Member, Section

LEVEL = 0.05
"""Of the test after Holm's correction; the intervals are those of 95%."""
MOST_ARMS_IN_PAIRS = 12
"""Methods of a section of which each pair is compared; of more only the changes from the base are read."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A paired difference of pass@k, and whether it may be claimed."""

    k: int
    value: Interval
    p: float
    """By the same bootstrap, of no difference; 1 where nothing can be claimed anyway."""
    adjusted: float = 1.0
    """p after Holm's correction over all differences that are read together."""

    @property
    def alone(self) -> bool:
        """Whether its own interval leaves out 0."""
        return not self.value.holds_zero

    @property
    def stands(self) -> bool:
        """Whether it may be claimed: its interval leaves out 0, also after Holm's correction."""
        return self.alone and self.adjusted <= LEVEL


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a method in a section."""

    arm: Arm
    curve: tuple[PassAtK, ...]
    """Over seeds and puzzles."""
    changes: tuple[Change, ...]
    """From the base, at the same k; empty where there is no base."""

    @property
    def accuracy(self) -> Interval:
        """Mean pass@1."""
        return self.curve[0].value

    def at(self, k: int) -> Interval:
        """pass@k."""
        return next(point.value for point in self.curve if point.k == k)

    def change(self, k: int) -> Change | None:
        """The change of pass@k from the base."""
        return next((change for change in self.changes if change.k == k), None)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How two methods differ: `after` minus `before`."""

    before: Arm
    after: Arm
    changes: tuple[Change, ...]
    """Of accuracy and of pass@k at the large k."""


@dataclass(frozen=True, kw_only=True)
class SectionResult:
    """The results of a section."""

    section: Section
    top_k: int
    """The large k that is read beside accuracy: the largest that is not rough for any method."""
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]

    @property
    def ks(self) -> tuple[int, ...]:
        """The k that are read: 1 and the large one."""
        return tuple(dict.fromkeys((1, self.top_k)))


def results(sections: Sequence[Section]) -> list[SectionResult]:
    """All numbers of a report. Holm's correction is over all changes from a base, and over all pairs of methods."""
    found = [_result(section) for section in sections]
    changes = [change for result in found for row in result.rows for change in _read(row, result)]
    adjusted = dict(zip(map(id, changes), holm([change.p for change in changes]), strict=True))
    pairs = [change for result in found for pair in result.pairs for change in pair.changes]
    adjusted |= dict(zip(map(id, pairs), holm([change.p for change in pairs]), strict=True))

    def corrected(all_changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(replace(change, adjusted=adjusted.get(id(change), 1.0)) for change in all_changes)

    return [
        replace(
            result,
            rows=tuple(replace(row, changes=corrected(row.changes)) for row in result.rows),
            pairs=tuple(replace(pair, changes=corrected(pair.changes)) for pair in result.pairs),
        )
        for result in found
    ]


def _read(row: Row, result: SectionResult) -> list[Change]:
    return [change for change in row.changes if change.k in result.ks]


def _result(section: Section) -> SectionResult:
    top_k = max((k for k in k_values(min(arm.num_samples for arm in section.arms)) if _is_top(k, section)), default=1)
    rows = tuple(_row(arm, {1, top_k}) for arm in section.arms)
    trained = section.trained
    pairs: tuple[Pair, ...] = ()
    if len(trained) <= MOST_ARMS_IN_PAIRS:
        made = (_pair(before, after, (1, top_k)) for before, after in itertools.combinations(trained, 2))
        pairs = tuple(pair for pair in made if pair is not None)
    return SectionResult(section=section, top_k=top_k, rows=rows, pairs=pairs)


def _is_top(k: int, section: Section) -> bool:
    return not any(is_rough(k, arm.num_samples) for arm in section.arms)


def _row(arm: Arm, read: Collection[int]) -> Row:
    n = arm.num_samples
    evaluations = [member.evaluation for member in arm.members]
    ks = k_values(n)
    curve = tuple(
        PassAtK(k=k, value=value, rough=is_rough(k, n))
        for k, value in zip(ks, method_intervals(_values(evaluations, ks), _keys(evaluations)), strict=True)
    )
    paired = [member for member in arm.members if member.base is not None]
    changes: tuple[Change, ...] = ()
    if paired:
        bases = [_base(member) for member in paired]
        most = min(n, *(base.num_samples for base in bases))
        changes = _changes(bases, [member.evaluation for member in paired], k_values(most), read)
    return Row(arm=arm, curve=curve, changes=changes)


def _base(member: Member) -> Evaluation:
    assert member.base is not None
    return member.base


def _pair(before: Arm, after: Arm, ks: Sequence[int]) -> Pair | None:
    """Two methods on the seeds that both have; None where there is none."""
    others = {member.run.seed: member.evaluation for member in before.members}
    shared = [member for member in after.members if member.run.seed in others]
    if not shared:
        return None
    evaluations = [member.evaluation for member in shared]
    changes = _changes([others[member.run.seed] for member in shared], evaluations, tuple(dict.fromkeys(ks)), ks)
    return Pair(before=before, after=after, changes=changes)


def _values(evaluations: Sequence[Evaluation], ks: Sequence[int]) -> list[NDArray[np.float64]]:
    """pass@k of every puzzle [P, K], for each evaluation."""
    return [pass_at_k(one.num_samples, np.array(one.num_correct)[:, None], ks) for one in evaluations]


def mean_pass_at_k(evaluation: Evaluation, k: int) -> float | None:
    """pass@k of one evaluation; None where it has fewer samples."""
    if k > evaluation.num_samples:
        return None
    return float(np.mean(pass_at_k(evaluation.num_samples, evaluation.num_correct, k)))


def _changes(
    before: Sequence[Evaluation], after: Sequence[Evaluation], ks: Sequence[int], read: Collection[int]
) -> tuple[Change, ...]:
    """The paired changes of pass@k, an evaluation of each seed before and after.

    Only a change that is read and whose interval leaves out 0 can be claimed, so only then its p-value is worked out:
    the others have larger ones, and how large changes nothing for the smaller ones in Holm's correction.
    """
    old, new, keys = _values(before, ks), _values(after, ks), _keys(after)
    made: list[Change] = []
    for place, (k, value) in enumerate(zip(ks, method_differences(old, new, keys), strict=True)):
        p = 1.0
        if k in read and not value.holds_zero:
            p = method_p_value([values[:, place] for values in old], [values[:, place] for values in new], keys)
        made.append(Change(k=k, value=value, p=p))
    return tuple(made)


def _keys(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    return [evaluation.puzzles for evaluation in evaluations]
