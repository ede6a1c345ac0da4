"""Bodies of requests to the trainer's agent: read strictly and within bounds, as tables."""

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
"""The end of every Arrow stream. Source: Arrow Columnar Format, "IPC Streaming Format"."""
_EXPANDED_BYTES_MAX: Final = 256 * 1024 * 1024
_ROW_FIELDS: Final = ("member_id", "jurisdiction", "category", "collected_at")


@dataclass(frozen=True, slots=True)
class Table:
    """The rows in one request to the trainer's agent, and the meaning of their columns."""

    rows: pa.Table
    columns: Columns


async def read_body(request: Request, kinds: tuple[str, ...]) -> tuple[str, bytes]:
    """Return the media type and the whole body of a request to the trainer's agent.

    Raises Problem as `read_body_of`.
    """
    return await read_body_of(request, kinds, bytes_max=BODY_BYTES_MAX, seconds_max=_BODY_SECONDS)


def _too_many(rows: int) -> NoReturn:
    raise Problem(
        413,
        f"There are {rows} rows, more than {ROWS_MAX}.",
        code="input.too_many_rows",
        fix="split them into batches",
    )


def parse_object(text: bytes, known: frozenset[str]) -> dict[str, Any]:
    """Return the JSON object in the body of a request to the trainer's agent.

    Raises Problem, also for a key that is not known: it may have meant to exclude.
    """
    data = parse_json(text)
    if not isinstance(data, dict):
        raise Problem(400, "The body is not one JSON object.", code="input.json", fix="send one")
    unknown = sorted(set(data) - known)
    if unknown:
        raise field_problem(unknown[0], f"is not known; there are {', '.join(sorted(known))}")
    return data


def field_problem(name: str, problem: str) -> Problem:
    """Return the agent's problem for a field of a request that does not fit.

    `problem` ends the sentence.
    """
    return Problem(
        422,
        f"The field {name[:80]!r} {problem}.",
        code="input.field",
        fix="see /openapi.json for what it may hold",
        field=name[:80],
    )


def text_field(data: Mapping[str, Any], name: str, *, length_max: int = 4096) -> str | None:
    """Return a text in a request to the trainer's agent, or None if left out. Raises Problem."""
    text = data.get(name)
    if text is not None and (not isinstance(text, str) or len(text) > length_max):
        raise field_problem(name, "is not a text, or a very long one")
    return text


def table_of_json(data: Mapping[str, Any]) -> Table:
    """Return the rows of a JSON request to the trainer's agent: lists side by side.

    One value in place of a list holds for all rows.

    Ids that are neither texts nor whole numbers stay in, as rows that are excluded. Raises Problem
    and InvalidInput.
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


def table_of_arrow(body: bytes, spec: ColumnSpec) -> Table:
    """Return the rows of an Arrow IPC stream sent to the trainer's agent.

    Raises Problem and InvalidInput.

    Its lengths and offsets are checked before they are used. A compressed stream is refused, as
    nobody can say beforehand how large it becomes.
    """
    try:
        _check_messages(body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            columns = spec.find_among(reader.schema.names)
            names = columns.names
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > ROWS_MAX:
                    _too_many(rows)
                selected = batch.select(names)
                selected.validate(full=True)
                batches.append(selected)
            schema = pa.schema([reader.schema.field(name) for name in names])
            table = pa.Table.from_batches(batches, schema=schema)
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
    is_dictionary = pa.types.is_dictionary(kind)
    value = kind.value_type if is_dictionary else kind
    if is_time or not (pa.types.is_string(value) or pa.types.is_large_string(value)):
        raise InvalidInput(
            f"The column {name!r} holds {kind}, which is not read here.",
            code="input.column",
            fix="send texts (plain or as a dictionary), int64 ids, and dates or timestamps",
        )
    if is_dictionary:
        longest = 0
        for chunk in column.chunks:
            length = pc.max(pc.binary_length(chunk.dictionary)).as_py()
            longest = max(longest, length or 0)
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
            fix="send one stream: nothing decides about rows behind its end",
        )
    if body[-4:] != _END_MARK:
        raise Problem(
            400,
            "The Arrow stream breaks off: it has no end mark.",
            code="input.arrow",
            fix="close the writer before sending: nothing decides about rows that are lacking",
        )


def _is_compressed(metadata: bytes) -> bool:
    """Return whether a message says that its buffers are compressed.

    Source: Message.fbs of Apache Arrow, FlatBuffers.
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
    """Return the offset of a table's field; 0 where it is left out."""
    vtable: int = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0 or 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0
