"""Reads the columns that a decision needs out of data files, batch by batch:

Parquet, CSV, JSON lines, Arrow IPC.
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

ROWS: Final = 65_536
"""Rows of one batch at most."""
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_BLOCK_BYTES: Final = 4 * 1024 * 1024
_FILES_MAX: Final = 1_000_000
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"

Source = Path | bytes
"""A file, or the bytes of one."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set, and what the names of its directories say:

    `jurisdiction=HK` is a column too.
    """

    path: Path
    partitions: Mapping[str, str | None] = field(default_factory=dict)


def find_files(paths: Iterable[Path], *, ignored: Sequence[str] = ()) -> Iterator[DataFile]:
    """The files, and those of the directories, in order.

    What starts with '.' or '_' is no data, by custom.

    `ignored` are patterns for names in directories. Raises InvalidInput for a path that is not
    there.
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
        if real in seen:  # a link back: what is there has been read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_no_data(name, ignored))
        for name in sorted(name for name in names if not _is_no_data(name, ignored)):
            count += 1
            if count > _FILES_MAX:
                raise InvalidInput(
                    f"The directory {str(root)!r} has more than {_FILES_MAX} files.",
                    code="input.files",
                    fix="check its parts one by one",
                )
            yield DataFile(Path(directory, name), _partitions(Path(directory).parts))


def _is_no_data(name: str, ignored: Sequence[str]) -> bool:
    # Readers take `_name=value` for a partition, though it begins as what is no data does.
    is_hidden = name.startswith(".") or (name.startswith("_") and "=" not in name)
    return is_hidden or any(fnmatch.fnmatch(name, pattern) for pattern in ignored)


def _partitions(parts: Iterable[str]) -> dict[str, str | None]:
    pairs = [part.partition("=") for part in parts if "=" in part]
    return {
        unquote(name): None if value == _HIVE_NULL else unquote(value)
        for name, _, value in pairs
        if name
    }


def read_batches(file: DataFile, asked: ColumnSpec) -> Iterator[tuple[pa.Table, Columns]]:
    """The asked columns of a file, at most ROWS rows at a time.

    Raises InvalidInput where it cannot be read.

    Numbers and texts are taken as they are; null and malformed member ids stay in, for the judge to
    exclude.
    """
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    read = _READERS.get(suffixes[-1] if suffixes else "")
    if read is None:
        raise InvalidInput(
            f"It is not told by the name {file.path.name!r} what kind of file it is.",
            code="input.format",
            fix=f"name it {', '.join(sorted(_READERS))}, the text ones also with .gz; or have it "
            "ignored",
        )
    yield from read_as(read, file.path, asked, file.partitions)


Reader = Callable[
    [Source, ColumnSpec, Mapping[str, str | None]], Iterator[tuple[pa.Table, Columns]]
]


def read_as(
    read: Reader, source: Source, asked: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    """What a reader finds.

    Raises InvalidInput for all that goes wrong; the text of Arrow's errors may hold rows.
    """
    try:
        yield from read(source, asked, partitions)
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
            fix="look whether it is whole, and of the kind that its name says",
        ) from error


def _with_partitions(
    table: pa.Table, columns: Columns, partitions: Mapping[str, str | None]
) -> tuple[pa.Table, Columns]:
    """The table with what its directories say: of a column that it has not, and of rows that do not
    say it themselves.

    Raises InvalidInput where a row says another thing than its directory.
    """
    for name in columns.names:
        if name not in table.column_names:
            table = table.append_column(name, _said_of_all(partitions[name], table))
        elif partitions.get(name) is not None:
            # Few values are distinct where all must be one: no long text is made plain for each
            # row.
            own = set(table[name].unique().cast(pa.string()).to_pylist())
            if own - {None, partitions[name]}:
                raise _otherwise_said(name)
            if table[name].null_count:
                table = _with_said(table, name, partitions[name])
    return table, columns


def _said_of_all(value: str | None, table: pa.Table) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), table.num_rows)


def _with_said(table: pa.Table, name: str, value: str | None) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, _said_of_all(value, table))


def _otherwise_said(name: str) -> InvalidInput:
    return InvalidInput(
        f"The column {name!r} does not say what the directory of the file says.",
        code="input.partition",
        fix="readers differ in which they believe: remove the column, or move the rows to the "
        "right directory",
    )


def _all_names(names: Sequence[str], partitions: Mapping[str, str | None]) -> list[str]:
    return [*names, *(name for name in partitions if name not in names)]


def read_parquet(
    source: Source, asked: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    """A Parquet file."""
    limits = {"thrift_string_size_limit": 64 << 20, "thrift_container_size_limit": 1 << 22}
    opened = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    with pq.ParquetFile(opened, **limits) as file:
        schema = file.schema_arrow
        columns = asked.find_among(_all_names(schema.names, partitions))
    found = [name for name in columns.names if name in schema.names]
    # One long text that many rows share stays one: as a plain column it could be larger than any
    # memory. Member ids are nearly all different: only in what a stranger sent may one long text
    # stand for all of them.
    texts = [
        name
        for name in found
        if pa.types.is_string(schema.field(name).type)
        and (name != columns.member or isinstance(source, bytes))
    ]
    opened = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    with pq.ParquetFile(opened, read_dictionary=texts, **limits) as file:
        for batch in file.iter_batches(ROWS, columns=found):
            yield _with_partitions(pa.Table.from_batches([batch]), columns, partitions)


def read_ipc(
    source: Source, asked: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    """An Arrow IPC file, or a stream."""
    opened = pa.BufferReader(source) if isinstance(source, bytes) else pa.memory_map(str(source))
    with opened:
        is_file = opened.read(6) == b"ARROW1"
        opened.seek(0)
        reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
        names = reader.schema.names
        columns = asked.find_among(_all_names(names, partitions))
        found = [name for name in columns.names if name in names]
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            # Offsets in a file are believed by what reads them: one that points elsewhere would end
            # this process.
            whole = batch.select(found)
            whole.validate(full=True)
            for start in range(0, max(whole.num_rows, 1), ROWS):
                yield _with_partitions(
                    pa.Table.from_batches([whole.slice(start, ROWS)]), columns, partitions
                )
        if not is_file and opened.tell() < opened.size():
            raise InvalidInput(
                "The Arrow stream ends before its file does: what follows, maybe another stream, "
                "is not read.",
                code="input.unreadable",
                fix="write each stream to a file of its own",
            )


def _read_csv(
    source: Source, asked: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    assert isinstance(source, Path)
    delimiter = "\t" if ".tsv" in source.suffixes else ","
    with _text(source) as lines, io.TextIOWrapper(lines, "utf-8-sig", newline="") as text:
        names = next(csv.reader(text, delimiter=delimiter), [])
    columns = asked.find_among(_all_names(names, partitions))
    found = [name for name in columns.names if name in names]
    options = pacsv.ConvertOptions(
        include_columns=found,
        # Nothing is guessed: "NA" is Namibia, and an id of digits keeps its leading zeros.
        column_types={name: pa.string() for name in found if name != columns.collected},
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
    source: Source, asked: ColumnSpec, partitions: Mapping[str, str | None]
) -> Iterator[tuple[pa.Table, Columns]]:
    assert isinstance(source, Path)
    columns: Columns | None = None
    names: dict[str, None] = {}
    with _text(source) as lines:
        numbered = enumerate(iter(lambda: lines.readline(_LINE_BYTES_MAX + 1), b""), start=1)
        while chunk := list(islice(numbered, ROWS)):
            rows = [_object(number, line) for number, line in chunk if line.strip()]
            known = len(names)
            names.update(dict.fromkeys(chain.from_iterable(rows)))
            if columns is None or len(names) > known:
                # A column may begin at any row: to be without it is the same as to have null, for
                # the rows before.
                columns = asked.find_among(_all_names(list(names), partitions))
            yield _table_of_rows(rows, columns, partitions), columns


def _table_of_rows(
    rows: Sequence[Mapping[str, Any]], columns: Columns, partitions: Mapping[str, str | None]
) -> pa.Table:
    values = {name: [row.get(name) for row in rows] for name in columns.names}
    table = table_of(columns, values, len(rows))
    for name, own in values.items():
        said = partitions.get(name)
        if said is not None:
            # Not by the table, where what is no id is null: it would be taken for one that says
            # nothing.
            if any(value is not None and json_member_id(value) != said for value in own):
                raise _otherwise_said(name)
            table = _with_said(table, name, said)
    return table


def _object(number: int, line: bytes) -> dict[str, Any]:
    found = None
    if len(line) <= _LINE_BYTES_MAX:
        try:
            found = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict):
        raise InvalidInput(
            f"Line {number} is not one JSON object of at most {_LINE_BYTES_MAX} bytes, each key "
            "in it once.",
            code="input.json",
            fix="write one object a line, and no key twice: readers differ in which they believe",
        )
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


@contextmanager
def _text(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as unpacked:
            yield cast(IO[bytes], unpacked)
    else:
        with path.open("rb") as plain:
            yield plain


def table_of(columns: Columns, values: Mapping[str, Sequence[Any]], rows: int) -> pa.Table:
    """Values of any kind, as JSON has them, as a table; a member id that is neither text nor number
    becomes null.

    Raises InvalidInput where a time of collection is none: which row of the cut-off it is on would
    be a guess.
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
