"""The committed results come from the committed data, and the data's statistics from separate code are the same."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest, bootstrap

from nsr.evaluation.pass_at_k import k_values
from nsr.runs.files import read_json
from study.best import weights_digest
from study.choice import all_tries, choose
from study.keep import read_kept, read_sets
from study.numbers import curve, curve_differences, models_of
from study.results import draw, render, with_block
from study.sets import DEV, REAL, REAL_DEV_LONG, REAL_LONG, SETS, PuzzleSet, read_set, write_sets
from study.tables import Results

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "results" / "data"
MODEL = ROOT / "docs" / "results" / "model"
MAX_BYTES = 10_000_000
GLYPH = re.compile(r"DejaVu[A-Za-z]+-[0-9a-f]+")
"""The name of a letter's shape: the number in it depends on what the process has drawn before."""
MEASURED = [one for one in SETS if read_kept(DATA, one)]
BEYOND = [one for one in (REAL_DEV_LONG, REAL_LONG) if read_kept(DATA / "best", one)]

each_set = pytest.mark.parametrize("one", MEASURED, ids=lambda one: one.name)


def test_the_development_puzzles_were_measured() -> None:
    assert DEV in MEASURED


def test_the_rates_follow_from_the_counts() -> None:
    found = all_tries(read_kept(DATA, DEV))
    record = read_json(DATA / "rates.json")
    assert [one._asdict() for one in found] == record["tries"]
    assert choose(found) == record["chosen"]


def test_the_sets_are_those_that_anyone_makes_again(tmp_path: Path) -> None:
    write_sets(tmp_path, None)
    kept = read_sets(DATA)
    for one in SETS:
        if one.path(tmp_path).exists():
            assert kept[one.name].puzzles == [puzzle.key for puzzle in read_set(tmp_path, one)]


def test_no_training_met_a_puzzle_of_the_synthetic_sets() -> None:
    places = read_json(DATA / "overlap.json")["sets"]
    assert places.keys() == {one.name for one in SETS if one is not DEV}
    assert all(not found["training"] for name, found in places.items() if name != REAL.name)
    assert not places[REAL.name]["warm_start"]  # those rows were left out of it


def test_the_documents_are_what_the_data_give() -> None:
    results = Results(DATA)
    assert (DATA.parent / "README.md").read_text() == render(results, "results.md.j2")
    readme = (ROOT / "README.md").read_text()
    assert readme == with_block(readme, render(results, "readme.md.j2"))


def test_the_figures_are_what_the_data_give(tmp_path: Path) -> None:
    draw(Results(DATA), tmp_path)
    figures = sorted(tmp_path.glob("*.svg"))
    assert [path.stem for path in figures] == ["heating", "pass_at_k", "training"]
    for path in figures:
        made, committed = (GLYPH.sub("glyph", file.read_text()) for file in (path, DATA.parent / path.name))
        assert made == committed


def test_the_published_model_is_the_measured_one() -> None:
    record = DATA / "best" / "weights.json"
    assert MODEL.exists() == record.exists()
    if record.exists():
        assert weights_digest(MODEL) == read_json(record)["sha256"]
        assert sum(path.stat().st_size for path in MODEL.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize(
    ("data", "one"),
    [*((DATA, one) for one in MEASURED), *((DATA / "best", one) for one in BEYOND)],
    ids=lambda value: value.name,
)
def test_counts_are_whole(data: Path, one: PuzzleSet) -> None:
    kept_set = read_sets(data)[one.name]
    assert len(kept_set.puzzles) == one.num_puzzles
    for model in read_kept(data, one).values():
        assert model.num_samples == one.num_samples
        assert model.correct == [sum(counts) for counts in model.equations]
        assert sum(model.verdicts.values()) == one.num_puzzles * one.num_samples
        assert model.verdicts["correct"] == sum(model.correct)
        assert all(
            len(counts) <= solutions for counts, solutions in zip(model.equations, kept_set.solutions, strict=True)
        )


def by_hand(num_samples: int, num_correct: int, k: int) -> float:
    return float(1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k)))


@each_set
def test_pass_at_k_by_exact_binomials(one: PuzzleSet) -> None:
    base = models_of(read_kept(DATA, one), "base")
    ks = k_values(one.num_samples)
    expected = [np.mean([by_hand(one.num_samples, correct, k) for correct in base[0].correct]) for k in ks]
    assert [interval.estimate for interval in curve(base, ks)] == pytest.approx(expected, abs=1e-9)


@each_set
def test_intervals_by_a_library(one: PuzzleSet) -> None:
    measured = read_kept(DATA, one)
    base, other = models_of(measured, "base"), [max(measured.values(), key=lambda model: sum(model.correct))]
    values = [np.array([by_hand(one.num_samples, c, 4) for c in models[0].correct]) for models in (base, other)]
    (ours,), (change,) = curve(base, [4]), curve_differences(base, other, [4])
    assert [ours.low, ours.high] == pytest.approx(by_scipy(values[0], "BCa", two_sided=False), abs=0.004)
    expected = by_scipy(values[1] - values[0], "percentile", two_sided=True)
    assert [change.low, change.high] == pytest.approx(expected, abs=0.004)


def by_scipy(values_P: npt.NDArray[np.float64], method: str, *, two_sided: bool) -> list[float]:
    """The interval of the mean. Where all puzzles say 0, no resampling can: what the exact binomial interval allows."""
    if not values_P.any():
        bound = float(binomtest(0, len(values_P)).proportion_ci(0.95, "exact").high)
        return [-bound if two_sided else 0.0, bound]
    found = bootstrap((values_P,), np.mean, n_resamples=10_000, method=method, rng=1).confidence_interval
    return [float(found.low), float(found.high)]
