from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretend_runs import NUM_PUZZLES, puzzles_of, train_run

from nsr.evaluation.compare import Interval
from nsr.report.categories import Kinds
from nsr.report.collect import collect
from nsr.report.findings import findings, headline, notes, reading
from nsr.report.methods import arrange
from nsr.report.results import Change, SectionResult, results
from nsr.tasks.countdown.solvability import sums_suffice

HALF = NUM_PUZZLES // 2


def results_of(folder: Path) -> list[SectionResult]:
    return results(arrange(collect([folder]).runs)[0])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SectionResult:
    """NSR solves each puzzle twice as often as its base (2 of 8 -> 4 of 8), PSR every other puzzle more, one less."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (42, 43):
        train_run(folder, "NSR", seed, before=[1, 3] * HALF, after=[3, 5] * HALF)
        train_run(folder, "PSR", seed, before=[1, 3] * HALF, after=[2, 2] * HALF)
    (made,) = results_of(folder)
    return made


def test_numbers_by_hand(result: SectionResult) -> None:
    base, psr, nsr = result.rows
    assert result.top_k == 4  # half of 8 samples
    assert [row.arm.method.label for row in result.rows] == ["base", "PSR", "NSR"]
    assert base.accuracy.estimate == pytest.approx(2 / 8)
    assert nsr.accuracy.estimate == pytest.approx(4 / 8)
    change = nsr.change(1)
    assert change is not None
    assert change.value.estimate == pytest.approx(2 / 8)
    assert change.stands
    # pass@4 of 8 with c right: 1 - C(8-c, 4) / 70. c = 1: 35/70 miss; 3: 5/70; 5: 0.
    assert base.at(4).estimate == pytest.approx(1 - (35 + 5) / 140)
    assert nsr.at(4).estimate == pytest.approx(1 - (5 + 0) / 140)
    level = psr.change(1)
    assert level is not None
    assert level.value.estimate == pytest.approx(0)
    assert not level.stands
    assert base.changes == ()


def test_pairs_by_hand(result: SectionResult) -> None:
    (pair,) = result.pairs
    assert (pair.before.method.label, pair.after.method.label) == ("PSR", "NSR")
    assert [change.k for change in pair.changes] == [1, 4]
    assert pair.changes[0].value.estimate == pytest.approx(2 / 8)
    assert pair.changes[0].stands


def test_the_words_say_what_the_numbers_say(result: SectionResult) -> None:
    said = {finding.text: finding.kind for finding in findings(result)}
    rise = next(text for text in said if text.startswith("Accuracy rose with NSR (+25.0 points ["))
    assert said[rise] == "up"
    none = next(text for text in said if text.startswith("No change of accuracy from the base can be claimed for PSR."))
    assert said[none] == "none"
    assert any(text.startswith("NSR has more accuracy than PSR, by 25.0 points [") for text in said)
    assert any("over 2 seeds of the training. So few seeds" in text for text in notes([result]))
    assert headline([result]).startswith("Of 2 trained methods, 1 raised accuracy, and for 1 no change can be claimed")
    assert any("over the 4 changes from a base, and apart from that over the 2" in text for text in reading([result]))


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    train_run(tmp_path, "NSR")
    (made,) = results_of(tmp_path)
    assert any("trained with one seed" in text for text in notes([made]))


def test_holm_takes_back_what_stands_alone(tmp_path: Path) -> None:
    """One of many methods has a change that leaves out 0 by a little: with the others beside it, it is not claimed."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 8, NUM_PUZZLES)
    small = base + (np.arange(NUM_PUZZLES) % 6 == 0)  # 4 of 24 puzzles, none of which is drawn in 1.3% of the draws
    train_run(tmp_path, "NSR", before=base.tolist(), after=small.tolist())
    (alone,) = results_of(tmp_path)
    change = alone.rows[1].change(1)
    assert change is not None
    assert change.alone
    for number in range(8):
        train_run(tmp_path, "PSR", before=base.tolist(), after=base.tolist(), lr=1e-6 * (number + 1), name=f"p{number}")
    (many,) = results_of(tmp_path)
    change = next(row for row in many.rows if row.arm.method.objective == "NSR").change(1)
    assert change is not None
    assert change.alone
    assert not change.stands
    texts = [finding.text for finding in findings(many)]
    assert any("leaves out 0 by itself, but not after Holm's correction, for NSR" in text for text in texts)
    assert not any(finding.kind in ("up", "down") for finding in findings(many))


ends = st.floats(-1, 1).map(lambda value: round(value, 4))


@given(st.tuples(ends, ends, ends).map(sorted), st.floats(0, 1))
def test_nothing_is_claimed_whose_interval_holds_0(values: list[float], adjusted: float) -> None:
    low, estimate, high = values
    change = Change(k=1, value=Interval(estimate, low, high), p=adjusted, adjusted=adjusted)
    if low <= 0 <= high or adjusted > 0.05:
        assert not change.stands


def test_claims_in_the_words_are_exactly_the_changes_that_stand(result: SectionResult) -> None:
    text = " ".join(finding.text for finding in findings(result) if finding.kind in ("up", "down"))
    for row in result.rows:
        for change in row.changes:
            if change.k in result.ks:
                assert (f"{row.arm.method.label} ({change.value.points()})" in text) == change.stands


def test_kinds_of_puzzles_by_hand(tmp_path: Path) -> None:
    """Puzzles of 3 numbers go from 2 to 6 right samples of 8, those of 4 stay at 2."""
    sizes = [len(puzzle.numbers) for puzzle in puzzles_of(42)]
    assert {3, 4} == set(sizes)
    train_run(tmp_path, "NSR", before=2, after=[6 if size == 3 else 2 for size in sizes])
    (section,) = arrange(collect([tmp_path]).runs)[0]
    table = Kinds().table(section)
    assert table is not None
    assert table.kinds == ("3 numbers", "4 numbers", "+ and - alone", "needs * or /")
    base, nsr = table.rows
    assert [cell and (cell[0].estimate, cell[1]) for cell in base.cells] == [(0.25, None)] * 4
    changes = [cell[1].estimate for cell in nsr.cells[:2] if cell and cell[1]]
    assert changes == [pytest.approx(0.5), pytest.approx(0.0)]
    weights = [sums_suffice(puzzle) for puzzle in puzzles_of(42)]
    alone = [size == 3 for size, sums in zip(sizes, weights, strict=True) if sums]
    cell = nsr.cells[2]
    assert cell
    assert cell[0].estimate == pytest.approx(0.25 + 0.5 * np.mean(alone))
