"""What is sent to the agent, read strictly and within bounds, as a table that can be judged."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Request

from consentry.domain.errors import InvalidInput
from consentry.ops.http.bodies import parse_json, read_body_of
from consentry.ops.http.problems import Problem
from consentry.trainer.checking.data_files import table_of
from consentry.trainer.deciding.columns import Columns, ColumnSpec

BODY_BYTES_MAX: Final = 32 * 1024 * 1024
ROWS_MAX: Final = 1_000_000
JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"
PARQUET: Final = "application/vnd.apache.parquet"
BYTES: Final = "application/octet-stream"
_BODY_SECONDS: Final = 30.0
_END_MARK: Final = bytes(4)
"""How every Arrow stream ends. Source: Arrow Columnar Format, "IPC Streaming Format"."""
_EXPANDED_BYTES_MAX: Final = 256 * 1024 * 1024
_ROW_FIELDS: Final = ("member_id", "jurisdiction", "category", "collected_at")


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one request, and which of its columns say what."""

    rows: pa.Table
    columns: Columns


async def read_body(request: Request, kinds: tuple[str, ...]) -> tuple[str, bytes]:
    """The kind of a body and the whole of it. Raises Problem as `read_body_of`."""
    return await read_body_of(request, kinds, bytes_max=BODY_BYTES_MAX, seconds_max=_BODY_SECONDS)


def _too_many(rows: int) -> NoReturn:
    raise Problem(
        413,
        f"There are {rows} rows, more than {ROWS_MAX}.",
        code="input.too_many_rows",
        fix="split them into batches",
    )


def parse_object(text: bytes, known: frozenset[str]) -> dict[str, Any]:
    """The JSON object in a body.

    Raises Problem, also for a key that is not known: it may have meant to exclude.
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise Problem(400, "The body is not one JSON object.", code="input.json", fix="send one")
    unknown = sorted(set(found) - known)
    if unknown:
        raise field_problem(unknown[0], f"is not known; there are {', '.join(sorted(known))}")
    return found


def field_problem(name: str, what: str) -> Problem:
    """A field of a body does not fit."""
    return Problem(
        422,
        f"The field {name[:80]!r} {what}.",
        code="input.field",
        fix="see /openapi.json for what it may hold",
        field=name[:80],
    )


def text_field(data: Mapping[str, Any], name: str, *, length_max: int = 4096) -> str | None:
    """A text, or None where it is left out. Raises Problem."""
    found = data.get(name)
    if found is not None and (not isinstance(found, str) or len(found) > length_max):
        raise field_problem(name, "is not a text, or a very long one")
    return found


def table_of_json(data: Mapping[str, Any]) -> Table:
    """Rows given as lists side by side; one value in place of a list holds for all rows.

    Raises Problem, InvalidInput.

    Ids that are neither texts nor whole numbers stay in, as rows that are excluded.
    """
    members = data.get("member_id")
    if not isinstance(members, list):
        raise field_problem("member_id", "is not a list of member ids")
    rows = len(members)
    if rows > ROWS_MAX:
        _too_many(rows)
    values: dict[str, list[Any]] = {"member_id": members}
    for name in _ROW_FIELDS[1:]:
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, list) and len(value) != rows:
            raise field_problem(name, f"has {len(value)} values for {rows} members")
        values[name] = value if isinstance(value, list) else [value] * rows
    columns = ColumnSpec().find_among(list(values))
    return Table(table_of(columns, values, rows), columns)


def table_of_arrow(body: bytes, asked: ColumnSpec) -> Table:
    """Rows given as an Arrow IPC stream. Raises Problem and InvalidInput.

    Nothing in it is believed before it is checked: neither its lengths nor its offsets, and what is
    compressed is refused, as nobody can say beforehand how large it becomes.
    """
    try:
        _check_messages(body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            columns = asked.find_among(reader.schema.names)
            names = columns.names
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > ROWS_MAX:
                    _too_many(rows)
                part = batch.select(names)
                part.validate(full=True)
                batches.append(part)
            table = pa.Table.from_batches(
                batches, schema=pa.schema([reader.schema.field(name) for name in names])
            )
    except (pa.ArrowException, OSError, ValueError, KeyError, struct.error, IndexError) as error:
        raise Problem(
            400,
            f"The body is not an Arrow IPC stream ({type(error).__name__}).",
            code="input.arrow",
            fix="write one with the stream writer of an Arrow library",
        ) from None
    for name in names:
        _check_column(name, table[name], is_time=name == columns.collected)
    return Table(table, columns)


def _check_column(name: str, column: pa.ChunkedArray, *, is_time: bool) -> None:
    kind = column.type
    if pa.types.is_null(kind) or pa.types.is_integer(kind):
        return
    if is_time and (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return
    shared = pa.types.is_dictionary(kind)
    value = kind.value_type if shared else kind
    if is_time or not (pa.types.is_string(value) or pa.types.is_large_string(value)):
        raise InvalidInput(
            f"The column {name!r} holds {kind}, which is not read here.",
            code="input.column",
            fix="send texts (plain or as a dictionary), int64 ids, and dates or timestamps",
        )
    if shared:
        longest = max(
            (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0 for chunk in column.chunks),
            default=0,
        )
        if longest * len(column) > _EXPANDED_BYTES_MAX:
            raise Problem(
                413,
                f"The column {name!r} is too large written out.",
                code="input.too_large",
                fix="split it",
            )


def _check_messages(body: bytes) -> None:
    source = pa.BufferReader(body)
    for message in pa.ipc.MessageReader.open_stream(source):
        if _is_compressed(message.metadata.to_pybytes()):
            raise Problem(
                415,
                "The Arrow stream is compressed.",
                code="input.arrow_compressed",
                fix="write it without compression; the agent is on the same machine",
            )
    if source.tell() != len(body):
        raise Problem(
            400,
            f"{len(body) - source.tell()} bytes follow the end of the Arrow stream.",
            code="input.arrow",
            fix="send one stream: rows behind its end would not be judged",
        )
    if body[-4:] != _END_MARK:
        raise Problem(
            400,
            "The Arrow stream breaks off: it has no end mark.",
            code="input.arrow",
            fix="close the writer before sending: rows that are lacking would not be judged",
        )


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message says that its buffers are compressed. Source:

    Message.fbs of Apache Arrow, FlatBuffers.
    """
    root = struct.unpack_from("<I", metadata)[0]
    kind = _slot(metadata, root, 1)
    header = _slot(metadata, root, 2)
    if not kind or not header:
        return False
    table = header + struct.unpack_from("<I", metadata, header)[0]
    if metadata[kind] == _DICTIONARY_BATCH:
        data = _slot(metadata, table, 1)
        if not data:
            return False
        table = data + struct.unpack_from("<I", metadata, data)[0]
    elif metadata[kind] != _RECORD_BATCH:
        return False
    return _slot(metadata, table, 3) != 0


_DICTIONARY_BATCH: Final = 2
_RECORD_BATCH: Final = 3


def _slot(data: bytes, table: int, number: int) -> int:
    """Where a table's field lies; 0 where it is left out."""
    vtable: int = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0 or 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0
