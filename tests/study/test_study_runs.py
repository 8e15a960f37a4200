from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from kept_data import kept

from nsr.tasks.countdown.data import load_splits
from nsr.training.loop import puzzles_of_step
from study.choice import Try, choose, score
from study.measuring import development, final
from study.runs import EQUAL_RATE, METHODS, RATES, SEEDS, trainings, tries
from study.sets import BIG, DEV, FAR, FIVE, REAL, SETS, WIDE, read_set, write_sets

ROOT = Path("somewhere")
RATES_GIVEN = {method.name: EQUAL_RATE for method in METHODS} | {"NSR": 1e-5, "PSR": 1e-4}


def test_every_method_is_tried_at_every_rate() -> None:
    tried = tries(ROOT)
    assert len(tried) == len(METHODS) * len(RATES) == 18
    assert {(one.method, one.config.lr) for one in tried} == {
        (method.name, rate) for method in METHODS for rate in RATES
    }
    assert {one.config.seed for one in tried} == {41}


def test_the_comparison_is_paired_and_its_methods_differ_in_nothing_else() -> None:
    made = [one for one in trainings(ROOT, RATES_GIVEN) if one.part == "main"]
    assert Counter(one.method for one in made) == {method.name: 5 for method in METHODS}
    own = {"objective", "lambda_psr", "lr", "exp_name"}
    for seed in SEEDS:
        settings = [dataclasses.asdict(one.config) for one in made if one.config.seed == seed]
        shared = [{name: value for name, value in one.items() if name not in own} for one in settings]
        assert all(one == shared[0] for one in shared)
    assert {one.config.n_train_steps * one.config.rollout_batch_size for one in made} == {80 * 128}


def test_the_side_tables_hold_what_they_change() -> None:
    made = trainings(ROOT, RATES_GIVEN)
    equal = {(one.method, one.config.lr) for one in made if one.part == "equal"}
    assert equal == {("NSR", EQUAL_RATE), ("PSR", EQUAL_RATE)}
    kept = {(one.method, one.config.lr, one.config.normalize_over) for one in made if one.part == "kept"}
    assert kept == {("RLVR", EQUAL_RATE, "kept"), ("PSR", 1e-4, "kept"), ("NSR", 1e-5, "kept")}


def test_no_two_runs_share_a_folder() -> None:
    made = [*tries(ROOT), *trainings(ROOT, RATES_GIVEN)]
    measured = [*development(ROOT, tries(ROOT)), *final(ROOT, made)]
    paths = [one.config.run_path for one in (*made, *measured)]
    assert len(set(paths)) == len(paths)


def test_the_sets_are_apart_from_each_other_and_from_all_training(tmp_path: Path) -> None:
    write_sets(tmp_path, None)
    sets = {one.name: [puzzle.key for puzzle in read_set(tmp_path, one)] for one in SETS if one is not REAL}
    assert {name: len(keys) for name, keys in sets.items()} == {
        DEV.name: 256,
        BIG.name: 128,
        WIDE.name: 512,
        FIVE.name: 128,
        FAR.name: 128,
    }
    counted = Counter(key for keys in sets.values() for key in keys)
    assert max(counted.values()) == 1
    trained: set[str] = set()
    for one in (tries(tmp_path)[0], *trainings(tmp_path, RATES_GIVEN)[:: len(METHODS)]):
        splits = load_splits(one.config.data, eval_puzzles=256, seed=one.config.seed, train_puzzles=2000)
        steps = [puzzles_of_step(splits.train, step, 16, one.config.seed) for step in range(1, 81)]
        trained |= {puzzle.key for puzzles in steps for puzzle in puzzles}
    assert len(trained) > 5000
    assert not trained & counted.keys()


def test_the_sets_are_made_again_the_same_and_never_over_what_is_there(tmp_path: Path) -> None:
    write_sets(tmp_path / "one", None)
    write_sets(tmp_path / "two", None)
    assert WIDE.path(tmp_path / "one").read_bytes() == WIDE.path(tmp_path / "two").read_bytes()
    FIVE.path(tmp_path / "one").write_text("kept\n")
    write_sets(tmp_path / "one", None)
    assert FIVE.path(tmp_path / "one").read_text() == "kept\n"


def test_measurements_give_the_puzzles_of_their_set(tmp_path: Path) -> None:
    write_sets(tmp_path, None)
    for one in {one.puzzles.name: one for one in final(tmp_path, trainings(tmp_path, RATES_GIVEN))}.values():
        config = one.config
        splits = load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=config.seed)
        assert {puzzle.key for puzzle in splits.evaluation} == {
            puzzle.key for puzzle in read_set(tmp_path, one.puzzles)
        }


def test_the_criterion_weighs_every_doubling_of_k_alike() -> None:
    # One of 32 right: pass@k is k / 32. All right: 1 at every k.
    assert score(kept([1])) == pytest.approx((1 + 2 + 4 + 8 + 16) / 32 / 5)
    assert score(kept([1, 32])) == pytest.approx((31 / 32 / 5 + 1) / 2)


def test_the_best_rate_is_taken_and_of_equal_ones_the_smaller() -> None:
    found = [Try(method.name, rate, 0.5) for method in METHODS for rate in RATES]
    assert choose(found) == {method.name: 1e-5 for method in METHODS}
    found[-1] = found[-1]._replace(criterion=0.6)
    assert choose(found)[METHODS[-1].name] == 1e-4
