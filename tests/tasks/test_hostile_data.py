"""Data files made to fool or to drown the reader: each is refused in one sentence of our own, or streamed."""

from __future__ import annotations

import io
import json
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_data import GOOD, columns_of, write_jsonl, write_parquet

from nsr.errors import UserError
from nsr.tasks.countdown.data import _pick, load_splits, puzzle_keys
from nsr.tasks.countdown.rows import Row, RowSource, open_sources


def refusal(source: object) -> str:
    """The one sentence with which a source is refused, raised by us and not by a library: what a user gets to see."""
    with pytest.raises(ValueError) as caught:
        load_splits(str(source), eval_puzzles=10, seed=0)
    assert_one_sentence(caught.value)
    return str(caught.value)


def assert_one_sentence(error: ValueError) -> None:
    message = str(error)
    assert isinstance(error, UserError), repr(error)
    assert message.isprintable(), ascii(message)  # no line break, nothing that controls a terminal
    assert message.endswith(".")
    assert len(message) < 500


def with_line(path: Path, line: bytes) -> Path:
    """Good rows and one more line."""
    path.write_bytes(write_jsonl(path, GOOD).read_bytes() + line + b"\n")
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"nums": [1, 2], "nums": [3, 4], "target": 3}', "the key 'nums' stands 2 times"),
        (b'{"nums": [1, 2], "target": 3, "target": 3, "target": 4}', "the key 'target' stands 3 times"),
        (b'{"nums": [1, 2], "target": 3, "\\u001b[2J": 1, "\\u001b[2J": 2}', r"the key '\x1b[2J' stands 2 times"),
        (b'{"nums": [1, 2', "no JSON (Expecting ',' delimiter at character"),
        (b'{"nums": [1, 2], "target": 3} {"nums": [1, 2], "target": 3}', "no JSON (Extra data at character 31)"),
        (b'{"nums": [1, 2], "target": 3},', "no JSON (Extra data at character 30)"),
        (b'{"nums": [1, 2], "target": 3, "note": "\xff"}', "no JSON ('utf-8' codec can't decode byte 0xff"),
        ('{"nums": [1, 2], "target": 3}'.encode("utf-16"), "no JSON ('utf-16"),
        ('{"nums": [1, 2], "target": 3}'.encode("utf-32"), "no JSON ('utf-32"),
        (b"\0", "no JSON"),
        (b"\x1f\x8b\x08\0", "no JSON"),
        (b'{"a\\n\\u001b[2Jb\\u202e": 1}', r"the columns there are a\n\x1b[2Jb\u202e."),
        (b'{"\\ud800": 1}', r"the columns there are \ud800."),
        (json.dumps({"k" * 60_000: 1}).encode(), "the columns there are kkkkkkkkkkkkkkkkkkkkkkkkkkk...."),
        (json.dumps({f"k{i}": 1 for i in range(5_000)}).encode(), "are k0, k1, k2, k3, k4, k5, k6, k7, k8, k9."),
        (b'{"nums": "\\u001b[31m\\n", "target": 3}', r"not '\x1b[31m\n'."),
        (b'{"nums": [1, 2], "target": 1e999}', "the target must be a whole number from 1 to 9999, not inf"),
        (b'{"nums": [1, 2], "target": 1e2}', "not 100.0"),
        (b'{"nums": [1, 2], "target": -0}', "not 0"),
        (b'{"nums": [1, 2], "target": ' + b"9" * 4000 + b"}", "9999...."),
        (b'{"nums": [1, 2], "target": ' + b"9" * 6000 + b"}", "no JSON (Exceeds the limit"),
        (b'{"nums": [1, 2], "target": NaN}', "not nan"),
        (b'{"nums": [1, -Infinity], "target": 3}', "not -inf"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_hostile_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = with_line(tmp_path / "rows.jsonl", line)
    sentence = refusal(path)
    assert sentence.startswith(f"{path}, line 61: ")
    assert message in sentence


@pytest.mark.parametrize("opener", ["[", '{"a": '])
def test_lists_as_deep_as_can_be_read_and_deeper(tmp_path: Path, opener: str) -> None:
    """Around Python's limit a value can be read that cannot be shown."""
    seen: set[str] = set()
    for depth in [100, *range(800, 1001), 8_000]:
        value = opener * depth + "1" + {"[": "]"}.get(opener, "}") * depth
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"nums": [1, 2], "target": {value}}}\n', encoding="utf-8")
        seen.add(refusal(path).split(": ")[1].split(" (")[0][:30])
    assert "the target must be a whole num" in seen
    assert seen <= {"the target must be a whole num", "no JSON"}


def test_what_may_stand_in_a_file_all_the_same(tmp_path: Path) -> None:
    """A mark before a line, as in two files joined; other columns, whatever is in them; no line break at the end."""
    note = json.dumps({**GOOD[0], "note": [{"a": "\x1b[2J\ud800"}, 1e300, None]})
    lines = [b"\xef\xbb\xbf" + json.dumps(row).encode() for row in GOOD[1:]]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([note.encode(), *lines]))
    assert len(load_splits(str(path), eval_puzzles=60, seed=0, train_puzzles=0).evaluation) == 60


def test_names_that_are_no_text(tmp_path: Path) -> None:
    for name in (b"\xff", b"a\n\x1b[2Jb"):
        for suffix in (".jsonl", ".parquet"):
            path = Path(os.fsdecode(os.fsencode(tmp_path / "x") + name + suffix.encode()))
            path.write_bytes(b"nothing\n")
            assert ascii(name)[2:-1].replace("\\xff", "\\udcff") in refusal(path)
            good = write_jsonl(tmp_path / "good.jsonl", GOOD)
            if suffix == ".parquet":
                good = write_parquet(tmp_path / "good.parquet", columns_of(GOOD))
            good.replace(path)
            splits = load_splits(str(path), eval_puzzles=10, seed=0)
            assert len(splits.train) == 50
            assert splits.description.isprintable()


def test_what_is_no_file(tmp_path: Path) -> None:
    """None of these hangs, or is read without end."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, target in (("folder", tmp_path), ("nothing", tmp_path / "gone"), ("zeros", Path("/dev/zero"))):
        (tmp_path / f"{name}.jsonl").symlink_to(target)
        (tmp_path / f"{name}.parquet").symlink_to(target)
    (tmp_path / "itself.jsonl").symlink_to(tmp_path / "itself.jsonl")
    for name in ("pipe.jsonl", "folder.jsonl", "folder.parquet", "zeros.jsonl", "zeros.parquet"):
        assert "is no .parquet or .jsonl file" in refusal(tmp_path / name)
    for name in ("nothing.jsonl", "nothing.parquet", "itself.jsonl"):
        assert "there is no file" in refusal(tmp_path / name)


def test_a_link_to_a_file_is_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", GOOD)
    (tmp_path / "link.jsonl").symlink_to(path)
    assert "60 shared with evaluation" in refusal_of_two(path, tmp_path / "link.jsonl")


def refusal_of_two(train: Path, evaluation: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_splits(f"{train},{evaluation}", eval_puzzles=60, seed=0)
    assert_one_sentence(caught.value)
    return str(caught.value)


# Parquet


def test_columns_that_stand_twice(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table(columns_of(GOOD))
    nums, target = table["nums"], table["target"]
    for columns, names, message in (
        ([nums, target, target], ["nums", "target", "target"], "the column target stands 2 times"),
        ([nums, nums, nums, target], ["nums", "nums", "nums", "target"], "the column nums stands 3 times"),
    ):
        path = write_parquet(tmp_path / "rows.parquet", pa.Table.from_arrays(columns, names=names))
        assert refusal(path) == f"{path}: {message}."
    other = pa.Table.from_arrays([nums, target, target, target], names=["nums", "target", "x", "x"])
    assert len(puzzle_keys(str(write_parquet(tmp_path / "rows.parquet", other)))) == 60


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a\n\x1b[2J\u202e": [1]}, r"the columns there are a\n\x1b[2J\u202e."),
        ({"c" * 50_000: [1]}, "the columns there are ccccccccccccccccccccccccccc...."),
        ({"nums": [{"a\n\x1b[2J" * 1000: 1}], "target": [1]}, r"not struct<a\n\x1b[2J"),
        ({"nums": [None], "target": [None]}, "the column nums must hold lists of whole numbers, not null"),
        ({}, "missing nums and target; the columns there are none"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_hostile_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    assert message in refusal(write_parquet(tmp_path / "rows.parquet", columns))


def test_a_small_file_with_a_huge_list_is_not_unpacked(tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa

    count = 1_000_000
    offsets = pa.array([0, 3, 6, 6 + count], pa.int32())
    nums = pa.ListArray.from_arrays(offsets, pa.array(np.ones(6 + count, dtype=np.int64)))
    path = write_parquet(tmp_path / "rows.parquet", {"nums": nums, "target": [3] * 3}, compression="zstd")
    assert path.stat().st_size < 2_000
    peak = pa.default_memory_pool().max_memory()
    assert refusal(path) == f"{path}: 1,000,006 numbers in a group of 3 rows, and a puzzle has at most 6."
    assert pa.default_memory_pool().max_memory() - peak < 1_000_000


def test_a_column_of_another_name_may_hold_long_lists(tmp_path: Path) -> None:
    columns = {**columns_of(GOOD), "nums_tried": [list(range(100))] * 60}
    path = write_parquet(tmp_path / "rows.parquet", columns)
    assert len(load_splits(str(path), eval_puzzles=10, seed=0).train) == 50


class CountedFile(io.FileIO):
    """A file that knows how much was read of it."""

    read_so_far = 0
    largest = 0

    def read(self, size: int = -1, /) -> bytes:
        data = super().read(size)
        assert data is not None
        self.read_so_far += len(data)
        self.largest = max(self.largest, len(data))
        return data


def test_a_parquet_file_of_one_row_group_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never read in one piece: a file may be larger than the memory."""
    import numpy as np
    import pyarrow as pa

    rows = 100_000
    numbers = pa.array(np.random.default_rng(0).integers(1, 9999, 6 * rows))
    columns = {
        "nums": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * 6), numbers),
        "target": np.full(rows, 10),
    }
    options: dict[str, Any] = {"row_group_size": rows, "use_dictionary": False, "compression": "none"}
    path = write_parquet(tmp_path / "rows.parquet", columns, data_page_size=1 << 16, **options)
    size = path.stat().st_size
    assert size > 4_000_000
    files: list[CountedFile] = []

    def counted(self: Path, mode: str) -> CountedFile:
        files.append(CountedFile(self, mode))
        return files[-1]

    monkeypatch.setattr(Path, "open", counted)
    assert sum(1 for _ in open_sources(str(path))[0].read()) == rows
    assert size < files[0].read_so_far < size * 2.2  # once to look it over, once to read it
    assert files[0].largest < size / 20
    assert files[0].closed


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_parquet_file_cut_anywhere(tmp_path: Path, share: float) -> None:
    path = write_parquet(tmp_path / "rows.parquet", columns_of(GOOD))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path).startswith(f"{path} cannot be read as a parquet file (")


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_parquet_file_with_any_bytes_damaged(tmp_path: Path, compression: str) -> None:
    """Read, or refused in a sentence: no other exception, and no abort. Most of the damage is to the description."""
    rng = random.Random(compression)
    path = write_parquet(tmp_path / "rows.parquet", columns_of(GOOD), row_group_size=25, compression=compression)
    content = path.read_bytes()
    described = content.index(b"schema") - 40
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 4])):
            damaged[rng.randrange(0 if rng.random() < 0.3 else described, len(content))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            puzzle_keys(str(path))
        except ValueError as error:
            assert_one_sentence(error)
            refused += 1
    assert 100 < refused < 300


def test_a_name_of_a_column_that_is_no_utf8(tmp_path: Path) -> None:
    """What damage to a file may make of a name; the same length, so that the rest is whole."""
    path = write_parquet(tmp_path / "rows.parquet", {**columns_of(GOOD), "another": [1] * 60}, store_schema=False)
    content = path.read_bytes()
    assert content.count(b"another") > 1
    path.write_bytes(content.replace(b"another", b"an\xffther"))
    assert refusal(path).startswith(f"{path} cannot be read as a parquet file ('utf-8' codec can't decode byte 0xff")


# Memory


def test_a_jsonl_file_is_streamed(tmp_path: Path) -> None:
    """A megabyte of rows needs some ten kilobytes; of a line without end no more is read than a line may have."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"nums": [44, 19, 35], "target": 98, "note": "0123456789"}\n' * 20_000)
    endless = tmp_path / "endless.jsonl"
    endless.write_bytes(b'{"nums": [' + b"1, " * 3_000_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_sources(str(path))[0].read()) == 20_000
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 100_000
        assert "line 1: longer than 65536 bytes" in refusal(endless)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1_000_000
    finally:
        tracemalloc.stop()


def test_rows_without_a_solution_do_not_fill_the_memory() -> None:
    """Nine thousand of them, and eleven puzzles asked for: after about twenty for each and some, it is enough."""
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for target in range(1000, 10_000):
            read += 1
            yield f"row {target}", [2, 2], target

    with pytest.raises(ValueError) as caught:
        _pick(RowSource(name="flood", read=rows), 11, seed=0)
    assert_one_sentence(caught.value)
    assert str(caught.value).startswith(
        "flood: of 7,232 puzzles tried 0 have a solution, and 11 are asked for: ask for"
    )
    assert read == 4 * 9_000  # 113, 452, 1,808 and 7,232 puzzles
