from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from nsr.config import WarmstartConfig
from nsr.models.registry import EMBEDDED
from nsr.tasks.countdown.puzzle import Puzzle, generate
from study.overlap import warm_start_keys, warm_start_settings

FEW = 128


def test_the_puzzles_are_those_that_the_warm_start_draws(tmp_path: Path) -> None:
    drawn = generate(2 * FEW, seed=random.Random(7).randrange(2**32))
    left_out = tmp_path / "rows.jsonl"
    left_out.write_text("".join(row(puzzle) for puzzle in drawn[:5]))
    config = WarmstartConfig(seed=7, batch_size=2, n_train_steps=FEW // 2, exclude=(str(left_out),))
    keys = list(warm_start_keys(config))
    assert len(set(keys)) == len(keys) == FEW
    assert set(keys) <= {puzzle.key for puzzle in drawn[5:]}  # a few have no trace that is short enough
    assert len(set(keys) & {puzzle.key for puzzle in drawn[5 : FEW + 5]}) > 0.9 * FEW


def row(puzzle: Puzzle) -> str:
    return json.dumps({"nums": list(puzzle.numbers), "target": puzzle.target}) + "\n"


def test_the_settings_are_those_of_the_models_record(tmp_path: Path) -> None:
    config = warm_start_settings(tmp_path)
    record = json.loads((EMBEDDED["tiny"] / "warmstart.json").read_text())["settings"]
    assert config.n_train_steps * config.batch_size == 76_800  # as the model's card says
    assert config.exclude == (str(tmp_path / "dev.parquet"), str(tmp_path / "test.parquet"))
    settings = dataclasses.asdict(config)
    assert all(settings[name] == record[name] for name in record.keys() - {"exclude"})
