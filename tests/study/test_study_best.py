"""The training beyond the comparison, with real processes and few puzzles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from nsr.runs.files import read_json
from nsr.tasks.countdown.puzzle import Puzzle, generate
from study import best, runs
from study.keep import read_kept, read_sets, read_trainings
from study.sets import REAL_DEV_LONG, REAL_LONG

MAX_BYTES = 10_000_000


def write_rows(path: Path, puzzles: list[Puzzle]) -> None:
    columns = {"nums": [list(one.numbers) for one in puzzles], "target": [one.target for one in puzzles]}
    pq.write_table(pa.table(columns), path)


def test_it_trains_publishes_measures_and_looks_at_the_test_rows_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"n_train_steps": 1, "rollout_batch_size": 16, "eval_puzzles": 4, "eval_samples": 1, "max_tokens": 48}
    monkeypatch.setattr(best, "BEST", {**runs.BEST, **small})
    short = {"n_train_steps": 1, "batch_size": 4, "compile": False, "eval_puzzles": 4, "eval_samples": 1}
    monkeypatch.setattr(best, "WARM", {**runs.WARM, **short})
    dev, test = (dataclasses.replace(one, num_puzzles=4, num_samples=2) for one in (REAL_DEV_LONG, REAL_LONG))
    monkeypatch.setattr(best, "REAL_DEV_LONG", dev)
    monkeypatch.setattr(best, "REAL_LONG", test)
    rows, root, data = tmp_path / "rows", tmp_path / "root", tmp_path / "data"
    rows.mkdir()
    puzzles = generate(60, seed=5)
    for name, chosen in (("train", puzzles[:40]), ("dev", puzzles[40:50]), ("test", puzzles[50:])):
        write_rows(rows / f"{name}.parquet", chosen)
    published = tmp_path / "published"
    words = ["best", "--rows", str(rows), "--root", str(root), "--data", str(data), "--model", str(published)]

    monkeypatch.setattr(sys, "argv", words)
    assert best.main() == 0
    assert read_kept(data, dev).keys() == {"base", "warm_start", "best"}
    assert read_kept(data, test) == {}
    assert not test.path(root).exists()

    weights = root / "model" / "model.safetensors"
    assert weights.stat().st_size < MAX_BYTES
    with safe_open(weights, "pt") as tensors:
        assert {str(tensors.get_tensor(name).dtype) for name in tensors.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    card = (root / "model" / "README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\nlibrary_name')
    assert card.endswith("## Licence\n\nMIT, as the embedded model that it was made from.\n")
    assert "RLVR" in card
    assert str(root) not in card
    measured = json.loads((root / "measured" / dev.name / "best" / "config.json").read_text())
    assert (measured["model_id"], measured["max_tokens"]) == (str(root / "model"), 48)

    assert read_json(data / "warmstart.json")["settings"]["n_train_steps"] == 1
    assert read_json(data / "weights.json") == {"sha256": best.weights_digest(published)}
    assert {path.name for path in published.iterdir()} == {path.name for path in (root / "model").iterdir()}

    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", [*words, "--test"])
    assert best.main() == 0
    assert weights.stat().st_mtime_ns == before  # nothing is made twice
    assert read_kept(data, test).keys() == {"base", "warm_start", "best"}
    looked_at = read_kept(data, test)
    monkeypatch.setattr(sys, "argv", words)
    assert best.main() == 0
    assert read_kept(data, test) == looked_at  # not lost by a later call without --test
    keys = {hashlib.sha256(one.key.encode()).hexdigest()[:16] for one in puzzles[50:]}
    assert set(read_sets(data)[test.name].puzzles) <= keys
    assert [one.method for one in read_trainings(data).values()] == ["best"]
