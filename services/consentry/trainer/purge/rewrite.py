"""Writing a Parquet file once more without some of its rows, and otherwise as its first writer
wrote it.
"""

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
    """Write the kept rows to `sink`, row group by row group.

    `keep` has a place for each row of the file. Schema, metadata, codec, encodings, statistics, row
    groups and the order of rows stay; a row group of which nothing is kept is left out.
    """
    begun = 0
    with pq.ParquetWriter(sink, file.schema_arrow, **writer_settings(file)) as writer:
        for place in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(place).num_rows
            kept = keep[begun : begun + rows]
            begun += rows
            if kept.any():
                table = file.read_row_group(place, use_threads=False)
                writer.write_table(
                    table if kept.all() else table.filter(pa.array(kept)), row_group_size=rows
                )


def check_same(old: pq.ParquetFile, new: pq.ParquetFile, rows: int, name: str) -> list[str]:
    """Raise InvalidInput unless `new` has that many rows and the schema of `old`; columns that are
    stored differently.

    Readers see no difference in these; it is told because a checksum over stored types would.
    """
    if new.metadata.num_rows != rows or not new.schema_arrow.equals(
        old.schema_arrow, check_metadata=False
    ):
        raise InvalidInput(
            f"The file {name!r} cannot be written again as it is: this version of pyarrow would "
            "change its schema.",
            code="purge.schema",
            fix="write the file again with its own tool, or purge with a newer pyarrow",
        )
    pairs = [
        (old.schema.column(place), new.schema.column(place)) for place in range(len(old.schema))
    ]
    return [f"{name}: {before.path}" for before, after in pairs if not before.equals(after)]


def writer_settings(file: pq.ParquetFile) -> dict[str, Any]:
    """Settings of pyarrow's writer under which it writes what this file was written with, as far as
    a file tells.
    """
    told = file.metadata
    settings: dict[str, Any] = {
        "store_schema": _ARROW_SCHEMA in (told.metadata or {}),
        "version": "2.6" if told.format_version != "1.0" else "1.0",
    }
    columns = [file.schema.column(place) for place in range(len(file.schema))]
    if any(column.physical_type == "INT96" for column in columns):
        settings["use_deprecated_int96_timestamps"] = True
    elif any(
        pa.types.is_timestamp(field.type) and field.type.unit == "ns" for field in file.schema_arrow
    ):
        settings["version"] = "2.6"  # the first format has no nanoseconds
    if any(
        column.logical_type.type == "DECIMAL" and column.physical_type.startswith("INT")
        for column in columns
    ):
        settings["store_decimal_as_integer"] = True
    if any(column.path.endswith(".list.item") for column in columns):
        settings["use_compliant_nested_type"] = False
    if told.num_row_groups:
        settings |= _column_settings(told)
    return settings


def _column_settings(told: pq.FileMetaData) -> dict[str, Any]:
    group = told.row_group(0)
    chunks = [group.column(place) for place in range(group.num_columns)]
    encodings = {
        chunk.path_in_schema: next(
            (name for name in chunk.encodings if name not in _PLAIN_ENCODINGS), None
        )
        for chunk in chunks
        if not chunk.has_dictionary_page
    }
    settings: dict[str, Any] = {
        "compression": {
            chunk.path_in_schema: _CODECS.get(chunk.compression, chunk.compression)
            for chunk in chunks
        },
        "use_dictionary": [chunk.path_in_schema for chunk in chunks if chunk.has_dictionary_page]
        or False,
        "write_statistics": [chunk.path_in_schema for chunk in chunks if chunk.is_stats_set]
        or False,
        "write_page_index": any(chunk.has_column_index for chunk in chunks),
    }
    if named := {path: name for path, name in encodings.items() if name is not None}:
        settings["column_encoding"] = named
    if group.sorting_columns:
        settings["sorting_columns"] = group.sorting_columns
    return settings
