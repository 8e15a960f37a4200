"""Sources of puzzles: real files with every fault, and splits that share nothing."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nsr.tasks.countdown import rows as rows_module
from nsr.tasks.countdown.data import Splits, _sample, load_splits
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.rows import Row, RowSource
from nsr.tasks.countdown.solvability import is_solvable

REAL_DATA = Path(os.environ.get("NSR_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "countdown_3to4"

GOOD = [{"nums": list(puzzle.numbers), "target": puzzle.target} for puzzle in generate(60, seed=3)]
UNSOLVABLE = {"nums": [2, 2], "target": 3}


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)
    return path


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"nums": [row["nums"] for row in rows], "target": [row["target"] for row in rows]}


def keys(puzzles: Sequence[Puzzle]) -> set[str]:
    return {puzzle.key for puzzle in puzzles}


def assert_sound(splits: Splits, train: int, evaluation: int) -> None:
    assert (len(splits.train), len(splits.evaluation)) == (train, evaluation)
    assert len(keys(splits.train) | keys(splits.evaluation)) == train + evaluation  # nothing twice, nothing shared
    assert all(map(is_solvable, splits.train + splits.evaluation))


def failure(source: object, **options: Any) -> str:
    """The sentence with which a source is refused."""
    with pytest.raises(ValueError, match=r"\.$") as caught:
        load_splits(str(source), **{"eval_puzzles": 10, "seed": 0, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# Synthetic


def test_synthetic() -> None:
    splits = load_splits("synthetic", eval_puzzles=20, seed=5, train_puzzles=100)
    assert_sound(splits, 100, 20)
    assert splits.description == "synthetic: 100 train and 20 evaluation puzzles"
    assert {len(puzzle.numbers) for puzzle in splits.train} == {3, 4}
    assert splits == load_splits("synthetic", eval_puzzles=20, seed=5, train_puzzles=100)
    assert splits.evaluation == load_splits("synthetic", eval_puzzles=20, seed=5, train_puzzles=0).evaluation
    assert splits.evaluation != load_splits("synthetic", eval_puzzles=20, seed=6, train_puzzles=100).evaluation


@pytest.mark.parametrize(("source", "sizes"), [("synthetic:3", {3}), ("synthetic:2,5", {2, 5}), ("synthetic:4,4", {4})])
def test_synthetic_sizes(source: str, sizes: set[int]) -> None:
    splits = load_splits(source, eval_puzzles=10, seed=0, train_puzzles=10)
    assert {len(puzzle.numbers) for puzzle in splits.train + splits.evaluation} == sizes


@pytest.mark.parametrize(
    "source", ["synthetic:", "synthetic:1", "synthetic:3,", "synthetic:7", "synthetic:34", "synthetic:x"]
)
def test_synthetic_sizes_that_are_none(source: str) -> None:
    assert "write synthetic:3 or synthetic:3,4, each from 2 to 6" in failure(source)


def test_synthetic_more_than_there_are() -> None:
    assert "different puzzles needed with 2 numbers" in failure("synthetic:2", train_puzzles=9000)


# Files


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_one_file(tmp_path: Path, kind: str) -> None:
    extra = [{**row, "note": "kept out"} for row in GOOD]
    if kind == "jsonl":
        path = write_jsonl(tmp_path / "rows.jsonl", extra)
    else:
        path = write_parquet(tmp_path / "rows.parquet", columns_of(GOOD), row_group_size=7)
    splits = load_splits(str(path), eval_puzzles=10, seed=0)
    assert_sound(splits, 50, 10)
    assert keys(splits.train + splits.evaluation) == {
        Puzzle(numbers=tuple(row["nums"]), target=row["target"]).key for row in GOOD
    }
    assert splits.description == (
        f"{path}: 50 train and 10 evaluation puzzles of 60 rows, "
        "dropped 0 unsolvable, 0 duplicate and 0 shared with evaluation"
    )


def test_jsonl_and_parquet_give_the_same(tmp_path: Path) -> None:
    one = load_splits(str(write_jsonl(tmp_path / "a.jsonl", GOOD)), eval_puzzles=10, seed=0)
    other = load_splits(str(write_parquet(tmp_path / "b.parquet", columns_of(GOOD))), eval_puzzles=10, seed=0)
    assert (one.train, one.evaluation) == (other.train, other.evaluation)


def test_the_order_is_drawn_by_the_seed_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", GOOD))
    turned = str(write_jsonl(tmp_path / "b.jsonl", GOOD[::-1]))
    splits = load_splits(path, eval_puzzles=10, seed=1)
    assert load_splits(turned, eval_puzzles=10, seed=1).evaluation == splits.evaluation
    assert load_splits(path, eval_puzzles=10, seed=1, train_puzzles=5).evaluation == splits.evaluation
    assert load_splits(path, eval_puzzles=10, seed=1, train_puzzles=5).train == splits.train[:5]
    assert load_splits(path, eval_puzzles=15, seed=1).evaluation[:10] == splits.evaluation
    assert load_splits(path, eval_puzzles=10, seed=2).evaluation != splits.evaluation
    in_file_order = [Puzzle(numbers=tuple(row["nums"]), target=row["target"]) for row in GOOD]
    assert list(splits.evaluation + splits.train) != in_file_order


def test_unsolvable_and_duplicate_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    reordered = {"nums": GOOD[0]["nums"][::-1], "target": GOOD[0]["target"]}
    rows = [*GOOD, UNSOLVABLE, reordered, GOOD[1], GOOD[1], {"nums": [1, 1, 1], "target": 50}, UNSOLVABLE]
    splits = load_splits(str(write_jsonl(tmp_path / "rows.jsonl", rows)), eval_puzzles=10, seed=0)
    assert_sound(splits, 50, 10)
    assert (splits.dropped_unsolvable, splits.dropped_duplicate, splits.dropped_overlap) == (3, 3, 0)
    assert "of 66 rows, dropped 3 unsolvable, 3 duplicate and 0 shared with evaluation" in splits.description


def test_two_files_share_nothing(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [*GOOD[:40], *GOOD[50:55], UNSOLVABLE])
    shared = {"nums": GOOD[3]["nums"][::-1], "target": GOOD[3]["target"]}  # the same key in another order
    evaluation = write_parquet(tmp_path / "dev.parquet", columns_of([*GOOD[50:60], shared]))
    splits = load_splits(f"{train},{evaluation}", eval_puzzles=11, seed=0)
    assert_sound(splits, 39, 11)
    assert keys(splits.evaluation) == {Puzzle(**as_puzzle(row)).key for row in [*GOOD[50:60], GOOD[3]]}
    assert (splits.dropped_unsolvable, splits.dropped_duplicate, splits.dropped_overlap) == (1, 0, 6)
    assert "39 train and 11 evaluation puzzles of 57 rows, dropped 1 unsolvable" in splits.description
    assert "6 shared with evaluation" in splits.description
    # What evaluation does not use is free for training.
    assert load_splits(f"{train},{evaluation}", eval_puzzles=1, seed=0).dropped_overlap <= 1


def as_puzzle(row: dict[str, Any]) -> dict[str, Any]:
    return {"numbers": tuple(row["nums"]), "target": row["target"]}


def test_evaluation_alone_leaves_the_training_file_unread(tmp_path: Path) -> None:
    broken = tmp_path / "train.jsonl"
    broken.write_text("no json\n", encoding="utf-8")
    evaluation = write_jsonl(tmp_path / "dev.jsonl", GOOD)
    splits = load_splits(f"{broken},{evaluation}", eval_puzzles=10, seed=0, train_puzzles=0)
    assert_sound(splits, 0, 10)


def test_a_comma_in_a_file_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a,b.jsonl", GOOD)
    assert_sound(load_splits(str(path), eval_puzzles=10, seed=0), 50, 10)


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "\n\n".join(json.dumps(row) for row in GOOD) + "\r\n  \r\n"
    path.write_text(text, encoding="utf-8-sig")
    assert_sound(load_splits(str(path), eval_puzzles=10, seed=0), 50, 10)


def test_more_unsolvable_rows_than_a_sample_allows_for(tmp_path: Path) -> None:
    """Whole numbers that nothing reaches, four times as many as good ones: the sample grows until it is enough."""
    bad = [{"nums": [2, 2], "target": target} for target in range(1000, 3000)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", [*bad, *GOOD]))
    splits = load_splits(path, eval_puzzles=10, seed=0, train_puzzles=40)
    assert_sound(splits, 40, 10)
    assert splits.dropped_unsolvable > 1000


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"nums": [1, 2]}, "missing target; the columns there are nums"),
        ({"target": 3}, "missing nums"),
        ({"numbers": [1, 2], "goal": 3}, "missing nums and target; the columns there are numbers, goal"),
        ({}, "missing nums and target; the columns there are none"),
        ([1, 2, 3], "must be an object with nums and target, not list"),
        ("text", "must be an object with nums and target, not str"),
        (None, "not NoneType"),
        (
            {"nums": [1, float("nan")], "target": 3},
            "each of the numbers must be a whole number from 1 to 9999, not nan",
        ),
        ({"nums": [1, 2], "target": float("nan")}, "the target must be a whole number from 1 to 9999, not nan"),
        ({"nums": [1, 2], "target": float("inf")}, "not inf"),
        ({"nums": [1, 2], "target": 3.0}, "not 3.0"),
        ({"nums": [1, -2], "target": 3}, "not -2"),
        ({"nums": [1, 2], "target": 0}, "not 0"),
        ({"nums": [1, 10**30], "target": 3}, "not 1000000"),
        ({"nums": [1, 2], "target": 10**300}, r"\.\.\."),
        ({"nums": [1, True], "target": 3}, "not True"),
        ({"nums": [1, "2"], "target": 3}, "not '2'"),
        ({"nums": [1, None], "target": 3}, "not None"),
        ({"nums": [1, [2]], "target": 3}, r"not \[2\]"),
        ({"nums": [[1, 2], [3, 4]], "target": 3}, r"not \[1, 2\]"),
        ({"nums": "1,2", "target": 3}, "numbers must be a tuple or list of whole numbers, not '1,2'"),
        ({"nums": {"a": 1}, "target": 3}, "numbers must be a tuple or list"),
        ({"nums": 12, "target": 3}, "numbers must be a tuple or list"),
        ({"nums": None, "target": 3}, "numbers must be a tuple or list"),
        ({"nums": [], "target": 3}, "a puzzle has 2 to 6 numbers, not 0"),
        ({"nums": [1], "target": 3}, "a puzzle has 2 to 6 numbers, not 1"),
        ({"nums": [1] * 1000, "target": 3}, "a puzzle has 2 to 6 numbers, not 1000"),
        ({"nums": [1, 2], "target": [3]}, r"not \[3\]"),
    ],
)
def test_a_bad_row_of_jsonl_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*GOOD, row])
    sentence = failure(path)
    assert sentence.startswith(f"{path}, line 61: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(sentence)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nums,target", "no JSON"),
        (b"{'nums': [1, 2], 'target': 3}", "no JSON"),
        (b'{"nums": [1, 2], "target": 3', "no JSON"),
        (b'{"nums": [1, 2], "target": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"PAR1\x00\x01", "no JSON"),
        (b'{"nums": [' + b"1, " * 30_000 + b"1]}", "longer than 65536 bytes"),
        (b" " * 100_000, "longer than 65536 bytes"),
    ],
)
def test_a_line_that_is_no_json(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD[0]).encode() + b"\n" + line + b"\n")
    sentence = failure(path)
    assert sentence.startswith(f"{path}, line 2: {message}")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"nums": [[1, 2]]}, "missing target; the columns there are nums"),
        ({"target": [3]}, "missing nums; the columns there are target"),
        ({"a": [3]}, "missing nums and target; the columns there are a"),
        ({"nums": [[1.0, 2.0]], "target": [3]}, "the column nums must hold lists of whole numbers, not list<"),
        ({"nums": [[1, 2]], "target": [3.0]}, "the column target must hold whole numbers, not double"),
        ({"nums": [[1, 2]], "target": [float("nan")]}, "the column target must hold whole numbers, not double"),
        ({"nums": [[1, 2]], "target": ["3"]}, "the column target must hold whole numbers, not string"),
        ({"nums": [[1, 2]], "target": [True]}, "the column target must hold whole numbers, not bool"),
        ({"nums": [[[1, 2]]], "target": [3]}, "the column nums must hold lists of whole numbers, not list<"),
        ({"nums": [["1", "2"]], "target": [3]}, "the column nums must hold lists of whole numbers, not list<"),
        ({"nums": [12], "target": [3]}, "the column nums must hold lists of whole numbers, not int64"),
        ({"nums": ["1 2"], "target": [3]}, "the column nums must hold lists of whole numbers, not string"),
        ({"nums": [{"a": 1}], "target": [3]}, "the column nums must hold lists of whole numbers, not struct<"),
        ({"nums": [[1, 2], [1, -2]], "target": [3, 3]}, "row 2: each of the numbers must be a whole number"),
        ({"nums": [[1, 2], [1, 10**12]], "target": [3, 3]}, "row 2: each of the numbers must be a whole number"),
        ({"nums": [[1, 2], [1, None]], "target": [3, 3]}, "row 2: each of the numbers must be a whole number"),
        ({"nums": [[1, 2], None], "target": [3, 3]}, "row 2: numbers must be a tuple or list"),
        ({"nums": [[1, 2], [1, 2]], "target": [3, None]}, "row 2: the target must be a whole number"),
        ({"nums": [[1, 2], [1]], "target": [3, 3]}, "row 2: a puzzle has 2 to 6 numbers, not 1"),
    ],
)
def test_bad_columns_and_rows_of_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write_parquet(tmp_path / "rows.parquet", columns)
    sentence = failure(path)
    assert sentence.startswith(str(path))
    assert message in sentence


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text", b"\x00" * 1000])
def test_no_parquet_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    assert failure(path).startswith(f"{path} cannot be read as a parquet file (")


@pytest.mark.parametrize("cut", [20, 200])
def test_a_parquet_file_cut_short(tmp_path: Path, cut: int) -> None:
    path = write_parquet(tmp_path / "rows.parquet", columns_of(GOOD))
    path.write_bytes(path.read_bytes()[:-cut])
    assert failure(path).startswith(f"{path} cannot be read as a parquet file (")


def test_a_parquet_file_with_a_damaged_page(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", columns_of(GOOD), compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    assert failure(path).startswith(f"{path} cannot be read as a parquet file (")


def test_nothing_in_it(tmp_path: Path) -> None:
    import pyarrow as pa

    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert failure(empty) == f"{empty} holds no rows."
    columns = {"nums": pa.array([], pa.list_(pa.int64())), "target": pa.array([], pa.int64())}
    path = write_parquet(tmp_path / "empty.parquet", columns)
    assert failure(path) == f"{path} holds no rows."


def test_nothing_left_of_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [UNSOLVABLE] * 3)
    assert "holds 0 usable puzzles in 3 rows (dropped 3 unsolvable, 0 duplicate and 0 shared" in failure(path)


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", GOOD)
    sentence = failure(f"{path},{path}", eval_puzzles=60)
    assert "holds 0 usable puzzles in 60 rows" in sentence
    assert "60 shared with evaluation), and training need at least 1" in sentence


def test_not_enough_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", GOOD)
    assert "holds 60 usable puzzles in 60 rows" in failure(path, eval_puzzles=61)
    assert "evaluation and training need at least 61" in failure(path, eval_puzzles=60)
    assert "evaluation and training need at least 66" in failure(path, eval_puzzles=50, min_train=16)
    assert_sound(load_splits(str(path), eval_puzzles=44, seed=0, min_train=16), 16, 44)
    assert_sound(load_splits(str(path), eval_puzzles=60, seed=0, train_puzzles=0), 0, 60)
    assert "evaluation need at least 61" in failure(f"{path},{path}", eval_puzzles=61)


@pytest.mark.parametrize(
    "name", ["missing.parquet", "missing.jsonl", "missing", "missing/rows.jsonl", "a/b/c", "x\0.jsonl", "n" * 5000]
)
def test_no_such_file(tmp_path: Path, name: str) -> None:
    sentence = failure(tmp_path / name)
    assert sentence.startswith("there is no file ")
    assert "--data takes synthetic" in sentence


def test_one_of_two_files_is_missing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", GOOD)
    assert "there is no file 'missing.jsonl'" in failure(f"{path},missing.jsonl")
    assert failure(f"{path},").startswith("'' is no .parquet or .jsonl file")
    assert failure("").startswith("'' is no .parquet or .jsonl file")


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows", "rows.parquet.gz"])
def test_another_kind_of_file(tmp_path: Path, name: str) -> None:
    assert "is no .parquet or .jsonl file" in failure(write_jsonl(tmp_path / name, GOOD))


@pytest.mark.parametrize("name", ["folder", "folder.jsonl", "folder.parquet"])
def test_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "is no .parquet or .jsonl file" in failure(tmp_path / name)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_file_that_may_not_be_read(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / name, GOOD)
    path.chmod(0)
    assert "cannot be read" in failure(path)


@pytest.mark.parametrize(
    "options", [{"eval_puzzles": -1}, {"train_puzzles": -1}, {"seed": -1}], ids=lambda options: next(iter(options))
)
def test_negative_settings(options: dict[str, int]) -> None:
    name = next(iter(options))
    assert failure("synthetic", **options) == f"{name} must be zero or above, not -1."


def test_memory_is_bounded_by_what_is_asked_for() -> None:
    """A stream of 20,000 rows, of which 150 are kept at a time: some hundred kilobytes, not megabytes."""

    def stream() -> Iterator[Row]:
        rng = random.Random(0)
        for number in range(20_000):
            yield f"row {number}", [rng.randint(1, 99) for _ in range(4)], rng.randint(10, 100)

    tracemalloc.start()
    try:
        sample = _sample(RowSource(name="stream", read=stream), 150, seed=0, excluded=())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(sample.puzzles), sample.rows, sample.complete) == (150, 20_000, False)
    assert peak < 500_000


def test_the_sample_is_the_first_of_the_seeded_order() -> None:
    stream = RowSource(
        name="stream", read=lambda: ((f"row {i}", row["nums"], row["target"]) for i, row in enumerate(GOOD))
    )
    whole = _sample(stream, 60, seed=0, excluded=())
    assert whole.complete
    assert _sample(stream, 59, seed=0, excluded=()).complete is False
    assert _sample(stream, 7, seed=0, excluded=()).puzzles == whole.puzzles[:7]


# The hub: the loader is replaced, no test asks the network.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that answers, with one data set "owner/name"; fill in its splits. None of it is real."""
    import datasets

    splits: dict[str, Any] = {}

    def load_dataset(name: str) -> Any:
        if name != "owner/name":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub.")
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(rows_module, "_answers", lambda endpoint: True)
    return splits


def test_hub_with_two_splits(hub: dict[str, Any]) -> None:
    hub["train"] = {**columns_of([*GOOD[:40], GOOD[55]]), "note": ["x"] * 41}
    hub["test"] = columns_of(GOOD[50:])
    splits = load_splits("owner/name", eval_puzzles=10, seed=0)
    assert_sound(splits, 40, 10)
    assert splits.dropped_overlap == 1
    assert splits.description.startswith("owner/name: 40 train and 10 evaluation puzzles of 51 rows")


def test_hub_without_a_test_split(hub: dict[str, Any]) -> None:
    hub["train"] = columns_of(GOOD)
    assert_sound(load_splits("owner/name", eval_puzzles=10, seed=0), 50, 10)


def test_hub_faults(hub: dict[str, Any]) -> None:
    assert "the hub gives no data set owner/other" in failure("owner/other")
    hub["validation"] = columns_of(GOOD)
    assert failure("owner/name") == "the hub data set owner/name has no split train, only validation."
    hub["train"] = {"numbers": [[1, 2]], "target": [3]}
    assert failure("owner/name") == "owner/name train: missing nums; the columns there are numbers, target."
    hub["train"] = {"nums": [[1, 2], [1, 2]], "target": [3, None]}
    assert "owner/name train, row 2: the target must be a whole number" in failure("owner/name")
    hub["train"] = {"nums": [[1.0, 2.0]], "target": [3]}
    assert "row 1: each of the numbers must be a whole number from 1 to 9999, not 1.0" in failure("owner/name")
    hub["train"] = {"nums": [], "target": []}
    assert failure("owner/name") == "owner/name train holds no rows."


def test_the_hub_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loader, as HF_HUB_OFFLINE=1 sets it."""
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    sentence = failure("nobody/no-such-data")
    assert sentence.startswith("the hub is unreachable (HF_HUB_OFFLINE is set) and the data set nobody/no-such-data is")
    assert "try --data synthetic" in sentence


def test_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the real loader is told to look into its cache at once, and the setting is put back."""
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(rows_module, "_answers", lambda endpoint: False)
    sentence = failure("nobody/no-such-data")
    assert sentence.startswith("the hub is unreachable and the data set nobody/no-such-data is not in the cache")
    assert "try --data synthetic" in sentence
    assert config.HF_HUB_OFFLINE is False


def test_the_connection_breaks(monkeypatch: pytest.MonkeyPatch, hub: dict[str, Any]) -> None:
    import datasets

    def broken(error: Exception) -> Any:
        def load_dataset(name: str) -> Any:
            raise error

        return load_dataset

    monkeypatch.setattr(datasets, "load_dataset", broken(ConnectionError("Couldn't reach 'owner/name' on the Hub")))
    assert "the hub is unreachable" in failure("owner/name")
    monkeypatch.setattr(datasets, "load_dataset", broken(RuntimeError("Dataset scripts are no longer supported\nmore")))
    assert failure("owner/name") == (
        "the hub data set owner/name cannot be loaded (Dataset scripts are no longer supported)."
    )


def test_whether_something_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(rows_module, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert rows_module._answers(f"http://127.0.0.1:{port}")
    assert not rows_module._answers(f"http://127.0.0.1:{port}")
    monkeypatch.setattr(rows_module, "getproxies", lambda: {"https": "http://proxy"})
    assert rows_module._answers(f"http://127.0.0.1:{port}")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real rows are not here")
def test_the_real_rows() -> None:
    source = f"{REAL_DATA / 'train.parquet'},{REAL_DATA / 'dev.parquet'}"
    splits = load_splits(source, eval_puzzles=256, seed=42, train_puzzles=1000)
    assert_sound(splits, 1000, 256)
    assert (splits.dropped_unsolvable, splits.dropped_overlap) == (0, 0)
