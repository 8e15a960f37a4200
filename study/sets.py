"""The puzzles of the study, as files that anyone makes again: for choosing, and for the one look at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nsr.config import TrainConfig
from nsr.runs.files import write_atomic
from nsr.tasks.countdown.data import Splits, load_splits
from nsr.tasks.countdown.puzzle import Puzzle, generate
from study.runs import SEEDS, TRIAL_SEED, tries

TEST_SEED = 2506
"""Of the generator, for the puzzles of the synthetic test sets: that of no training and of no choice."""
NUM_DEV = 256


@dataclass(frozen=True, kw_only=True)
class PuzzleSet:
    """Puzzles, and how often each is sampled."""

    name: str
    title: str
    """As tables call it."""
    num_puzzles: int
    num_samples: int
    hashed: bool = False
    """Whether its puzzles are named by a digest in what is kept: rows that are others' to publish."""

    def path(self, root: Path) -> Path:
        """Its file."""
        return root / "sets" / f"{self.name}.jsonl"

    def source(self, root: Path) -> str:
        """What --data is for it. The development puzzles stand in the place of training puzzles: nothing trains."""
        other = BIG if self is DEV else DEV
        return f"{other.path(root)},{self.path(root)}"


DEV = PuzzleSet(name="dev", title="development", num_puzzles=NUM_DEV, num_samples=32)
BIG = PuzzleSet(name="synthetic_512", title="synthetic, 512 samples", num_puzzles=128, num_samples=512)
WIDE = PuzzleSet(name="synthetic_32", title="synthetic, 32 samples", num_puzzles=512, num_samples=32)
REAL = PuzzleSet(name="real", title="real test rows", num_puzzles=512, num_samples=32, hashed=True)
FIVE = PuzzleSet(name="five_numbers", title="5 numbers", num_puzzles=128, num_samples=32)
FAR = PuzzleSet(name="far_targets", title="targets 101 to 300", num_puzzles=128, num_samples=32)
SETS = (DEV, BIG, WIDE, REAL, FIVE, FAR)
"""Of the comparison."""

REAL_DEV_LONG = dataclasses.replace(REAL, name="real_dev_long", title="real development rows", num_samples=8)
REAL_LONG = dataclasses.replace(REAL, name="real_long", num_samples=8)
"""For the model beyond the comparison, whose responses may be longer."""


def write_sets(root: Path, real: Path | None) -> None:
    """Write the file of every set that there is not yet.

    The synthetic sets hold no puzzle that any training of the study sees, or that a choice was made on.

    Args:
        root: the study's folder.
        real: a file with the real test rows; without it that set is left out.

    Raises:
        ValueError: `real` cannot be read, or holds too few rows.
    """
    seen = seen_in_training(tries(root)[0].config)
    makers: dict[str, Callable[[], list[Puzzle]]] = {
        DEV.name: lambda: list(_of_seed(tries(root)[0].config, TRIAL_SEED).evaluation),
        BIG.name: lambda: _fresh(seen, (3, 4), (10, 100))[: BIG.num_puzzles],
        WIDE.name: lambda: _fresh(seen, (3, 4), (10, 100))[BIG.num_puzzles :][: WIDE.num_puzzles],
        FIVE.name: lambda: _fresh(seen, (5,), (10, 100))[: FIVE.num_puzzles],
        FAR.name: lambda: _fresh(seen, (3, 4), (101, 300))[: FAR.num_puzzles],
    }
    for one in SETS:
        if one.name in makers and not one.path(root).exists():
            puzzles = makers[one.name]()
            assert len(puzzles) == one.num_puzzles, (one.name, len(puzzles))
            _write(one.path(root), puzzles)
    if real is not None:
        write_set(root, REAL, real)


def write_set(root: Path, one: PuzzleSet, source: Path) -> None:
    """Write the file of a set from others' rows, unless there is one. Raises ValueError as `write_sets` does."""
    if not one.path(root).exists():
        rows = load_splits(str(source), eval_puzzles=one.num_puzzles, seed=TEST_SEED, train_puzzles=0)
        _write(one.path(root), list(rows.evaluation))


def read_set(root: Path, one: PuzzleSet) -> list[Puzzle]:
    """The puzzles of a set from its file."""
    rows = map(json.loads, one.path(root).read_text().splitlines())
    return [Puzzle(numbers=tuple(row["nums"]), target=row["target"]) for row in rows]


def _of_seed(config: TrainConfig, seed: int) -> Splits:
    needed = config.n_train_steps * config.puzzles_per_step
    return load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=seed, train_puzzles=needed)


def seen_in_training(config: TrainConfig) -> set[str]:
    """Keys of the puzzles that a training sees, or its own evaluations, with any seed of the study."""
    splits = [_of_seed(config, seed) for seed in (TRIAL_SEED, *SEEDS)]
    return {puzzle.key for split in splits for puzzle in (*split.train, *split.evaluation)}


def _fresh(seen: set[str], sizes: tuple[int, ...], targets: tuple[int, int]) -> list[Puzzle]:
    count = BIG.num_puzzles + WIDE.num_puzzles
    made = generate(count + len(seen) // 8, seed=TEST_SEED, sizes=sizes, target_range=targets)
    return [puzzle for puzzle in made if puzzle.key not in seen]


def _write(path: Path, puzzles: list[Puzzle]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"nums": list(puzzle.numbers), "target": puzzle.target}) + "\n" for puzzle in puzzles]
    write_atomic(path, "".join(lines).encode())
