"""Read the columns that decide out of data files that are checked, batch by batch.

The files are Parquet, CSV, JSON lines or Arrow IPC.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from consentry.domain.errors import ConsentryError, InvalidInput
from consentry.trainer.deciding.columns import (
    Columns,
    ColumnSpec,
    json_member_id,
    json_micros_of,
    json_text_of,
)

BATCH_ROWS: Final = 65_536
"""Rows of one batch at most."""
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_BLOCK_BYTES: Final = 4 * 1024 * 1024
_FILES_MAX: Final = 1_000_000
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"

Source = Path | bytes
"""A file, or the bytes of one."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that is checked, and the columns that its directories' names give it.

    A directory `jurisdiction=HK` gives all rows below it that jurisdiction.
    """

    path: Path
    partitions: Mapping[str, str | None] = field(default_factory=dict)


def find_files(paths: Iterable[Path], *, ignored: Sequence[str] = ()) -> Iterator[DataFile]:
    """Yield the data files to check, and those in the directories, in order.

    By custom a name that starts with '.' or '_' is not data. `ignored` are further patterns for
    names in directories. Raises InvalidInput for a path that is not there.
    """
    for path in paths:
        if path.is_dir():
            yield from _in_directory(path, ignored)
        elif path.exists():
            yield DataFile(path, _partitions(path.parent.parts))
        else:
            raise InvalidInput(
                f"There is no file {str(path)!r}.",
                code="input.file",
                fix="name a file or a directory",
            )


def _in_directory(root: Path, ignored: Sequence[str]) -> Iterator[DataFile]:
    seen: set[str] = set()
    count = 0
    for directory, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link back to a directory that has been read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = _data_names(folders, ignored)
        for name in _data_names(names, ignored):
            count += 1
            if count > _FILES_MAX:
                raise InvalidInput(
                    f"The directory {str(root)!r} has more than {_FILES_MAX} files.",
                    code="input.files",
                    fix="check its parts one by one",
                )
            yield DataFile(Path(directory, name), _partitions(Path(directory).parts))


def _data_names(names: Iterable[str], ignored: Sequence[str]) -> list[str]:
    return sorted(name for name in names if _is_data(name, ignored))


def _is_data(name: str, ignored: Sequence[str]) -> bool:
    # Readers take `_name=value` for a partition, though it begins as hidden names do.
    if name.startswith(".") or (name.startswith("_") and "=" not in name):
        return False
    return not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)


def _partitions(parts: Iterable[str]) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name and equals:
            values[unquote(name)] = None if value == _HIVE_NULL else unquote(value)
    return values


def read_batches(file: DataFile, spec: ColumnSpec) -> Iterator[tuple[pa.Table, Columns]]:
    """Yield the deciding columns of a file to check, at most BATCH_ROWS rows at a time.

    Numbers and texts are taken as they are. Null and malformed member ids stay in, for the decider
    to exclude. Raises InvalidInput where the file cannot be read.
    """
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    read = _READERS.get(kind)
    if read is None:
        known = ", ".join(sorted(_READERS))
        raise InvalidInput(
            f"The name {file.path.name!r} does not show what kind of file it is.",
            code="input.format",
            fix=f"name it {known}, the text ones also with .gz; or have it ignored",
        )
    yield from read_as(read, file.path, spec, file.partitions)


Reader = Callable[
    [Source, ColumnSpec, Mapping[str, str | None]], Iterator[tuple[pa.Table, Columns]]
]


def read_as(
    read: Reader, source: Source, spec: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    """Yield the batches that a reader gives of a data file to check.

    Raises InvalidInput for every error, without the text of Arrow's errors, which may hold rows.
    """
    try:
        yield from read(source, spec, partitions)
    except ConsentryError:
        raise
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        OverflowError,
        csv.Error,
    ) as error:
        raise InvalidInput(
            f"It cannot be read as what it is named ({type(error).__name__}).",
            code="input.unreadable",
            fix="check that it is whole, and of the kind that its name says",
        ) from error


def _with_partitions(
    table: pa.Table, columns: Columns, partitions: Mapping[str, str | None]
) -> tuple[pa.Table, Columns]:
    """Return the table with the values of its directories, where rows do not have them themselves.

    Raises InvalidInput where a row has another value than its directory.
    """
    for name in columns.names:
        if name not in table.column_names:
            table = table.append_column(name, _repeated(partitions[name], table))
        elif partitions.get(name) is not None:
            # Only the distinct values are cast: a long text that many rows share stays one.
            own = set(table[name].unique().cast(pa.string()).to_pylist())
            if own - {None, partitions[name]}:
                raise _contradiction(name)
            if table[name].null_count:
                table = _with_value(table, name, partitions[name])
    return table, columns


def _repeated(value: str | None, table: pa.Table) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), table.num_rows)


def _with_value(table: pa.Table, name: str, value: str | None) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, _repeated(value, table))


def _contradiction(name: str) -> InvalidInput:
    return InvalidInput(
        f"The column {name!r} does not say what the directory of the file says.",
        code="input.partition",
        fix="readers differ in which they believe: remove the column, or move the rows to the "
        "right directory",
    )


def _all_names(names: Sequence[str], partitions: Mapping[str, str | None]) -> list[str]:
    further = [name for name in partitions if name not in names]
    return [*names, *further]


def read_parquet(
    source: Source, spec: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    """Yield the batches of a Parquet file that is checked for rows not to be used."""
    limits = {"thrift_string_size_limit": 64 << 20, "thrift_container_size_limit": 1 << 22}
    with pq.ParquetFile(_parquet_source(source), **limits) as file:
        schema = file.schema_arrow
        columns = spec.find_among(_all_names(schema.names, partitions))
    stored = [name for name in columns.names if name in schema.names]
    # One long text that many rows share stays one: as a plain column it could be larger than any
    # memory. Member ids are nearly all different: only in a body that a stranger sent may one long
    # text stand for all of them.
    texts = [name for name in stored if pa.types.is_string(schema.field(name).type)]
    if columns.member in texts and not isinstance(source, bytes):
        texts.remove(columns.member)
    with pq.ParquetFile(_parquet_source(source), read_dictionary=texts, **limits) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=stored):
            yield _with_partitions(pa.Table.from_batches([batch]), columns, partitions)


def _parquet_source(source: Source) -> pa.BufferReader | str:
    if isinstance(source, bytes):
        return pa.BufferReader(source)
    return str(source)


def read_ipc(
    source: Source, spec: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    """Yield the batches of an Arrow IPC file that is checked, or of a stream."""
    opened = pa.BufferReader(source) if isinstance(source, bytes) else pa.memory_map(str(source))
    with opened:
        is_file = opened.read(6) == b"ARROW1"
        opened.seek(0)
        reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
        names = reader.schema.names
        columns = spec.find_among(_all_names(names, partitions))
        stored = [name for name in columns.names if name in names]
        batches = reader
        if is_file:
            batches = map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            # Readers trust the offsets in a file: one that points elsewhere would end this process.
            whole = batch.select(stored)
            whole.validate(full=True)
            for start in range(0, max(whole.num_rows, 1), BATCH_ROWS):
                table = pa.Table.from_batches([whole.slice(start, BATCH_ROWS)])
                yield _with_partitions(table, columns, partitions)
        if not is_file and opened.tell() < opened.size():
            raise InvalidInput(
                "The Arrow stream ends before its file does: the rest, maybe another stream, is "
                "not read.",
                code="input.unreadable",
                fix="write each stream to a file of its own",
            )


def _read_csv(
    source: Source, spec: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    assert isinstance(source, Path)
    delimiter = "\t" if ".tsv" in source.suffixes else ","
    with _text(source) as lines, io.TextIOWrapper(lines, "utf-8-sig", newline="") as text:
        names = next(csv.reader(text, delimiter=delimiter), [])
    columns = spec.find_among(_all_names(names, partitions))
    stored = [name for name in columns.names if name in names]
    # Nothing is guessed: "NA" is Namibia, and an id of digits keeps its leading zeros.
    column_types = {name: pa.string() for name in stored if name != columns.collected}
    options = pacsv.ConvertOptions(
        include_columns=stored,
        column_types=column_types,
        null_values=[""],
        strings_can_be_null=True,
    )
    with (
        pa.input_stream(str(source), compression="detect") as stream,
        pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=options,
        ) as reader,
    ):
        for batch in reader:
            yield _with_partitions(pa.Table.from_batches([batch]), columns, partitions)


def _read_lines(
    source: Source, spec: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    assert isinstance(source, Path)
    columns: Columns | None = None
    names: dict[str, None] = {}
    with _text(source) as lines:
        numbered = enumerate(iter(lambda: lines.readline(_LINE_BYTES_MAX + 1), b""), start=1)
        while chunk := list(islice(numbered, BATCH_ROWS)):
            rows = [_object(number, line) for number, line in chunk if line.strip()]
            known = len(names)
            names.update(dict.fromkeys(chain.from_iterable(rows)))
            if columns is None or len(names) > known:
                # A column may begin at any row: the rows before then have null in it.
                columns = spec.find_among(_all_names(list(names), partitions))
            yield _table_of_rows(rows, columns, partitions), columns


def _table_of_rows(
    rows: Sequence[Mapping[str, Any]], columns: Columns, partitions: Mapping[str, str | None]
) -> pa.Table:
    values: dict[str, list[Any]] = {}
    for name in columns.names:
        values[name] = [row.get(name) for row in rows]
    table = table_of(columns, values, len(rows))
    for name, own in values.items():
        of_directory = partitions.get(name)
        if of_directory is not None:
            # Compared before the table is made: in it a value that is not an id is null, and would
            # pass for a row that has no value.
            if any(value is not None and json_member_id(value) != of_directory for value in own):
                raise _contradiction(name)
            table = _with_value(table, name, of_directory)
    return table


def _object(number: int, line: bytes) -> dict[str, Any]:
    document = None
    if len(line) <= _LINE_BYTES_MAX:
        try:
            document = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError):
            document = None
    if not isinstance(document, dict):
        raise InvalidInput(
            f"Line {number} is not one JSON object of at most {_LINE_BYTES_MAX} bytes, each key "
            "in it once.",
            code="input.json",
            fix="write one object a line, and no key twice: readers differ in which they believe",
        )
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is there twice")
    return document


@contextmanager
def _text(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as unpacked:
            yield cast(IO[bytes], unpacked)
    else:
        with path.open("rb") as plain:
            yield plain


def table_of(columns: Columns, values: Mapping[str, Sequence[Any]], rows: int) -> pa.Table:
    """Return JSON values by column as a table, to check its rows.

    They are of any kind that JSON has. A member id that is neither text nor number becomes null.
    Raises InvalidInput where a time of collection is none: the side of the cut-off that the row is
    on would be a guess.
    """
    arrays: dict[str, pa.Array] = {}
    arrays[columns.member] = pa.array(map(json_member_id, values[columns.member]), pa.string())
    for name in (columns.jurisdiction, columns.category):
        if name is not None:
            arrays[name] = pa.array(map(json_text_of, values[name]), pa.string())
    if columns.collected is not None:
        times = map(json_micros_of, values[columns.collected])
        arrays[columns.collected] = pa.array(times, pa.int64())
    assert all(len(column) == rows for column in arrays.values())
    return pa.table(arrays)


_READERS: Final[Mapping[str, Reader]] = {
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".arrow": read_ipc,
    ".arrows": read_ipc,
    ".feather": read_ipc,
    ".ipc": read_ipc,
}
