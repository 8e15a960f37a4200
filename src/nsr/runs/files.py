"""Files that are whole or not there: atomic writes, lines written through, readers that tolerate half a last line."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nsr.errors import UserError

Record = dict[str, Any]

_TAIL_BYTES = 64 * 1024
_LONGEST_LINE = 64 * 2**20
"""Bytes of a compressed line beyond which it is no record: a few kB could unfold to all the memory there is."""


def open_plain(path: Path) -> IO[bytes]:
    """Open an ordinary file to read it. ValueError for a pipe, a device or a folder: some of them never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no ordinary file: restore it, or delete it.")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """All of an ordinary file. Raises as `open_plain`."""
    with open_plain(path) as file:
        return file.read()


class CannotWrite(OSError):
    """The disk did not take what was to be written: one sentence for the user, who can make room and go on."""


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn an OSError into a `CannotWrite` that names the file or folder that was to be written."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> CannotWrite:
    """The sentence for an error that came up while `path` was written."""
    known = _os_error(error)
    reason = (known and known.strerror) or str(error) or type(error).__name__
    reason = reason.strip().splitlines()[0]
    found = re.search(r"os error (\d+)", reason)  # of a library that is written in Rust
    number = known.errno if known else int(found[1]) if found else None
    free = _free(path)
    if number == errno.EFBIG:
        advice = "raise the limit on the size of files (`ulimit -f`)"
    elif number in (errno.ENOSPC, errno.EDQUOT) or (free is not None and free < 2**20):
        reason += "" if free is None else f", {free:,} bytes are free"
        advice = "make room on that disk"
    else:
        advice = "see to it that it can be written"
    return CannotWrite(
        f"{path} could not be written ({reason}): {advice}, then go on with --resume. What was saved before is "
        "untouched."
    )


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk: what was renamed is there under its new name after a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's own error behind one that a library made of it."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.exists())).free
    except OSError:
        return None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds all of it or what was there before, also after a crash."""
    with _aside(path) as file:
        file.write(data)


@contextmanager
def _aside(path: Path) -> Generator[IO[bytes], None, None]:
    """A file to write to that becomes `path` when the context ends, and goes away at an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def to_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite become null, NumPy and PyTorch values plain ones."""
    try:
        return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
    except RecursionError as error:
        raise UserError("what was read is nested too deeply to be written again: restore or delete it.") from error


def write_json(path: Path, value: object) -> None:
    """Write one value as readable JSON, atomically."""
    write_atomic(path, (to_json(value, indent=2) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path) -> Record:
    """Read an object from a JSON file. Raises ValueError that names the file where it holds none."""
    data = read_bytes(path)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or delete the folder it lies in.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: restore it, or delete the folder it lies in.")
    return value


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append one record as one line, in one write, and have it on the disk before this returns.

    Raises `CannotWrite` where the disk does not take it; of the line nothing is left then.
    A link is not followed: what a run writes is in its own folder.
    """
    data = (to_json(record) + "\n").encode(errors="backslashreplace")
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            written = os.write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, before)
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes were written, the disk is full")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file that end in a newline, without it. None for a file that is not there."""
    if not path.exists():
        return []
    return read_bytes(path).split(b"\n")[:-1]


def read_lines(path: Path) -> list[Record]:
    """The records of a file of lines. A half last line, of a run that was cut off or is going on, is left out.

    Raises ValueError that names file and line where any other line is not a record.
    """
    return [_record(line, f"{path}, line {number},") for number, line in enumerate(complete_lines(path), start=1)]


def read_last_lines(path: Path, count: int) -> list[Record]:
    """The last `count` records of a file of lines, or fewer: what lies in its last 64 kB. None for no file.

    The work does not grow with the file, so it can be done again and again. Half a last line is left out.
    Raises ValueError as `read_lines` does.
    """
    try:
        with open_plain(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    if size > _TAIL_BYTES:
        lines = lines[1:]  # the first began before what was read
    return [_record(line, f"{path}, near its end,") for line in lines[-count:]]


@contextmanager
def gzip_lines_writer(path: Path) -> Generator[Callable[[Mapping[str, object]], None], None, None]:
    """Write records as compressed lines, one by one: none is held in memory.

    Gives a function that takes a record. The file is there, whole, when the context ends, and not at all at an error.
    The same records give the same bytes: no name or time inside.
    """
    with (
        _aside(path) as aside,
        gzip.GzipFile(filename="", mode="wb", fileobj=aside, mtime=0, compresslevel=6) as file,
    ):

        def write(record: Mapping[str, object]) -> None:
            file.write((to_json(record) + "\n").encode(errors="backslashreplace"))

        yield write


def write_gzip_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write records as compressed lines, atomically."""
    with gzip_lines_writer(path) as write:
        for record in records:
            write(record)


def read_gzip_lines(path: Path) -> list[Record]:
    """The records that `write_gzip_lines` wrote. Raises ValueError as `iterate_gzip_lines`."""
    return list(iterate_gzip_lines(path))


def iterate_gzip_lines(path: Path) -> Iterator[Record]:
    """The records that `write_gzip_lines` wrote, one by one.

    Raises ValueError that names the file where it is cut off, or not of such lines.
    """
    number = 0
    try:
        for line in gzip_lines(path):
            number += 1
            record = json.loads(line)
            if not isinstance(record, dict):
                raise UserError("no JSON object")
            yield record
    except (EOFError, OSError, RecursionError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read, near line {number} ({error}): restore it or evaluate again."
        ) from error


def gzip_lines(path: Path) -> Iterator[bytes]:
    """The lines of a compressed file, one by one.

    Raises ValueError as `open_plain`, and where a line is too long for a record; OSError, EOFError or zlib.error where
    the file is damaged.
    """
    with open_plain(path) as plain, gzip.GzipFile(fileobj=plain, mode="rb") as file:
        while line := file.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise UserError(f"a line of {_LONGEST_LINE} bytes or more")
            yield line


def _record(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): delete that line.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is no JSON object: delete that line.")
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "tolist"):  # NumPy and PyTorch arrays and scalars
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no place in JSON: {value!r}")
