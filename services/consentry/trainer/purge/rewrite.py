"""Rewrite a purged Parquet file without some rows, otherwise as its first writer wrote it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from consentry.domain.errors import InvalidInput

_ARROW_SCHEMA: Final = b"ARROW:schema"
_PLAIN_ENCODINGS: Final = frozenset(
    {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
)
_CODECS: Final = {"UNCOMPRESSED": "NONE"}


def rewrite(file: pq.ParquetFile, keep: npt.NDArray[np.bool_], sink: Any) -> None:
    """Write the rows of a Parquet file that a purge keeps to `sink`, row group by row group.

    `keep` has a value for each row of the file. Schema, metadata, codec, encodings, statistics, row
    groups and the order of rows stay; a row group of which nothing is kept is left out.
    """
    start = 0
    with pq.ParquetWriter(sink, file.schema_arrow, **writer_settings(file)) as writer:
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            mask = keep[start : start + rows]
            start += rows
            if not mask.any():
                continue
            table = file.read_row_group(group, use_threads=False)
            if not mask.all():
                table = table.filter(pa.array(mask))
            writer.write_table(table, row_group_size=rows)


def check_same_rows(old: pq.ParquetFile, new: pq.ParquetFile, rows: int, name: str) -> list[str]:
    """Raise InvalidInput unless a purged file's successor has those rows and that schema.

    `new` must have that many rows and the schema of `old`. Returns a note for each column that is
    stored in another type. Readers see no difference in them, but a checksum over stored types
    does.
    """
    is_same_schema = new.schema_arrow.equals(old.schema_arrow, check_metadata=False)
    if new.metadata.num_rows != rows or not is_same_schema:
        raise InvalidInput(
            f"The file {name!r} cannot be written again as it is: this version of pyarrow would "
            "change its schema.",
            code="purge.schema",
            fix="write the file again with its own tool, or purge with a newer pyarrow",
        )
    notes: list[str] = []
    for index in range(len(old.schema)):
        before, after = old.schema.column(index), new.schema.column(index)
        if not before.equals(after):
            notes.append(f"{name}: {before.path}")
    return notes


def writer_settings(file: pq.ParquetFile) -> dict[str, Any]:
    """Return the pyarrow settings to rewrite a purged file as it was first written.

    They are found as far as the file shows them.
    """
    metadata = file.metadata
    version = "2.6"
    if metadata.format_version == "1.0":
        version = "1.0"
    settings: dict[str, Any] = {
        "store_schema": _ARROW_SCHEMA in (metadata.metadata or {}),
        "version": version,
    }
    columns = [file.schema.column(index) for index in range(len(file.schema))]
    if any(column.physical_type == "INT96" for column in columns):
        settings["use_deprecated_int96_timestamps"] = True
    elif any(map(_has_nanoseconds, file.schema_arrow)):
        settings["version"] = "2.6"  # the first format has no nanoseconds
    if any(map(_is_decimal_in_integers, columns)):
        settings["store_decimal_as_integer"] = True
    if any(column.path.endswith(".list.item") for column in columns):
        settings["use_compliant_nested_type"] = False
    if metadata.num_row_groups:
        settings |= _column_settings(metadata)
    return settings


def _has_nanoseconds(field: pa.Field) -> bool:
    if not pa.types.is_timestamp(field.type):
        return False
    unit: str = field.type.unit
    return unit == "ns"


def _is_decimal_in_integers(column: pq.ColumnSchema) -> bool:
    if column.logical_type.type != "DECIMAL":
        return False
    physical_type: str = column.physical_type
    return physical_type.startswith("INT")


def _column_settings(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Return the settings of each column; the first row group stands for all."""
    group = metadata.row_group(0)
    compression: dict[str, str] = {}
    encodings: dict[str, str] = {}
    with_dictionary: list[str] = []
    with_statistics: list[str] = []
    has_page_index = False
    for index in range(group.num_columns):
        column = group.column(index)
        path = column.path_in_schema
        compression[path] = _CODECS.get(column.compression, column.compression)
        if column.has_dictionary_page:
            with_dictionary.append(path)
        else:
            special = [name for name in column.encodings if name not in _PLAIN_ENCODINGS]
            if special:
                encodings[path] = special[0]
        if column.is_stats_set:
            with_statistics.append(path)
        has_page_index = has_page_index or column.has_column_index
    settings: dict[str, Any] = {
        "compression": compression,
        "use_dictionary": with_dictionary or False,
        "write_statistics": with_statistics or False,
        "write_page_index": has_page_index,
    }
    if encodings:
        settings["column_encoding"] = encodings
    if group.sorting_columns:
        settings["sorting_columns"] = group.sorting_columns
    return settings
