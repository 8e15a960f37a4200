"""An engine that says what a script says, for evaluations whose numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nsr.evaluation.evaluate import Evaluation, evaluate
from nsr.evaluation.samples import SampleRow
from nsr.rollout.engine import Completion, Request, SamplingParams
from nsr.tasks.countdown.puzzle import Puzzle

EASY = Puzzle(numbers=(44, 19, 35), target=98)
FOUR = Puzzle(numbers=(2, 3, 4, 6), target=24)
HARD = Puzzle(numbers=(1, 1, 2), target=97)
PUZZLES = (EASY, FOUR, HARD)

RIGHT, SAME, WRONG = "<answer>44+19+35</answer>", "<answer>35+44+19</answer>", "<answer>44+19-35</answer>"
SCRIPT = {
    EASY.key: [RIGHT, SAME, RIGHT, RIGHT],
    FOUR.key: ["<answer>2*3*4</answer>", "<answer>4*6*(3-2)</answer>", "<answer>6*4/(3-2)</answer>", "<think>hm"],
    HARD.key: ["<answer>97</answer>", "<answer>1+1=2</answer>", "<answer>2/(1-1)</answer>", "<answer>1+1+2</answer>"],
}
GREEDY = {EASY.key: [RIGHT], FOUR.key: [WRONG], HARD.key: [WRONG]}


class ScriptedEngine:
    """Says what the script says; a token a character, entropy 0.5 at short and 1.5 at long completions."""

    def __init__(self, script: dict[str, list[str]] = SCRIPT, knows_entropy: bool = True) -> None:
        self.script = script
        self.knows_entropy = knows_entropy
        self.calls: list[tuple[list[Request], SamplingParams]] = []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        self.calls.append((list(requests), params))
        script = GREEDY if params.temperature == 0 else self.script
        return [[self._completion(script[r.key][i]) for i in range(r.num_samples)] for r in requests]

    def load_weights(self, policy: object) -> None:
        raise AssertionError(f"an evaluation does not touch the weights: {policy}")

    def _completion(self, text: str) -> Completion:
        length = len(text)
        return Completion(
            token_ids=tuple(range(length)),
            text=text,
            log_probs_T=np.linspace(-1, 0, length, dtype=np.float32),
            entropy=(0.5 if length < 20 else 1.5) if self.knows_entropy else None,
            finish_reason="stop" if text.endswith("</answer>") else "length",
        )


def encode(puzzle: Puzzle) -> tuple[int, ...]:
    return tuple(map(ord, puzzle.key))


def run(engine: ScriptedEngine, puzzles: Sequence[Puzzle] = PUZZLES, **changes: object) -> Evaluation:
    settings: dict = {"num_samples": 4, "temperature": 1.0, "max_tokens": 64, "seed": 7, **changes}
    return evaluate(engine, encode, puzzles, **settings)


def run_and_keep(engine: ScriptedEngine, **changes: object) -> tuple[Evaluation, list[SampleRow]]:
    rows: list[SampleRow] = []
    return run(engine, keep=rows.append, **changes), rows
