from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from nsr.evaluation import samples as samples_module
from nsr.evaluation.compare import bootstrap_interval
from nsr.evaluation.evaluate import Evaluation, Tally, difference, evaluate
from nsr.evaluation.passk import pass_at_k
from nsr.evaluation.samples import sample_rows
from nsr.sampling.engine import Completion, Request, SamplingParams
from nsr.task.puzzle import Puzzle

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


def test_numbers_worked_out_by_hand() -> None:
    evaluation = run(ScriptedEngine(), greedy=True, with_coverage=True, step=30)
    assert evaluation.step == 30
    assert evaluation.puzzles == ("19,35,44=98", "2,3,4,6=24", "1,1,2=97")
    assert evaluation.num_correct == (4, 2, 0)
    assert evaluation.accuracy.estimate == pytest.approx((1 + 1 / 2 + 0) / 3)
    curve = {point.k: point for point in evaluation.pass_at_k}
    assert list(curve) == [1, 2, 4]
    assert curve[2].value.estimate == pytest.approx(
        (1 + 5 / 6 + 0) / 3
    )  # one of the 6 pairs of FOUR holds no right one
    assert curve[4].value.estimate == pytest.approx(2 / 3)
    assert [curve[k].rough for k in (1, 2, 4)] == [False, False, True]
    assert evaluation.verdicts == pytest.approx(
        {
            "no_answer": 1 / 12,
            "malformed": 1 / 12,
            "wrong_numbers": 2 / 12,
            "division_by_zero": 1 / 12,
            "wrong_value": 1 / 12,
            "correct": 6 / 12,
        }
    )
    assert evaluation.well_formed_accuracy == pytest.approx(6 / 10)
    assert evaluation.truncated == pytest.approx(1 / 12)
    assert evaluation.greedy_accuracy is not None
    assert evaluation.greedy_accuracy.estimate == pytest.approx(1 / 3)


def test_means_over_samples_and_over_tokens() -> None:
    texts = [text for script in SCRIPT.values() for text in script]
    evaluation = run(ScriptedEngine())
    assert evaluation.response_length == pytest.approx(sum(map(len, texts)) / 12)
    entropy = sum((0.5 if len(text) < 20 else 1.5) * len(text) for text in texts) / sum(map(len, texts))
    assert evaluation.entropy == pytest.approx(entropy)
    assert run(ScriptedEngine(knows_entropy=False)).entropy is None


def test_diversity_of_what_is_right() -> None:
    evaluation = run(ScriptedEngine(), with_coverage=True)
    # Only EASY has four right samples, all the same equation.
    assert evaluation.distinct_correct.num_puzzles == 1
    assert evaluation.distinct_correct.mean == pytest.approx(1.0)
    equations = [row["equation"] for row in evaluation.samples if row["puzzle"] == FOUR.key]
    assert equations == [None, "4 * 6 * (3 - 2)", "4 * 6 / (3 - 2)", None]
    assert evaluation.coverage is not None
    assert 0 < evaluation.coverage < 1
    assert run(ScriptedEngine()).coverage is None


def test_splits_by_the_count_of_numbers() -> None:
    three, four = run(ScriptedEngine()).splits
    assert (three.name, three.num_puzzles, three.accuracy.estimate) == ("3 numbers", 2, pytest.approx(0.5))
    assert (four.name, four.num_puzzles, four.accuracy.estimate) == ("4 numbers", 1, pytest.approx(0.5))
    assert [point.value.estimate for point in four.pass_at_k] == pytest.approx([1 / 2, 5 / 6, 1])


def test_intervals_are_those_of_the_puzzles() -> None:
    evaluation = run(ScriptedEngine())
    for point in evaluation.pass_at_k:
        assert point.value == pytest.approx(bootstrap_interval(pass_at_k(4, evaluation.num_correct, point.k)))


def test_every_evaluation_of_a_run_asks_for_the_same_random_streams() -> None:
    first, later = ScriptedEngine(), ScriptedEngine()
    run(first, step=0, greedy=True)
    run(later, step=120, greedy=True)
    assert first.calls == later.calls
    assert [(p.purpose, p.step, p.seed, p.temperature) for _, p in first.calls] == [
        ("eval", 0, 7, 1.0),
        ("greedy", 0, 7, 0.0),
    ]


def test_twice_the_same_gives_equal_json() -> None:
    first, second = (json.dumps(run(ScriptedEngine(), greedy=True).to_json()) for _ in range(2))
    assert first == second


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(ScriptedEngine())
    monkeypatch.setattr(samples_module, "CHUNK_SAMPLES", 8)
    engine = ScriptedEngine()
    done: list[int] = []
    parts = run(engine, progress=done.append)
    assert [len(requests) for requests, _ in engine.calls] == [2, 1]
    assert done == [8, 4]
    assert parts.to_json() == whole.to_json()
    assert parts.samples == whole.samples


def test_rows_stream_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "CHUNK_SAMPLES", 4)
    engine = ScriptedEngine()
    params = SamplingParams(temperature=1.0, max_tokens=64, seed=7, purpose="eval")
    rows = sample_rows(engine, encode, PUZZLES, params, 4)
    next(rows)
    assert len(engine.calls) == 1  # the other puzzles are not sampled before they are wanted


def test_progress_counts_greedy_completions_too() -> None:
    done: list[int] = []
    run(ScriptedEngine(), greedy=True, progress=done.append)
    assert sum(done) == 3 * 4 + 3


def test_sample_rows_hold_what_an_evaluation_needs() -> None:
    evaluation = run(ScriptedEngine())
    row = evaluation.samples[7]
    assert row == {
        "puzzle": "2,3,4,6=24",
        "sample": 3,
        "text": "<think>hm",
        "tokens": 9,
        "verdict": "no_answer",
        "equation": None,
        "log_prob": -0.5,
        "entropy": 0.5,
        "truncated": True,
    }
    tally = Tally(PUZZLES, 4)
    for kept in json.loads(json.dumps(evaluation.samples)):
        tally.add(kept)
    again = dataclasses.replace(evaluation, **tally.measures(with_coverage=False))
    assert again == evaluation


def test_json_round_trip() -> None:
    for options in ({}, {"greedy": True, "with_coverage": True}):
        evaluation = run(ScriptedEngine(), **options)
        record = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
        again = Evaluation.from_json(record)
        assert again == evaluation
        assert again.to_json() == evaluation.to_json()
        assert list(record)[:3] == ["step", "temperature", "max_tokens"]


@pytest.mark.parametrize("record", [{}, {"step": 1}, {"pass_at_k": None}])
def test_something_else_is_no_evaluation(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no evaluation of this version"):
        Evaluation.from_json(record)


def test_the_difference_is_paired_by_puzzle() -> None:
    before = run(ScriptedEngine())
    better = {**SCRIPT, HARD.key: ["<answer>1</answer>"] * 4, FOUR.key: ["<answer>4*6*(3-2)</answer>"] * 4}
    after = run(ScriptedEngine(better), step=10)
    assert difference(before, after).estimate == pytest.approx((0 + 1 / 2 + 0) / 3)
    assert difference(before, after, k=2).estimate == pytest.approx((0 + 1 / 6 + 0) / 3)
    assert difference(before, before) == pytest.approx(bootstrap_interval([0.0] * 3, bounds=(-1, 1)))
    with pytest.raises(ValueError, match="not of the same puzzles"):
        difference(before, run(ScriptedEngine(), PUZZLES[:2]))


def test_one_puzzle_is_enough_to_go_on() -> None:
    evaluation = run(ScriptedEngine(), [EASY], num_samples=1)
    assert evaluation.accuracy == pytest.approx((1.0, 0.025, 1.0))
    assert evaluation.distinct_correct.mean is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"puzzles": []}, "given none"),
        ({"puzzles": [EASY, EASY]}, "given one twice"),
    ],
)
def test_refuses_settings_that_make_no_evaluation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(ScriptedEngine(), **changes)
