"""Results -> sentences: what the intervals allow to say, and what they do not.

A difference is claimed only where its interval leaves out 0, and still does after Holm's correction over all the
differences that are read together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nsr.report.results import LEVEL, MOST_ARMS_IN_PAIRS, Change, Pair, SectionResult

Kind = Literal["up", "down", "none", "note"]
_MOST_PAIRS = 3  # that get a sentence each
_MOST_LISTED = 8
_EXTREME = 0.02


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence, and what kind it is."""

    kind: Kind
    """A rise or a fall that may be claimed, something that may not, or a note on how to read."""
    text: str


def measure_name(k: int) -> str:
    """pass@1 is called accuracy."""
    return "accuracy" if k == 1 else f"pass@{k}"


def headline(results: Sequence[SectionResult]) -> str:
    """The report in two sentences."""
    trained = [row for result in results for row in result.rows if not row.arm.method.is_base and row.changes]
    if not trained:
        return "No run has both a base and an evaluation after some training, so nothing is compared here."
    parts: list[str] = []
    for large in (False, True):
        changes = [
            change
            for result in results
            for row in result.rows
            if not row.arm.method.is_base
            and (not large or result.top_k > 1)
            and (change := row.change(result.top_k if large else 1)) is not None
        ]
        if changes:
            tops = sorted({result.top_k for result in results if result.top_k > 1})
            name = "accuracy" if not large else f"pass@{tops[0]}" if len(tops) == 1 else "pass@k at large k"
            parts.append(_counts(name, changes))
    what = f"{len(trained)} trained methods" if len(trained) > 1 else "1 trained method"
    what += " (at each setting counted apart)" if len(results) > 1 else ""
    return f"Of {what}, " + "; ".join(parts) + "."


def _counts(name: str, changes: Sequence[Change]) -> str:
    up = sum(change.stands and change.value.estimate > 0 for change in changes)
    down = sum(change.stands and change.value.estimate < 0 for change in changes)
    if not up and not down:
        return f"none changes {name} by what can be claimed"
    said = [f"{count} {verb}" for count, verb in ((up, "raised"), (down, "lowered")) if count]
    rest = len(changes) - up - down
    return f"{' and '.join(said)} {name}" + (f", and for {rest} no change can be claimed" if rest else "")


def findings(result: SectionResult) -> list[Finding]:
    """What can be said of a section."""
    found: list[Finding] = []
    for k in result.ks:
        found += _from_base(result, k)
    found += _between(result)
    return found


def notes(results: Sequence[SectionResult]) -> list[str]:
    """What to keep in mind with all of them."""
    return list(dict.fromkeys(text for result in results for text in _notes(result)))


def _from_base(result: SectionResult, k: int) -> list[Finding]:
    pairs = [(row.arm.method.label, change) for row in result.rows if (change := row.change(k)) is not None]
    if not pairs:
        return []
    name = measure_name(k)
    found: list[Finding] = []
    verbs: tuple[tuple[Kind, str], ...] = (("up", "rose"), ("down", "fell"))
    for kind, verb in verbs:
        those = [(label, change) for label, change in pairs if change.stands and _rises(change) == (kind == "up")]
        if those:
            found.append(Finding(kind=kind, text=f"{_first_upper(name)} {verb} with {_listed(those)}."))
    open_ones = [(label, change) for label, change in pairs if not change.stands]
    alone = [(label, change) for label, change in open_ones if change.alone]
    if open_ones:
        labels = [label for label, _ in open_ones]
        many = len(labels) > _MOST_LISTED
        who = "any method" if len(labels) == len(pairs) else f"{len(labels)} methods" if many else _names(labels)
        text = f"No change of {name} from the base can be claimed for {who}."
        widest = max(max(abs(change.value.low), abs(change.value.high)) for _, change in open_ones)
        text += f" That is not to say that there is none: changes of up to {100 * widest:.1f} points fit the samples."
        found.append(Finding(kind="none", text=text))
    if alone:
        text = f"The interval of {name} leaves out 0 by itself, but not after Holm's correction, for {_listed(alone)}."
        found.append(Finding(kind="none", text=text))
    return found


def _between(result: SectionResult) -> list[Finding]:
    if len(result.section.trained) > MOST_ARMS_IN_PAIRS:
        text = f"There are {len(result.section.trained)} methods: they are compared with the base, not in pairs."
        return [Finding(kind="note", text=text)]
    if not result.pairs:
        return []
    found: list[Finding] = []
    for k in result.ks:
        claimed = [
            (pair, change) for pair in result.pairs for change in pair.changes if change.k == k and change.stands
        ]
        name = measure_name(k)
        if 0 < len(claimed) <= _MOST_PAIRS:
            found += [Finding(kind="up", text=_versus(pair, change, name)) for pair, change in claimed]
        elif claimed:
            text = f"By {name}, {len(claimed)} of {len(result.pairs)} pairs of methods can be told apart: "
            found.append(Finding(kind="up", text=f"{text}{_above(claimed)}."))
        if not claimed:
            text = f"No two methods can be told apart by {name} (pairs compared: {len(result.pairs)})."
            found.append(Finding(kind="none", text=text))
    return found


def _above(claimed: Sequence[tuple[Pair, Change]]) -> str:
    """Which methods are above which others, the one above most of them first."""
    below: dict[str, list[str]] = {}
    for pair, change in claimed:
        better, worse = _ordered(pair, change)
        below.setdefault(better, []).append(worse)
    ranked = sorted(below.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{better} above {_names(worse)}" for better, worse in ranked)


def _ordered(pair: Pair, change: Change) -> tuple[str, str]:
    better, worse = (pair.after, pair.before) if _rises(change) else (pair.before, pair.after)
    return better.method.label, worse.method.label


def _versus(pair: Pair, change: Change, name: str) -> str:
    better, worse = _ordered(pair, change)
    low, high = sorted((abs(change.value.low), abs(change.value.high)))
    size = f"{100 * abs(change.value.estimate):.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{better} has more {name} than {worse}, by {size}."


def _notes(result: SectionResult) -> list[str]:
    learned = [arm for arm in result.section.trained if not arm.method.is_base]
    seeds = {len(arm.members) for arm in learned}
    found: list[str] = []
    if seeds == {1}:
        found.append(
            "Each method was trained with one seed: the intervals are over puzzles, and say nothing about what another "
            "seed of the training would give."
        )
    elif seeds:
        span = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{min(seeds)}"
        few = " So few seeds show little of how much seeds differ." if max(seeds) < 5 else ""
        found.append(f"The intervals are over puzzles and over {span} seeds of the training.{few}")
    steps = sorted({arm.step for arm in learned})
    if len(steps) > 1:
        found.append(f"The methods were trained for {_names(map(str, steps))} steps: that is a difference too.")
    if any(arm.method.objective == "SHUFFLED" for arm in result.section.arms):
        found.append("SHUFFLED is the control: its labels tell nothing, so what it does as well, labels did not do.")
    if any(not _EXTREME <= point.value.estimate <= 1 - _EXTREME for row in result.rows for point in row.curve):
        found.append("Near 0% and 100% (beyond 2% and 98%) the intervals are too narrow: few puzzles decide there.")
    return found


def reading(results: Sequence[SectionResult]) -> list[str]:
    """How the numbers were made and what they allow to say: the same for every report but for the counts."""
    changes = sum(1 for r in results for row in r.rows for change in row.changes if change.k in r.ks)
    pairs = sum(len(pair.changes) for result in results for pair in result.pairs)
    texts = [
        "Accuracy is mean pass@1 at the stated temperature. pass@k is the chance that at least one of k samples of a "
        "puzzle is right, 1 - C(n-c, k) / C(n, k) for n samples with c right; the large k of a table is the largest "
        "that is at most half of n.",
        "Brackets are 95% bootstrap intervals over puzzles, and over seeds where there are several. A change is "
        "paired: the same puzzles before and after, with the same random streams, so it is surer than two intervals "
        "side by side suggest.",
    ]
    if changes:
        apart = f", and apart from that over the {pairs} differences between methods" if pairs else ""
        texts.append(
            "Many intervals are read at once, and of every twenty one may leave out 0 by luck. So a change is claimed "
            f"only if its interval leaves out 0 and its p-value after Holm's correction is at most {LEVEL:g}. The "
            f"correction is over the {changes} changes from a base{apart}."
        )
    texts.append(
        "An interval that holds 0 does not show that two models are the same; it shows how large a difference could "
        "still be. Nothing here says what other puzzles, other models or longer training would give."
    )
    return texts


def _rises(change: Change) -> bool:
    return change.value.estimate > 0


def _listed(pairs: Sequence[tuple[str, Change]]) -> str:
    ordered = sorted(pairs, key=lambda pair: -abs(pair[1].value.estimate)) if len(pairs) > _MOST_LISTED else pairs
    words = [f"{label} ({change.value.points()})" for label, change in ordered[:_MOST_LISTED]]
    return _names(
        [*words, *([f"{len(pairs) - _MOST_LISTED} more, see the table"] if len(pairs) > _MOST_LISTED else [])]
    )


def _names(words: Iterable[str]) -> str:
    known = list(words)
    comma = "; " if any(", " in word for word in known) else ", "
    return known[0] if len(known) == 1 else f"{comma.join(known[:-1])} and {known[-1]}"


def _first_upper(text: str) -> str:
    return text[0].upper() + text[1:] if text.islower() and text.isalpha() else text
