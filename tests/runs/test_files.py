from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from nsr.runs.files import (
    append_line,
    gzip_lines_writer,
    iterate_gzip_lines,
    read_bytes,
    read_gzip_lines,
    read_json,
    read_last_lines,
    read_lines,
    to_json,
    write_atomic,
    write_gzip_lines,
    write_json,
)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"other")
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_values_become_strict_json() -> None:
    record = {
        "nan": float("nan"),
        "inf": -np.inf,
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "array": np.array([1.0, np.nan]),
        "text": "é\n",
        "flag": True,
        7: (1, None),
    }
    expected = {
        "nan": None,
        "inf": None,
        "scalar": 0.5,
        "count": 3,
        "array": [1.0, None],
        "text": "é\n",
        "flag": True,
        "7": [1, None],
    }
    assert json.loads(to_json(record)) == expected
    with pytest.raises(TypeError, match="Path"):
        to_json({"path": Path()})


def test_lines_are_appended_whole_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    writes: list[bytes] = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        writes.append(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    append_line(path, {"step": 1, "text": "a\nb"})
    append_line(path, {"step": 2})
    assert writes == [b'{"step": 1, "text": "a\\nb"}\n', b'{"step": 2}\n']
    assert path.read_bytes() == b"".join(writes)

    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
    with pytest.raises(OSError, match="4 of 12 bytes"):
        append_line(path, {"step": 3})
    assert read_lines(path) == [{"step": 1, "text": "a\nb"}, {"step": 2}]


@pytest.mark.parametrize("rest", ["", '{"step": 2', '{"step": 2}', "\ufffd"])
def test_half_a_last_line_is_left_out(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + rest.encode()[:-1] + rest.encode()[-1:])
    assert read_lines(path) == [{"step": 1}]


def test_any_other_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not JSON"):
        read_lines(path)
    path.write_text('{"step": 1}\n3\n')
    with pytest.raises(ValueError, match="line 2, is no JSON object"):
        read_lines(path)
    assert read_lines(tmp_path / "missing.jsonl") == []


def test_broken_json_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("{", "[1]", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"config\.json"):
            read_json(path)


def test_samples_repeat_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"text": "lone \ud800 surrogate"}, {"text": "<think>"}]
    write_gzip_lines(tmp_path / "a.jsonl.gz", records)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write_gzip_lines(tmp_path / "b.jsonl.gz", iter(records))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert read_gzip_lines(tmp_path / "a.jsonl.gz") == records
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).count(b"\n") == 2


def test_the_last_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_last_lines(path, 3) == []
    path.write_bytes(b"")
    assert read_last_lines(path, 3) == []
    for number in range(5):
        append_line(path, {"step": number})
    assert read_last_lines(path, 3) == [{"step": 2}, {"step": 3}, {"step": 4}]
    assert read_last_lines(path, 9) == read_lines(path)
    with path.open("ab") as file:
        file.write(b'{"step": 5')
    assert read_last_lines(path, 1) == [{"step": 4}]


def test_the_last_lines_of_a_long_file_begin_with_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    records = [{"step": number, "text": "x" * 100} for number in range(2000)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_last_lines(path, 10**6)
    assert 400 < len(found) < 700  # 64 kB
    assert found == records[-len(found) :]
    path.write_text("x" * 200_000 + "\n" + '{"step": 1}\n')
    assert read_last_lines(path, 9) == [{"step": 1}]
    path.write_text('{"step": 1}\nx\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl, near its end, is not JSON"):
        read_last_lines(path, 9)


def test_a_file_of_samples_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip_lines_writer(path) as write:
        write({"n": 1})
        assert not path.exists()
        write({"n": 2})
    whole = path.read_bytes()
    assert list(iterate_gzip_lines(path)) == [{"n": 1}, {"n": 2}]

    def cut_off() -> None:
        with gzip_lines_writer(path) as write:
            write({"n": 3})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_off()
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl.gz"]


def test_samples_go_to_the_disk_as_they_come(tmp_path: Path) -> None:
    with gzip_lines_writer(tmp_path / "a.jsonl.gz") as write:
        (aside,) = tmp_path.iterdir()
        sizes = []
        for number in range(5000):
            write({"text": hashlib.sha256(str(number).encode()).hexdigest()})  # does not compress away
            sizes.append(aside.stat().st_size)
    assert len(set(sizes)) > 5
    assert sizes[-1] > 0.8 * (tmp_path / "a.jsonl.gz").stat().st_size


def test_samples_are_read_one_by_one_and_a_broken_rest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    write_gzip_lines(path, [{"n": n} for n in range(1000)])
    path.write_bytes(path.read_bytes()[:-30])
    records = iterate_gzip_lines(path)
    assert next(records) == {"n": 0}
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be read, near line \d+"):
        list(records)


def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        path = tmp_path / name
        for read in (read_bytes, read_json, read_lines, lambda path: read_last_lines(path, 1), read_gzip_lines):
            with pytest.raises(ValueError, match="is no ordinary file"):
                read(path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_what_is_nested_too_deeply_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is not JSON"):
        read_json(path)
    path.write_text('{"a": ' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"line 1, is not JSON"):
        read_lines(path)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        to_json(deep)
    while deep:  # taken apart by hand: to be dropped at once it would have to be unwound as deeply
        deep = deep[0]  # type: ignore[assignment]


def test_a_few_bytes_that_unfold_to_all_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsr.runs.files._LONGEST_LINE", 1000)
    path = tmp_path / "bomb.jsonl.gz"
    write_gzip_lines(path, [{"a": "x" * 900}])
    assert len(read_gzip_lines(path)) == 1
    write_gzip_lines(path, [{"a": "x" * 1000}])
    with pytest.raises(ValueError, match=r"near line 0 \(a line of 1000 bytes or more\)"):
        read_gzip_lines(path)


def test_lines_are_not_appended_through_a_link(tmp_path: Path) -> None:
    outside, link = tmp_path / "outside", tmp_path / "metrics.jsonl"
    outside.write_text("mine\n")
    link.symlink_to(outside)
    with pytest.raises(OSError):
        append_line(link, {"step": 1})
    assert outside.read_text() == "mine\n"
