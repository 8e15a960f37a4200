from __future__ import annotations

import dataclasses
import json
import weakref

import pytest
from scripted import EASY, FOUR, HARD, PUZZLES, SCRIPT, ScriptedEngine, encode, run, run_and_keep

from nsr.evaluation import samples as samples_module
from nsr.evaluation.compare import bootstrap_interval
from nsr.evaluation.evaluate import Evaluation, Tally, difference, operations_needed
from nsr.evaluation.pass_at_k import pass_at_k
from nsr.evaluation.samples import sample_rows
from nsr.rollout.engine import Completion, SamplingParams
from nsr.tasks.countdown.puzzle import Puzzle


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
    evaluation, rows = run_and_keep(ScriptedEngine(), with_coverage=True)
    # Only EASY has four right samples, all the same equation.
    assert evaluation.distinct_correct.num_puzzles == 1
    assert evaluation.distinct_correct.mean == pytest.approx(1.0)
    equations = [row["equation"] for row in rows if row["puzzle"] == FOUR.key]
    assert equations == [None, "4 * 6 * (3 - 2)", "4 * 6 / (3 - 2)", None]
    assert evaluation.coverage is not None
    assert 0 < evaluation.coverage < 1
    assert run(ScriptedEngine()).coverage is None


def test_splits_by_the_count_of_numbers() -> None:
    three, four = (split for split in run(ScriptedEngine()).splits if split.name.endswith("numbers"))
    assert (three.name, three.num_puzzles, three.accuracy.estimate) == ("3 numbers", 2, pytest.approx(0.5))
    assert (four.name, four.num_puzzles, four.accuracy.estimate) == ("4 numbers", 1, pytest.approx(0.5))
    assert [point.value.estimate for point in four.pass_at_k] == pytest.approx([1 / 2, 5 / 6, 1])


def test_splits_by_the_operations_that_a_puzzle_needs() -> None:
    # 44 + 19 + 35; 2, 3, 4, 6 add up to 15 at most; 1, 1, 2 make 97 in no way.
    assert [operations_needed(puzzle) for puzzle in PUZZLES] == ["+ and - alone", "needs * or /", "no solution"]
    sums, products, none = run(ScriptedEngine()).splits[2:]
    assert (sums.name, sums.num_puzzles, sums.accuracy.estimate) == ("+ and - alone", 1, 1.0)
    assert (products.name, products.num_puzzles, products.accuracy.estimate) == ("needs * or /", 1, 0.5)
    assert (none.name, none.num_puzzles, none.accuracy.estimate) == ("no solution", 1, 0.0)
    assert [split.name for split in run(ScriptedEngine(), [EASY]).splits] == ["3 numbers", "+ and - alone"]


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
    whole, rows = run_and_keep(ScriptedEngine())
    monkeypatch.setattr(samples_module, "CHUNK_SAMPLES", 8)
    engine = ScriptedEngine()
    done: list[int] = []
    parts, rows_of_parts = run_and_keep(engine, progress=done.append)
    assert [len(requests) for requests, _ in engine.calls] == [2, 1]
    assert done == [8, 4]
    assert parts.to_json() == whole.to_json()
    assert rows_of_parts == rows


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
    evaluation, rows = run_and_keep(ScriptedEngine())
    assert rows[7] == {
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
    for kept in json.loads(json.dumps(rows)):
        tally.add(kept)
    again = dataclasses.replace(evaluation, **tally.measures(with_coverage=False))
    assert again == evaluation


def peak(num_samples: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Most completions and most rows that live at one time in an evaluation of 8 puzzles."""
    alive = {"completions": 0, "rows": 0}
    most = dict(alive)

    def follow(what: object, kind: str) -> None:
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])

        def end() -> None:
            alive[kind] -= 1

        weakref.finalize(what, end)

    class Row(dict):
        pass

    class Counted(ScriptedEngine):
        def _completion(self, text: str) -> Completion:
            completion = super()._completion(text)
            follow(completion, "completions")
            return completion

    def counted_row(*parts: object) -> Row:
        row = Row(make_row(*parts))
        follow(row, "rows")
        return row

    make_row = samples_module._row
    puzzles = [Puzzle(numbers=(1, 2), target=target) for target in range(1, 9)]
    with monkeypatch.context() as patch:
        patch.setattr(samples_module, "CHUNK_SAMPLES", 32)
        patch.setattr(samples_module, "_row", counted_row)
        script = {puzzle.key: ["<answer>1+2</answer>"] * num_samples for puzzle in puzzles}
        kept: list[int] = []
        engine = Counted(script)
        result = run(engine, puzzles, num_samples=num_samples, keep=lambda row: kept.append(row["sample"]))
    assert len(kept) == 8 * num_samples
    assert result.verdicts["correct"] == 1 / 8
    assert alive == {"completions": 0, "rows": 0}
    return most["completions"], most["rows"]


def test_memory_does_not_grow_with_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = peak(8, monkeypatch), peak(32, monkeypatch)
    assert few == many
    # A chunk, and at most one before it whose last row is still in hand.
    assert 32 <= many[0] <= 64
    assert 1 <= many[1] <= 2


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
