"""`python -m study.overlap`: which puzzles of the test sets the embedded model had met before.

Its warm start is made again as far as the puzzles go. That takes the rows which the warm start left out, and minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsr.config import WarmstartConfig
from nsr.models.embedded import build_tiny_tokenizer
from nsr.models.registry import EMBEDDED
from nsr.runs.files import read_json, write_json
from nsr.tasks.countdown.data import load_splits, puzzle_keys
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.training.sft import TraceBatches
from study.runs import tries
from study.sets import DEV, SETS, read_set, seen_in_training, write_sets

FILE = Path("docs/results/data/overlap.json")


def warm_start_settings(rows: Path) -> WarmstartConfig:
    """Those of the embedded model's record, with the rows that it left out where they are here."""
    record = read_json(EMBEDDED["tiny"] / "warmstart.json")["settings"]
    known = {field.name for field in dataclasses.fields(WarmstartConfig)}
    settings: dict[str, Any] = {name: value for name, value in record.items() if name in known}
    settings["exclude"] = tuple(str(rows / Path(name).name) for name in record["exclude"])
    return WarmstartConfig(**settings)


def warm_start_keys(config: WarmstartConfig) -> Iterator[str]:
    """The puzzle of every trace that the warm start learned from."""
    tokenizer = build_tiny_tokenizer()
    excluded = {key for source in config.exclude for key in puzzle_keys(source)}
    evaluation = load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=config.seed).evaluation
    excluded |= {puzzle.key for puzzle in evaluation}
    batches = iter(TraceBatches(config, tokenizer, excluded))
    for tokens_BT, _ in itertools.islice(batches, config.n_train_steps):
        for text in tokenizer.batch_decode(tokens_BT):
            numbers, _, rest = str(text).partition("=")  # "44,19,35=98:<think>..."
            yield Puzzle(numbers=tuple(map(int, numbers.split(","))), target=int(rest.partition(":")[0])).key


def main() -> int:
    """Write, for each set, the places of the puzzles that were met in the warm start and in the study's trainings."""
    parser = argparse.ArgumentParser(prog="python -m study.overlap", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="folder of dev.parquet and test.parquet")
    parser.add_argument("--root", type=Path, default=Path("output/results"), help="folder of the study's runs")
    parser.add_argument("--out", type=Path, default=FILE, help="file to write")
    given = parser.parse_args()
    write_sets(given.root, given.rows / "test.parquet")
    met = {
        "warm_start": set(warm_start_keys(warm_start_settings(given.rows))),
        "training": seen_in_training(tries(given.root)[0].config),
    }
    places = {
        one.name: {
            name: [index for index, puzzle in enumerate(read_set(given.root, one)) if puzzle.key in keys]
            for name, keys in met.items()
        }
        for one in SETS
        if one is not DEV
    }
    write_json(given.out, {"warm_start_puzzles": len(met["warm_start"]), "sets": places})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
