"""Rows of puzzles as they come, from parquet and jsonl files and from the hub: streamed, checked for their columns."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from nsr.errors import UserError
from nsr.tasks.countdown.puzzle import MAX_SIZE, cut, plain, shown

Row: TypeAlias = "tuple[str, object, object]"  # where it stands, nums, target; the values are not yet checked

ALLOWED = (
    "--data takes synthetic, synthetic:SIZES, a .parquet or .jsonl file, two such files as TRAIN,EVALUATION, "
    "or a hub data set as owner/name"
)
_COLUMNS = ("nums", "target")
_BATCH_ROWS = 4096
_LONGEST_LINE = 1 << 16  # bytes; a puzzle takes about 50
_BUFFER = 1 << 16  # bytes of a column read at once; without it, all of a row group's, which may be the whole file
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows that can be read more than once, each time from the start."""

    name: str
    """For messages: a file's path is escaped in it."""
    read: Callable[[], Iterator[Row]]


def open_sources(source: str) -> tuple[RowSource, RowSource | None]:
    """Where the training rows come from, and the evaluation rows if they have a place of their own.

    Raises:
        ValueError: `source` is nothing that can be read; what is wrong inside a file shows when it is read.
    """
    first, comma, second = source.partition(",")
    if comma and not _exists(source):
        return _open_file(first.strip()), _open_file(second.strip())
    if _HUB_ID.fullmatch(source) and Path(source).suffix not in _READERS and not _exists(source):
        return _open_hub(source)
    return _open_file(source), None


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False


def _open_file(path: str) -> RowSource:
    if not _exists(path):
        raise UserError(f"there is no file {shown(path)}: {ALLOWED}.")
    reader = _READERS.get(Path(path).suffix)
    if reader is None or not Path(path).is_file():
        raise UserError(f"{shown(path)} is no .parquet or .jsonl file: {ALLOWED}.")
    name = plain(path)
    return RowSource(name=name, read=lambda: reader(name, Path(path)))


def _read_parquet(name: str, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # As a file that Python has opened: pyarrow takes no path that is not UTF-8.
        with path.open("rb") as opened, pq.ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False) as file:
            _check_schema(name, file.schema_arrow)
            _check_row_groups(name, file)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(_COLUMNS)):
                for nums, target in zip(batch["nums"].to_pylist(), batch["target"].to_pylist(), strict=True):
                    number += 1
                    yield f"row {number}", nums, target
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: names of columns in a damaged file
        raise UserError(f"{name} cannot be read as a parquet file ({_first_line(error)}).") from error


def _check_schema(name: str, schema: Any) -> None:
    import pyarrow.types as types

    _check_columns(name, schema.names)
    nums, target = schema.field("nums").type, schema.field("target").type
    is_list = types.is_list(nums) or types.is_large_list(nums) or types.is_fixed_size_list(nums)
    if not (is_list and types.is_integer(nums.value_type)):
        raise UserError(f"{name}: the column nums must hold lists of whole numbers, not {_brief(nums)}.")
    if not types.is_integer(target):
        raise UserError(f"{name}: the column target must hold whole numbers, not {_brief(target)}.")


def _check_row_groups(name: str, file: Any) -> None:  # a pyarrow.parquet.ParquetFile
    """Compression makes a list of a hundred million numbers a file of a kilobyte: find it before it is unpacked."""
    # Reads the column in small pieces, without keeping them. What is damaged raises here: what follows would abort.
    file.scan_contents(["nums"])
    indices = [i for i in range(len(file.schema)) if file.schema.column(i).path.split(".")[0] == "nums"]
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        numbers = sum(group.column(i).num_values for i in indices)
        if numbers > MAX_SIZE * group.num_rows:
            found = f"{numbers:,} numbers in a group of {group.num_rows:,} rows"
            raise UserError(f"{name}: {found}, and a puzzle has at most {MAX_SIZE}.")


def _read_jsonl(name: str, path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise UserError(f"{name}, line {number}: longer than {_LONGEST_LINE} bytes, so no puzzle.")
                if line.strip():
                    yield _parsed_line(f"{name}, line {number}", f"line {number}", line)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({_first_line(error)}).") from error


def _parsed_line(name: str, where: str, line: bytes) -> Row:
    try:
        record: object = json.loads(line, object_pairs_hook=_unique)
    except _RepeatedKey as error:
        raise UserError(f"{name}: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: no JSON ({_first_line(error)}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{name}: must be an object with nums and target, not {type(record).__name__}.")
    values = cast("dict[str, object]", record)
    _check_columns(name, list(values))
    return where, values["nums"], values["target"]


class _RepeatedKey(ValueError):
    """Which of its values is meant?"""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key, times = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _RepeatedKey(f"the key {shown(key)} stands {times} times")
    return values


_READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {".parquet": _read_parquet, ".jsonl": _read_jsonl}


def _open_hub(name: str) -> tuple[RowSource, RowSource | None]:
    splits = _load_hub(name)
    if "train" not in splits:
        raise UserError(f"the hub data set {name} has no split train, only {_listed(list(splits))}.")
    evaluation = _hub_source(f"{name} test", splits["test"]) if "test" in splits else None
    return _hub_source(f"{name} train", splits["train"]), evaluation


def _hub_source(name: str, table: Any) -> RowSource:  # a datasets.Dataset
    _check_columns(name, table.column_names)

    def read() -> Iterator[Row]:
        number = 0
        for batch in table.select_columns(list(_COLUMNS)).iter(batch_size=_BATCH_ROWS):
            for nums, target in zip(batch["nums"], batch["target"], strict=True):
                number += 1
                yield f"row {number}", nums, target

    return RowSource(name=name, read=read)


def _load_hub(name: str) -> dict[str, Any]:
    """The splits of a hub data set: memory-mapped files, downloaded once; without the hub, what the cache holds."""
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    offline = config.HF_HUB_OFFLINE
    reachable = not offline and _answers(config.HF_ENDPOINT)
    try:
        # The client tries again for half a minute before it looks into its cache: not where nothing answers.
        config.HF_HUB_OFFLINE = not reachable
        return {str(split): table for split, table in load_dataset(name).items()}
    except DatasetNotFoundError as error:
        raise UserError(f"the hub gives no data set {name} ({_first_line(error)}): {ALLOWED}.") from error
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if reachable and not isinstance(error, ConnectionError):
            raise UserError(f"the hub data set {name} cannot be loaded ({_first_line(error)}).") from error
        why = "is unreachable (HF_HUB_OFFLINE is set)" if offline else "is unreachable"
        raise UserError(
            f"the hub {why} and the data set {name} is not in the cache: try --data synthetic, or a local .parquet or "
            ".jsonl file."
        ) from error
    finally:
        config.HF_HUB_OFFLINE = offline


def _answers(endpoint: str) -> bool:
    """Whether something takes a connection at `endpoint`; behind a proxy this is left for the client to find out."""
    if getproxies():
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _check_columns(name: str, columns: list[str]) -> None:
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise UserError(f"{name}: missing {' and '.join(missing)}; the columns there are {_listed(columns)}.")
    repeated = [column for column in _COLUMNS if columns.count(column) > 1]
    if repeated:
        raise UserError(f"{name}: the column {repeated[0]} stands {columns.count(repeated[0])} times.")


def _listed(names: list[str]) -> str:
    return ", ".join(map(_brief, names[:10])) or "none"


def _brief(text: object) -> str:
    """A name or type from a file, for a message."""
    return cut(plain(str(text)), 30)


def _first_line(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    text = str(error).strip() or type(error).__name__
    return plain(text.splitlines()[0][:200]).rstrip(".")
