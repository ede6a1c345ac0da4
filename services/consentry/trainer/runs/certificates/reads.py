"""The table of a training run's distinct reads, and the leaves below its Merkle root.

One row for each distinct (member, jurisdiction, category, cut-off, shard), sorted by these, nulls
first, texts by their bytes. `collected_from` is the latest cut-off, of all terms known at the time
of reading, that the rows' time of collection is not before. It is null where there is none or the
time is not known: no rule could depend on more of that time. The times are those of the first and
of the last read.

The leaf of a row of member m:1 from the US, read once without a category, a cut-off or a shard:

    m:1 <tab> US <tab> \\N <tab> \\N <tab> <tab> 1730000000000000 <tab> 1730000000000000 <tab> 1
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

KEYS: Final = ("member_id", "jurisdiction", "category", "collected_from", "shard")
_TIME: Final = pa.timestamp("us", "UTC")
SCHEMA: Final = pa.schema(
    [
        ("member_id", pa.string()),
        ("jurisdiction", pa.string()),
        ("category", pa.string()),
        ("collected_from", _TIME),
        ("shard", pa.string()),
        ("first_read_at", _TIME),
        ("last_read_at", _TIME),
        ("rows", pa.int64()),
    ]
)
LEAF: Final = (
    "a row of the reads as a line without its end, as PostgreSQL's COPY writes it: columns "
    "separated by tabs, \\N for null, times in microseconds since 1970-01-01 UTC"
)
"""The definition of a leaf, as the certificate states it. Part of a signed document: never changed
without a new format."""


def distinct_reads(reads: pa.Table) -> pa.Table:
    """Return the distinct reads of a training run, in the order of its certificate.

    Rows of the same read become one: with the earliest first time, the latest last time, and the
    sum of the rows.
    """
    grouped = reads.group_by(list(KEYS)).aggregate(
        [("first_read_at", "min"), ("last_read_at", "max"), ("rows", "sum")]
    )
    named = grouped.rename_columns([*KEYS, "first_read_at", "last_read_at", "rows"])
    ordered = named.select(SCHEMA.names)
    return ordered.take(_sort_indices(ordered)).cast(SCHEMA)


def _sort_indices(reads: pa.Table) -> pa.Array:
    """Return the rows' indices in the order of KEYS, nulls first."""
    if not reads.num_rows:
        return pa.array([], pa.int64())
    columns: dict[str, pa.ChunkedArray] = {}
    for name in KEYS:
        column = reads[name]
        if column.null_count == len(column):
            continue  # a column of nulls orders nothing
        if column.null_count:
            columns[f"{name} is given"] = column.is_valid()
        columns[name] = column
    return pc.sort_indices(pa.table(columns), sort_keys=[(name, "ascending") for name in columns])


def is_sorted(reads: pa.Table) -> bool:
    """Return True if a training run's reads are distinct and in the order of KEYS.

    Nulls come first.
    """
    if reads.num_rows < 2:
        return True
    rows, next_rows = reads.slice(0, reads.num_rows - 1), reads.slice(1)
    # From the last key to the first: a row is less by its first key that differs.
    is_less = None
    for name in reversed(KEYS):
        left, right = rows[name], next_rows[name]
        null_before_value = pc.and_(left.is_null(), right.is_valid())
        both_null = pc.and_(left.is_null(), right.is_null())
        less = pc.if_else(null_before_value, True, pc.less(left, right)).fill_null(False)
        equal = pc.if_else(both_null, True, pc.equal(left, right)).fill_null(False)
        is_less = less if is_less is None else pc.or_(less, pc.and_(equal, is_less))
    return bool(pc.all(is_less).as_py())


def micros(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the times of a training run's reads, a column without nulls, in microseconds."""
    times: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return times


def leaves(reads: pa.Table) -> list[bytes]:
    """Return the Merkle leaf of each read of a training run; see LEAF."""
    columns = []
    for name in SCHEMA.names:
        column = reads[name]
        if pa.types.is_string(SCHEMA.field(name).type):
            columns.append(_escape(column))
        else:
            columns.append(column.cast(pa.int64()).cast(pa.string()))
    lines = pc.binary_join_element_wise(
        *columns, "\t", null_handling="replace", null_replacement="\\N"
    )
    row_leaves: list[bytes] = lines.cast(pa.binary()).to_pylist()
    return row_leaves


def _escape(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts with the characters escaped that separate columns and lines."""
    for character, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        if pc.any(pc.match_substring(column, character)).as_py():
            column = pc.replace_substring(column, character, escaped)
    return column
