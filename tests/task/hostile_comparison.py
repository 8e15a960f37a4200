"""The grader and the oracle on a stream of hostile texts.

`python tests/task/hostile_comparison.py 10000000` compares so many and prints what came out; the tests do the same with
fewer. Nothing of the stream is kept but the slowest few, so memory is flat.
"""

from __future__ import annotations

import heapq
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from hostile_oracle import oracle
from hostile_texts import Hostile, hostile_texts

from nsr.task.grader import Verdict, grade
from nsr.task.puzzle import Puzzle


@dataclass
class Outcome:
    """What a comparison found."""

    count: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    right_kinds: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)
    slowest: list[tuple[float, int, Hostile]] = field(default_factory=list)
    """(processor seconds of the first grading, number of the text, text): the slowest few, as a heap."""


_FEW = 20


def compare(count: int, seed: int = 0, progress: Callable[[Outcome], None] = lambda outcome: None) -> Outcome:
    """Grade `count` texts by both. What raises in the grader raises here."""
    outcome = Outcome()
    clock = time.process_time
    for number, (hostile, _) in enumerate(zip(hostile_texts(seed), range(count), strict=False)):
        started = clock()
        verdict = grade(hostile.puzzle, hostile.text)
        seconds = clock() - started
        if len(outcome.slowest) < _FEW:
            heapq.heappush(outcome.slowest, (seconds, number, hostile))
        elif seconds > outcome.slowest[0][0]:
            heapq.heapreplace(outcome.slowest, (seconds, number, hostile))
        expected = oracle(hostile.puzzle, hostile.text)
        if verdict is not expected and len(outcome.disagreements) < _FEW:
            outcome.disagreements.append(f"{verdict.name} but {expected.name}: {ascii(hostile)[:1000]}")
        outcome.count += 1
        outcome.verdicts[verdict] += 1
        outcome.kinds[hostile.kind] += 1
        outcome.right_kinds[hostile.kind] += verdict is Verdict.CORRECT
        if number % 100_000 == 99_999:
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
    print(", ".join(f"{verdict.value} {outcome.verdicts[verdict]:,}" for verdict in Verdict))
    print(", ".join(f"{kind} {n:,} ({outcome.right_kinds[kind]:,} right)" for kind, n in outcome.kinds.items()))
    seconds, hostile = slowest(outcome)
    text = ascii(hostile.text)
    print(
        f"slowest: {seconds * 1e3:.2f} ms, {hostile.kind}, {len(hostile.text):,} characters: {text[:60]}...{text[-60:]}"
    )


if __name__ == "__main__":
    main()
