"""How quick the task's parts are, in work a second of one core: `python benchmarks/task.py`.

Counts processor time, so that what else runs on the machine matters little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from nsr.tasks.countdown.grader import grade
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solvability import is_solvable
from nsr.tasks.countdown.solver import solve

PUZZLE = Puzzle(numbers=(44, 19, 35, 7), target=98)
ANSWERS = ("44+35+19", "44 + 35 + 19 * 7", "(44+35)*7-19", "(44-7)/19+35", "44*35=98")
COMPLETIONS = [
    f"<think>44+35=79,79-19=60\n44-19=25,25*7=175\n44+35=79,79+19=98,98-7=91,98*7=686</think><answer>{answer}</answer>"
    for answer in ANSWERS
]
# What a search for tags and a parser find hardest: the longest text there should be, and the longest answer there is.
LONG = [
    *(tag * (1_000_000 // len(tag)) for tag in ("<", "</answer", "</answer>", "<answer></answer>", "x\u4e00")),
    f"<answer>{'<' * 500_000}</answer>{'<' * 500_000}",
    f"<answer>{'1+1*-(' * 50}1{')' * 50}</answer>",
    f"<answer>{'1+' * 249}1</answer>",
    f"<answer>{'-' * 499}1</answer>",
]


def main() -> None:
    by_size = {size: generate(200, seed=1, sizes=(size,)) for size in (3, 4, 5)}
    report("gradings", len(COMPLETIONS) * 400, lambda: [grade(PUZZLE, text) for text in COMPLETIONS * 400])
    report("puzzles generated, the default", 20_000, lambda: generate(20_000, seed=1))
    slowest = max(min(measured(lambda t=text: grade(PUZZLE, t)) for _ in range(3)) for text in LONG)
    print(f"{'a grading at worst, a million characters':<44}{slowest * 1e3:>12.2f} ms")
    for size, count in ((3, 200), (4, 200), (5, 3)):
        report(f"puzzles solved, {size} numbers", count, lambda s=size, n=count: [solve(p) for p in by_size[s][:n]])
    for size in (3, 4, 5):
        report(
            f"puzzles tested for a solution, {size} numbers", 200, lambda s=size: [is_solvable(p) for p in by_size[s]]
        )


def report(what: str, count: int, work: Callable[[], object]) -> None:
    """Prints the best of three."""
    seconds = min(measured(work) for _ in range(3))
    print(f"{what:<44}{count / seconds:>12,.0f} /s")


def measured(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
