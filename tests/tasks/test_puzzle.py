"""The record's checks, and the generator against what was measured on the real rows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsr.tasks.countdown import puzzle as puzzle_module
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solvability import is_solvable

REAL_DATA = Path(os.environ.get("NSR_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "countdown_3to4"

# Measured on the train rows of Countdown-Tasks-3to4 (9,991 rows): mean and quartiles of numbers and of targets, the
# share that repeats a number and the share that + and - alone solve.
RECORDED: dict[int, dict[str, Any]] = {
    3: {"numbers": (44.9, 19, 43, 70), "targets": (54.2, 31, 53, 77), "repeats": 0.036, "plain": 0.706},
    4: {"numbers": (45.3, 19, 44, 70), "targets": (55.3, 32, 55, 78), "repeats": 0.058, "plain": 0.344},
}
ALL_RECORDED = {"numbers": (45.1, 19, 43, 70), "targets": (54.7, 32, 55, 78), "repeats": 0.047, "plain": 0.522}


def measured(puzzles: Sequence[Puzzle]) -> dict[str, Any]:
    numbers = np.concatenate([puzzle.numbers for puzzle in puzzles])
    targets = np.array([puzzle.target for puzzle in puzzles])
    return {
        "numbers": (numbers.mean(), *np.quantile(numbers, [0.25, 0.5, 0.75])),
        "targets": (targets.mean(), *np.quantile(targets, [0.25, 0.5, 0.75])),
        "repeats": np.mean([len(set(puzzle.numbers)) < len(puzzle.numbers) for puzzle in puzzles]),
        "plain": np.mean([solved_by_plus_and_minus(puzzle) for puzzle in puzzles]),
    }


def solved_by_plus_and_minus(puzzle: Puzzle) -> bool:
    signs = itertools.product((1, -1), repeat=len(puzzle.numbers))
    return any(sum(map(int.__mul__, puzzle.numbers, choice)) == puzzle.target for choice in signs)


def assert_close(found: dict[str, Any], recorded: dict[str, Any], places: float, shares: float) -> None:
    assert found["numbers"] == pytest.approx(recorded["numbers"], abs=places)
    assert found["targets"] == pytest.approx(recorded["targets"], abs=places)
    assert found["repeats"] == pytest.approx(recorded["repeats"], abs=shares / 2)
    assert found["plain"] == pytest.approx(recorded["plain"], abs=shares)


@pytest.fixture(scope="module")
def puzzles() -> list[Puzzle]:
    return generate(12_000, seed=7)


def test_the_default_imitates_the_real_rows(puzzles: list[Puzzle]) -> None:
    """Within 1.5 of each mean and quartile, 1 point of the repeats and 2 of the plain sums; for one size twice that."""
    assert_close(measured(puzzles), ALL_RECORDED, places=1.5, shares=0.02)
    for size, recorded in RECORDED.items():
        part = [puzzle for puzzle in puzzles if len(puzzle.numbers) == size]
        assert len(part) == len(puzzles) // 2
        assert_close(measured(part), recorded, places=3, shares=0.04)
    numbers = [number for puzzle in puzzles for number in puzzle.numbers]
    assert (min(numbers), max(numbers)) == (1, 99)
    assert {puzzle.target for puzzle in puzzles} == set(range(10, 101))


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real rows are not here")
def test_the_recorded_numbers_are_those_of_the_real_rows() -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(REAL_DATA / "train.parquet").to_pylist()
    real = [Puzzle(numbers=row["nums"], target=row["target"]) for row in rows]
    assert_close(measured(real), ALL_RECORDED, places=0.06, shares=0.0012)
    for size, recorded in RECORDED.items():
        assert_close(measured([p for p in real if len(p.numbers) == size]), recorded, places=0.06, shares=0.0012)


def test_no_place_in_the_puzzle_is_special(puzzles: list[Puzzle]) -> None:
    for size in (3, 4):
        means = np.mean([puzzle.numbers for puzzle in puzzles if len(puzzle.numbers) == size], axis=0)
        assert np.ptp(means) < 2.5  # standard error 0.4


def test_all_are_different_and_solvable(puzzles: list[Puzzle]) -> None:
    assert len({puzzle.key for puzzle in puzzles}) == len(puzzles)
    assert all(map(is_solvable, puzzles[:1000]))


def test_the_seed_decides_and_a_smaller_count_is_the_start(puzzles: list[Puzzle]) -> None:
    assert generate(101, seed=7) == puzzles[:101]
    assert generate(101, seed=8) != puzzles[:101]
    assert not {puzzle.key for puzzle in generate(100, seed=8)} & {puzzle.key for puzzle in puzzles[:100]}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_sizes_and_ranges(size: int) -> None:
    for puzzle in generate(10, seed=1, sizes=[size], number_range=(3, 12), target_range=(60, 144)):
        assert len(puzzle.numbers) == size
        assert all(3 <= number <= 12 for number in puzzle.numbers)
        assert 60 <= puzzle.target <= 144
        assert is_solvable(puzzle)


def test_large_numbers_stay_exact() -> None:
    for puzzle in generate(60, seed=2, sizes=(3, 4, 5), number_range=(9000, 9999), target_range=(1, 9999)):
        assert is_solvable(puzzle), puzzle


@pytest.mark.parametrize(("size", "count"), [(2, 10), (3, 94), (4, 1466), (5, 31814), (6, 887650)])
def test_no_equation_is_left_out(size: int, count: int) -> None:
    """Their count is known, each with its negative: https://oeis.org/A182173."""
    forms = puzzle_module._forms(size, True) + puzzle_module._forms(size, False)
    assert 2 * forms.total() == count


def test_every_size_is_equally_frequent() -> None:
    sizes = [len(puzzle.numbers) for puzzle in generate(300, sizes=(4, 2, 3, 3))]
    assert [sizes.count(size) for size in (2, 3, 4)] == [100, 100, 100]
    assert sizes[:30] != sorted(sizes[:30])


def test_all_there_are_and_one_more() -> None:
    """Two numbers from 1 to 3, targets from 1 to 9, by hand."""
    arguments = {"sizes": (2,), "number_range": (1, 3), "target_range": (1, 9)}
    expected = {"1,1": "12", "1,2": "123", "1,3": "234", "2,2": "14", "2,3": "156", "3,3": "169"}
    keys = {f"{numbers}={target}" for numbers, targets in expected.items() for target in targets}
    assert {puzzle.key for puzzle in generate(len(keys), **arguments)} == keys
    with pytest.raises(ValueError, match=r"found 16 of the 17 different puzzles .* ask for fewer"):
        generate(len(keys) + 1, **arguments)


@pytest.mark.parametrize(
    ("count", "arguments"),
    [
        (1, {"number_range": (1, 2), "target_range": (9999, 9999)}),
        (1, {"sizes": (2,), "number_range": (1, 1), "target_range": (3, 9999)}),
        (2, {"sizes": (3,), "number_range": (5000, 9999), "target_range": (1, 1)}),
        (10_000, {"sizes": (2,)}),
        (1_000_000, {"sizes": (2, 3, 4, 5, 6), "number_range": (1, 1), "target_range": (1, 20)}),
    ],
)
def test_the_impossible_ends(count: int, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the clock: at most 64 blocks of equations in a row bring nothing new."""
    drawn = 0
    draw = puzzle_module._Equations.draw

    def counted(*args: Any) -> Any:
        nonlocal drawn
        drawn += 1
        return draw(*args)

    monkeypatch.setattr(puzzle_module._Equations, "draw", counted)
    with pytest.raises(ValueError, match="different puzzles needed"):
        generate(count, **arguments)
    assert drawn < 300


def test_the_rare_is_found() -> None:
    """Neighbours and twins: one pair in some thousands."""
    for puzzle in generate(10, sizes=(2,), number_range=(5000, 9999), target_range=(1, 1)):
        assert abs(puzzle.numbers[0] - puzzle.numbers[1]) <= 1


def test_the_work_for_20_000_puzzles(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 blocks of equations at most, of which a core evaluates some hundreds a second."""
    drawn = 0
    draw = puzzle_module._Equations.draw

    def counted(*args: Any) -> Any:
        nonlocal drawn
        drawn += 1
        return draw(*args)

    monkeypatch.setattr(puzzle_module._Equations, "draw", counted)
    assert len(generate(20_000)) == 20_000
    assert drawn <= 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count must be a whole number from 0 to 10000000, not -1"),
        ({"count": 10**12}, "count must be"),
        ({"count": 2.0}, "count must be a whole number from 0 to 10000000, not 2.0"),
        ({"count": True}, "count must be"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, not -1"),
        ({"sizes": ()}, "sizes must name at least one size from 2 to 6"),
        ({"sizes": (1,)}, "each of sizes must be a whole number from 2 to 6, not 1"),
        ({"sizes": (3, 7)}, "each of sizes must be a whole number from 2 to 6, not 7"),
        ({"sizes": "34"}, "each of sizes must be a whole number from 2 to 6, not '3'"),
        ({"number_range": (0, 9)}, "each end of number_range must be a whole number from 1 to 9999, not 0"),
        ({"number_range": (9, 1)}, "number_range must not end below its start: 9 to 1"),
        ({"number_range": (1, 2, 3)}, r"number_range must be a pair \(smallest, largest\), not \(1, 2, 3\)"),
        ({"number_range": 9}, "number_range must be a pair"),
        ({"target_range": (1, 10_000)}, "each end of target_range must be a whole number from 1 to 9999, not 10000"),
        ({"target_range": (1, None)}, "each end of target_range must be a whole number from 1 to 9999, not None"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"count": 1, **arguments})


def test_none_at_all() -> None:
    assert generate(0) == []


def test_the_record() -> None:
    puzzle = Puzzle(numbers=(44, 19, 35), target=98)
    assert puzzle.key == "19,35,44=98"
    assert puzzle == Puzzle(numbers=[44, 19, 35], target=98)  # type: ignore[arg-type]
    assert hash(puzzle) == hash(Puzzle(numbers=[44, 19, 35], target=98))  # type: ignore[arg-type]
    assert puzzle != Puzzle(numbers=(19, 44, 35), target=98)
    assert Puzzle(numbers=(9, 10), target=1).key == Puzzle(numbers=(10, 9), target=1).key == "9,10=1"
    assert Puzzle(numbers=(1, 9999, 1, 1, 1, 1), target=9999).target == 9999


@pytest.mark.parametrize(
    ("numbers", "target", "message"),
    [
        ((), 1, "a puzzle has 2 to 6 numbers, not 0"),
        ((1,), 1, "a puzzle has 2 to 6 numbers, not 1"),
        ((1,) * 7, 1, "a puzzle has 2 to 6 numbers, not 7"),
        ((0, 1), 1, "each of the numbers must be a whole number from 1 to 9999, not 0"),
        ((-5, 1), 1, "not -5"),
        ((1, 10_000), 1, "not 10000"),
        ((1, 2.0), 1, "not 2.0"),
        ((1, float("nan")), 1, "not nan"),
        ((1, True), 1, "not True"),
        ((1, "2"), 1, "not '2'"),
        ((1, None), 1, "not None"),
        ((1, [2]), 1, r"not \[2\]"),
        ((1, 10**5000), 1, "not a very large int"),
        ("12", 1, "numbers must be a tuple or list of whole numbers, not '12'"),
        ({1, 2}, 1, "numbers must be a tuple or list"),
        (None, 1, "numbers must be a tuple or list of whole numbers, not None"),
        (5, 1, "numbers must be a tuple or list of whole numbers, not 5"),
        ((1, 2), 0, "the target must be a whole number from 1 to 9999, not 0"),
        ((1, 2), 10_000, "the target must be a whole number from 1 to 9999, not 10000"),
        ((1, 2), -3, "the target must be"),
        ((1, 2), 3.0, "the target must be"),
        ((1, 2), False, "the target must be"),
        ((1, 2), "3" * 1000, r"the target must be a whole number from 1 to 9999, not '3{56}\.\.\."),
    ],
)
def test_no_such_puzzle(numbers: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Puzzle(numbers=numbers, target=target)


def test_a_puzzle_from_its_key() -> None:
    for puzzle in (Puzzle(numbers=(44, 19, 35), target=98), *generate(20, seed=1)):
        again = Puzzle.from_key(puzzle.key)
        assert again.key == puzzle.key
        assert again.numbers == tuple(sorted(puzzle.numbers))
    for text in (
        "",
        "1,2",
        "1,2=3=4",
        "2,1=3",
        "01,2=3",
        "1,2=3\n",
        "1, 2=3",
        "-1,2=1",
        "1,2=10000",
        "\u0661,2=3",
        "1,,2=3",
    ):
        with pytest.raises(ValueError, match="the key of a puzzle is like"):
            Puzzle.from_key(text)
    with pytest.raises(ValueError, match="2 to 6 numbers"):
        Puzzle.from_key("1=1")
