"""The collapse watch: values by hand, real runs, and how often it is wrong where nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nsr.rollout.engine import Completion
from nsr.rollout.rollout import RolloutGroup
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import generate
from nsr.training.clustered_errors import ratio_error, standard_errors
from nsr.training.collapse import STRETCHES, CollapseWatch
from nsr.training.spikes import PROPORTION

REAL = Path(__file__).parent / "real_metrics.jsonl"
"""Lines of metrics.jsonl of real runs, cut to what is read here, to six digits: `nsr train --preset tiny` with
`--objective NSR`, `PSR` and `RLVR`, 80 steps each at 3e-5, and 20 steps of NSR with `--lr 3e-4`; one thread."""


def line(step: int, accuracy: float = 0.4, entropy: float = 0.2, length: float = 80.0, truncation: float = 0.5):
    return {
        "step": step,
        "correct_ratio": accuracy,
        "correct_ratio_se": 0.02,
        "entropy": entropy,
        "entropy_se": 0.004,
        "response_length": length,
        "response_length_se": 1.0,
        "truncation": truncation,
        "truncation_se": 0.02,
    }


def alarms(lines, groups: int = 16):
    watch = CollapseWatch(groups)
    return [(alarm.step, alarm.kind) for record in lines for alarm in watch.look(record)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        # 4 steps of 0.02 each are known to 0.01, their difference to 0.01414: 5 of it are 0.0707.
        ({"accuracy": 0.26}, "accuracy"),
        ({"entropy": 0.31}, "entropy"),
        ({"entropy": 0.09}, "entropy"),
        ({"length": 125.0}, "length"),
        ({"length": 35.0}, "length"),
        ({"truncation": 0.7}, "truncation"),
    ],
)
def test_each_kind_is_told_once_and_as_soon_as_four_steps_show_it(change, kind):
    lines = [line(step) for step in range(1, 11)] + [line(step, **change) for step in range(11, 30)]
    assert alarms(lines) == [(14, kind)]


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 0.27},  # less than a third lost
        {"accuracy": 0.9},
        {"entropy": 0.29},
        {"entropy": 0.11},
        {"length": 115.0},
        {"truncation": 0.65},  # 35% end, of 50% that did
        {"truncation": 0.0},
    ],
)
def test_what_does_not_matter_is_not_told(change):
    lines = [line(step) for step in range(1, 11)] + [line(step, **change) for step in range(11, 30)]
    assert alarms(lines) == []


def test_what_the_noise_explains_is_not_told():
    def noisy(step, accuracy):
        return {**line(step, accuracy=accuracy), "correct_ratio_se": 0.08}  # 5 errors of a difference: 0.283

    lines = [noisy(step, 0.4) for step in range(1, 9)]
    assert alarms([*lines, *(noisy(step, 0.13) for step in range(9, 16))]) == []
    assert alarms([*lines, *(noisy(step, 0.11) for step in range(9, 20))]) == [(12, "accuracy")]
    # An error that is small because nothing is right does not count for less than that of the better stretch.
    sure = [{**line(step, accuracy=0.13), "correct_ratio_se": 0.0} for step in range(9, 16)]
    assert alarms([*lines, *sure]) == []
    # Eight steps know it better: 5 errors of their difference are 0.2, and 0.13 is 0.27 away.
    assert alarms([*lines, *(noisy(step, 0.13) for step in range(9, 30))]) == [(16, "accuracy")]


def test_compared_is_the_best_stretch_before():
    # It learns from 0.2 to 0.6, then falls back: to 0.5 is no collapse of 0.6, to 0.3 is one.
    rise = [line(step, accuracy=0.2 if step <= 4 else 0.6) for step in range(1, 13)]
    assert alarms([*rise, *(line(step, accuracy=0.5) for step in range(13, 20))]) == []
    watch = CollapseWatch(16)
    watch.replay([*rise, *(line(step, accuracy=0.3) for step in range(13, 20))])
    (alarm,) = watch.alarms
    assert alarm.reason == (
        "accuracy 37.5% in steps 12 to 15, against 60.0% in steps 5 to 8, where accuracy was best: "
        "15.9 standard errors away"
    )


def test_growth_with_learning_is_not_told():
    # Responses twice as long and half the entropy, slowly, while accuracy rises: the best stretch moves along.
    lines = [
        line(step, accuracy=0.2 + step / 400, entropy=0.2 - step / 2000, length=40 + step / 2) for step in range(1, 200)
    ]
    assert alarms(lines) == []


def test_nothing_at_all_is_no_collapse():
    zero = dict.fromkeys(line(1), 0.0)
    assert alarms([{**zero, "step": step} for step in range(1, 20)]) == []


def test_too_few_puzzles_or_lines_without_errors_are_silent():
    lines = [line(step, accuracy=0.4 if step < 10 else 0.0) for step in range(1, 20)]
    assert alarms(lines) == [(11, "accuracy")]
    assert alarms(lines, groups=7) == []
    old = [{name: value for name, value in one.items() if not name.endswith("_se")} for one in lines]
    assert alarms(old) == []
    # An engine that knows no entropy: the rest is looked at.
    assert alarms([{k: v for k, v in one.items() if "entropy" not in k} for one in lines]) == [(11, "accuracy")]


def test_a_run_that_is_taken_up_decides_alike():
    lines = [line(step, accuracy=0.4 if step < 10 else 0.1, entropy=0.2 if step < 15 else 0.5) for step in range(1, 25)]
    whole = CollapseWatch(16)
    whole.replay(lines)
    for cut in range(len(lines)):
        watch = CollapseWatch(16)
        watch.replay(lines[:cut])
        known = list(watch.alarms)
        for record in lines[cut:]:
            known += watch.look(record)
        assert known == whole.alarms == watch.alarms


def test_standard_errors_by_hand():
    # Four groups of 8 with 1, 2, 3 and 6 right: the standard deviation of their shares over the root of 4.
    shares = np.array([1, 2, 3, 6]) / 8
    assert ratio_error(np.array([1.0, 2, 3, 6]), np.full(4, 8.0)) == pytest.approx(shares.std(ddof=1) / 2)

    def group(right, lengths, entropy):
        completions = tuple(
            Completion(
                token_ids=tuple(range(length)),
                text="",
                log_probs_T=np.zeros(length, np.float32),
                entropy=entropy,
                finish_reason="length",
            )
            for length in lengths
        )
        verdicts = tuple(Verdict.CORRECT if one else Verdict.NO_ANSWER for one in right)
        return RolloutGroup(puzzle=generate(1)[0], prompt_ids=(1,), completions=completions, verdicts=verdicts)

    groups = [group((1, 1), (2, 2), 0.5), group((0, 0), (4, 4), 0.5)]
    errors = standard_errors(groups)
    # Means 1 and 0 of two groups: sd 0.7071, over the root of 2. Lengths 2 and 4: sd 1.4142, over the root of 2.
    assert errors["correct_ratio_se"] == pytest.approx(0.5)
    assert errors["response_length_se"] == pytest.approx(1.0)
    assert errors["truncation_se"] == 0.0
    assert errors["entropy_se"] == pytest.approx(0.0)
    assert standard_errors(groups[:1]) == {}
    assert "entropy_se" not in standard_errors([groups[0], group((0, 0), (4, 4), None)])


def real_runs() -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {}
    for text in REAL.read_text().splitlines():
        record = json.loads(text)
        runs.setdefault(record.pop("run"), []).append(record)
    return runs


def test_a_real_collapse_is_seen_within_20_steps_and_healthy_runs_are_silent():
    runs = real_runs()
    collapsed = alarms(runs.pop("NSR, lr 3e-4"))
    assert collapsed
    assert collapsed[0][0] <= 20
    assert runs
    for name, lines in runs.items():
        assert len(lines) == 80, name
        assert alarms(lines) == [], name


def test_the_gradients_of_real_runs_are_far_from_refused():
    largest = 0.0
    for lines in real_runs().values():
        norms = [record["grad_norm"] for record in lines if "grad_norm" in record]
        for index in range(5, len(norms)):
            largest = max(largest, norms[index] / float(np.median(norms[max(0, index - 20) : index])))
    assert largest < PROPORTION / 20


def test_false_alarms_are_rare():
    """Stationary runs of 200 steps, of 16 puzzles x 8 samples whose difficulty varies as widely as real ones' does."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        lines = []
        for step in range(1, 201):
            right_P = rng.binomial(8, rng.beta(0.6, 1.0, size=16)) / 8
            cut_P = rng.binomial(8, 1 - right_P * 0.9) / 8
            record = line(step, accuracy=right_P.mean(), truncation=cut_P.mean())
            record |= {
                "correct_ratio_se": right_P.std(ddof=1) / 4,
                "truncation_se": cut_P.std(ddof=1) / 4,
                "entropy": 0.17 + 0.0075 * rng.standard_normal(),
                "entropy_se": 0.0075,
            }
            lines.append(record)
        wrong += bool(alarms(lines))
    assert wrong == 0
    assert STRETCHES == (4, 8)  # for which the odds in docs/reliability.md are
