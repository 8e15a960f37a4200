"""The grader and the oracle on a stream of hostile texts.

`python tests/tasks/hostile_comparison.py 10000000` compares so many and prints what came out; the tests do the same
with fewer. Nothing of the stream is kept but the slowest few, so memory is flat.
"""

from __future__ import annotations

import heapq
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from types import FrameType
from typing import Any

from hostile_oracle import oracle
from hostile_texts import Hostile, hostile_texts

from nsr.tasks.countdown.grader import Verdict, grade
from nsr.tasks.countdown.puzzle import Puzzle


@dataclass
class Outcome:
    """What a comparison found."""

    count: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Texts by (kind, value of the verdict)."""
    disagreements: list[str] = field(default_factory=list)
    """The first few."""
    slowest: list[tuple[float, int, Hostile]] = field(default_factory=list)
    """(processor seconds of the first grading, number of the text, text): the slowest few, as a heap."""

    def by_kind(self, verdict: Verdict | None = None) -> Counter[str]:
        """Texts by kind: all of them, or those with this verdict."""
        counts: Counter[str] = Counter()
        for (kind, value), count in self.counts.items():
            counts[kind] += count if verdict is None or verdict.value == value else 0
        return counts


_FEW = 20


def compare(count: int, seed: int = 0, progress: Callable[[Outcome], None] = lambda outcome: None) -> Outcome:
    """Grade `count` texts by both. What raises in the grader raises here."""
    outcome = Outcome()
    counts, slow = outcome.counts, outcome.slowest
    clock = time.process_time
    for number, hostile in enumerate(islice(hostile_texts(seed), count), start=1):
        puzzle, text, kind = hostile
        started = clock()
        verdict = grade(puzzle, text)
        seconds = clock() - started
        if len(slow) < _FEW:
            heapq.heappush(slow, (seconds, number, hostile))
        elif seconds > slow[0][0]:
            heapq.heapreplace(slow, (seconds, number, hostile))
        expected = oracle(puzzle, text)
        if verdict is not expected and len(outcome.disagreements) < _FEW:
            outcome.disagreements.append(f"{verdict.name} but {expected.name}: {ascii(hostile)[:1000]}")
        counts[kind, verdict.value] += 1
        outcome.count = number
        if number % 100_000 == 0:
            progress(outcome)
    return outcome


def slowest(outcome: Outcome) -> tuple[float, Hostile]:
    """The slowest text by the best of three gradings, and its processor seconds."""
    again = [(min(_seconds(hostile) for _ in range(3)), number, hostile) for _, number, hostile in outcome.slowest]
    seconds, _, hostile = max(again)
    return seconds, hostile


def _seconds(hostile: Hostile) -> float:
    started = time.process_time()
    grade(hostile.puzzle, hostile.text)
    return time.process_time() - started


def lines_run(puzzle: Puzzle, text: str) -> int:
    """How many lines of Python a grading runs: its work, the same at every run and on every machine."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        grade(puzzle, text)
    finally:
        sys.settrace(before)
    return lines


def main() -> None:
    """Compare as many as the command line says, and print what came out."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0

    def progress(outcome: Outcome) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.process_time()
        print(f"{outcome.count:,} texts, {seconds:.0f} s, {memory:.0f} MiB, {len(outcome.disagreements)} disagree")
        sys.stdout.flush()

    outcome = compare(count, seed, progress)
    progress(outcome)
    print(*outcome.disagreements, sep="\n")
    totals = {verdict: outcome.by_kind(verdict) for verdict in Verdict}
    print(", ".join(f"{verdict.value} {by_kind.total():,}" for verdict, by_kind in totals.items()))
    right = totals[Verdict.CORRECT]
    print(", ".join(f"{kind} {number:,} ({right[kind]:,} right)" for kind, number in outcome.by_kind().items()))
    seconds, hostile = slowest(outcome)
    print(f"slowest: {seconds * 1e3:.2f} ms, {hostile.kind}, {len(hostile.text):,} characters")
    print(f"{ascii(hostile.text)[:100]} ... {ascii(hostile.text)[-100:]}")


if __name__ == "__main__":
    main()
