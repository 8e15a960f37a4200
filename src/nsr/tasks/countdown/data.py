"""A source of puzzles -> disjoint splits for training and evaluation."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from nsr.errors import UserError
from nsr.tasks.countdown.puzzle import MAX_SIZE, MIN_SIZE, Puzzle, generate, plain
from nsr.tasks.countdown.rows import Row, RowSource, open_sources
from nsr.tasks.countdown.solvability import is_solvable

DEFAULT_TRAIN_PUZZLES = 20_000
_TRIED_FOR_EACH, _TRIED_AT_LEAST = 20, 10_000  # where fewer than 1 in 20 puzzles have a solution, we stop


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Solvable puzzles for training and for evaluation; no two share a canonical key, neither within nor across."""

    train: tuple[Puzzle, ...]
    evaluation: tuple[Puzzle, ...]
    description: str
    """One line for people: the source, what was taken and what was dropped."""
    dropped_overlap: int = 0
    """Training rows that are among the evaluation puzzles."""
    dropped_unsolvable: int = 0
    """Rows without a solution, among those that were needed."""
    dropped_duplicate: int = 0
    """Further rows of puzzles that were taken."""


def load_splits(
    source: str, *, eval_puzzles: int, seed: int, train_puzzles: int | None = None, min_train: int = 1
) -> Splits:
    """Puzzles from `source`, in an order drawn by `seed`.

    A row's place in that order depends on the seed and its canonical key alone. So the evaluation puzzles are the same
    whatever `train_puzzles`, and fewer `eval_puzzles` are the start of more. Files are streamed: what is held in memory
    is bounded by the puzzles asked for.

    Args:
        source: "synthetic", "synthetic:3,4" (sizes), a .parquet or .jsonl file, two such files "TRAIN,EVALUATION", or
            a hub data set "owner/name" (its splits train and test). From a single file, or a hub data set without test,
            the evaluation puzzles are cut off first. Columns: nums, lists of whole numbers, and target.
        eval_puzzles: evaluation puzzles, exactly.
        seed: zero or above.
        train_puzzles: training puzzles at most; None means 20,000.
        min_train: fewer training puzzles than so many (or than `train_puzzles`) are an error.

    Raises:
        ValueError: the source cannot be read, holds what is no puzzle, or holds too few.
    """
    wanted = DEFAULT_TRAIN_PUZZLES if train_puzzles is None else train_puzzles
    for name, value in (("eval_puzzles", eval_puzzles), ("train_puzzles", wanted), ("seed", seed)):
        if value < 0:
            raise UserError(f"{name} must be zero or above, not {value}.")
    least = min(min_train, wanted)
    if source.partition(":")[0] == "synthetic":
        return _synthetic(source, eval_puzzles, wanted, seed)
    train_source, evaluation_source = open_sources(source)
    if evaluation_source is None:
        picked = _pick(train_source, eval_puzzles + wanted, seed)
        _check_enough(picked, eval_puzzles + least, "evaluation and training")
        evaluation, train = picked.puzzles[:eval_puzzles], picked.puzzles[eval_puzzles:]
        return _splits(source, train, evaluation, [picked])
    picked_evaluation = _pick(evaluation_source, eval_puzzles, seed)
    _check_enough(picked_evaluation, eval_puzzles, "evaluation")
    taken = {puzzle.key for puzzle in picked_evaluation.puzzles}
    picked_train = _pick(train_source, wanted, seed, excluded=taken)
    _check_enough(picked_train, least, "training")
    return _splits(source, picked_train.puzzles, picked_evaluation.puzzles, [picked_train, picked_evaluation])


def puzzle_keys(source: str) -> set[str]:
    """Canonical keys of every row of `source`, a file or hub data set; faults raise as in `load_splits`."""
    parts = [part for part in open_sources(source) if part is not None]
    return {_puzzle(part, row).key for part in parts for row in part.read()}


def _puzzle(source: RowSource, row: Row) -> Puzzle:
    where, nums, target = row
    try:
        # The record checks its values, whatever they are.
        return Puzzle(numbers=cast("tuple[int, ...]", nums), target=cast(int, target))
    except ValueError as error:
        raise UserError(f"{source.name}, {where}: {error}") from error


def _synthetic(source: str, eval_puzzles: int, train_puzzles: int, seed: int) -> Splits:
    _, colon, text = source.partition(":")
    allowed = {str(size): size for size in range(MIN_SIZE, MAX_SIZE + 1)}
    names = text.split(",") if colon else ["3", "4"]
    if not allowed.keys() >= set(names):
        raise UserError(
            f"--data {source!r} names no sizes: write synthetic:3 or synthetic:3,4, each from {MIN_SIZE} to {MAX_SIZE}."
        )
    puzzles = generate(eval_puzzles + train_puzzles, seed=seed, sizes=[allowed[name] for name in names])
    # The evaluation puzzles come first: they stay the same whatever the number of training puzzles.
    return _splits(source, puzzles[eval_puzzles:], puzzles[:eval_puzzles], [])


@dataclass(frozen=True, kw_only=True)
class _Picked:
    """What was taken from one source: distinct solvable puzzles in the seeded order, and counts of rows."""

    name: str
    puzzles: list[Puzzle]
    rows: int
    unsolvable: int
    duplicate: int
    overlap: int


def _pick(source: RowSource, needed: int, seed: int, excluded: Collection[str] = ()) -> _Picked:
    """The first `needed` solvable puzzles in the seeded order, or as many as there are."""
    if needed == 0:
        return _Picked(name=source.name, puzzles=[], rows=0, unsolvable=0, duplicate=0, overlap=0)
    capacity = needed + needed // 4 + 100  # some more, since unsolvable ones fall out
    while True:
        sample = _sample(source, capacity, seed, excluded)
        puzzles: list[Puzzle] = []
        unsolvable = duplicate = 0
        for puzzle, copies in sample.puzzles:
            if len(puzzles) == needed:
                break
            if is_solvable(puzzle):
                puzzles.append(puzzle)
                duplicate += copies - 1
            else:
                unsolvable += copies
        if len(puzzles) == needed or sample.complete:
            return _Picked(
                name=source.name,
                puzzles=puzzles,
                rows=sample.rows,
                unsolvable=unsolvable,
                duplicate=duplicate,
                overlap=sample.overlap,
            )
        capacity *= 4  # too many were unsolvable, and the source has more
        if capacity > _TRIED_FOR_EACH * needed + _TRIED_AT_LEAST:  # and memory has an end
            raise UserError(
                f"{source.name}: of {len(sample.puzzles):,} puzzles tried {len(puzzles):,} have a solution, and "
                f"{needed:,} are asked for: ask for fewer, or give rows of which at least 1 in {_TRIED_FOR_EACH} has."
            )


@dataclass(frozen=True, kw_only=True)
class _Sample:
    puzzles: list[tuple[Puzzle, int]]  # with the number of rows that hold it
    rows: int
    overlap: int
    complete: bool  # holds every puzzle of the source


def _sample(source: RowSource, capacity: int, seed: int, excluded: Collection[str]) -> _Sample:
    """The first `capacity` distinct puzzles of `source` in the seeded order, in one pass and that much memory."""
    heap: list[tuple[int, str]] = []  # the last of the order on top, by negated priority
    kept: dict[str, Puzzle] = {}
    copies: dict[str, int] = {}
    rows = overlap = 0
    complete = True
    for row in source.read():
        rows += 1
        puzzle = _puzzle(source, row)
        key = puzzle.key
        if key in excluded:
            overlap += 1
        elif key in kept:
            copies[key] += 1
        else:
            entry = (-_priority(seed, key), key)
            if len(heap) < capacity:
                heapq.heappush(heap, entry)
            else:
                complete = False
                _, last = heapq.heappushpop(heap, entry)
                if last == key:
                    continue
                del kept[last], copies[last]
            kept[key], copies[key] = puzzle, 1
    order = [key for _, key in sorted(heap, reverse=True)]
    return _Sample(puzzles=[(kept[key], copies[key]) for key in order], rows=rows, overlap=overlap, complete=complete)


def _priority(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "big")


def _check_enough(picked: _Picked, needed: int, purpose: str) -> None:
    if len(picked.puzzles) >= needed:
        return
    if picked.rows == 0:
        raise UserError(f"{picked.name} holds no rows.")
    raise UserError(
        f"{picked.name} holds {len(picked.puzzles):,} usable puzzles in {picked.rows:,} rows "
        f"({_dropped(picked.unsolvable, picked.duplicate, picked.overlap)}), and {purpose} need at least {needed:,}: "
        f"give more rows, or ask for fewer with --eval_puzzles or a smaller batch."
    )


def _splits(source: str, train: list[Puzzle], evaluation: list[Puzzle], picked: list[_Picked]) -> Splits:
    unsolvable = sum(part.unsolvable for part in picked)
    duplicate = sum(part.duplicate for part in picked)
    overlap = sum(part.overlap for part in picked)
    description = f"{plain(source)}: {len(train):,} train and {len(evaluation):,} evaluation puzzles"
    if picked:
        description += f" of {sum(part.rows for part in picked):,} rows, {_dropped(unsolvable, duplicate, overlap)}"
    return Splits(
        train=tuple(train),
        evaluation=tuple(evaluation),
        description=description,
        dropped_overlap=overlap,
        dropped_unsolvable=unsolvable,
        dropped_duplicate=duplicate,
    )


def _dropped(unsolvable: int, duplicate: int, overlap: int) -> str:
    return f"dropped {unsolvable:,} unsolvable, {duplicate:,} duplicate and {overlap:,} shared with evaluation"
