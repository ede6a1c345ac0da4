"""What a run read, as a table of distinct reads, and the leaves that a certificate's Merkle root is
over.

One row for each distinct (member, jurisdiction, category, cut-off, shard), sorted by these, nulls
first, texts by their bytes. `collected_from` is the latest cut-off of any terms known when reading
that the rows' time of collection meets, null where they meet none or it is not known: no rule could
tell more of that time. Times are those of the first and of the last read.
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
    "separated by tabs, "
    "\\N for null, times in microseconds since 1970-01-01 UTC"
)


def distinct(reads: pa.Table) -> pa.Table:
    """The distinct reads among some, sorted; earliest, latest and sum of those that are of one
    kind.
    """
    found = reads.group_by(list(KEYS)).aggregate(
        [("first_read_at", "min"), ("last_read_at", "max"), ("rows", "sum")]
    )
    found = found.rename_columns([*KEYS, "first_read_at", "last_read_at", "rows"]).select(
        SCHEMA.names
    )
    return found.take(_order(found)).cast(SCHEMA)


def _order(reads: pa.Table) -> pa.Array:
    """The places of the rows, sorted."""
    if not reads.num_rows:
        return pa.array([], pa.int64())
    columns: dict[str, pa.ChunkedArray] = {}
    for name in KEYS:
        column = reads[name]
        if 0 < column.null_count < len(column):
            columns[f"{name} is given"] = column.is_valid()
        if column.null_count < len(column):
            columns[name] = column
    return pc.sort_indices(pa.table(columns), sort_keys=[(name, "ascending") for name in columns])


def is_sorted(reads: pa.Table) -> bool:
    """Whether these rows are distinct and in order."""
    if reads.num_rows < 2:
        return True
    before, after = reads.slice(0, reads.num_rows - 1), reads.slice(1)
    greater = equal = None
    for name in reversed(KEYS):
        left, right = before[name], after[name]
        one = pc.if_else(
            pc.and_(left.is_null(), right.is_valid()), True, pc.less(left, right)
        ).fill_null(False)
        same = pc.if_else(
            pc.and_(left.is_null(), right.is_null()), True, pc.equal(left, right)
        ).fill_null(False)
        greater = one if greater is None else pc.or_(one, pc.and_(same, greater))
        equal = same if equal is None else pc.and_(equal, same)
    return bool(pc.all(greater).as_py())


def micros(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A column of times, none of them null, in microseconds."""
    found: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return found


def leaves(reads: pa.Table) -> list[bytes]:
    """The leaf of each row; see LEAF."""
    columns = [
        _text(reads["member_id"]),
        _text(reads["jurisdiction"]),
        _text(reads["category"]),
        reads["collected_from"].cast(pa.int64()).cast(pa.string()),
        _text(reads["shard"]),
        *(
            reads[name].cast(pa.int64()).cast(pa.string())
            for name in ("first_read_at", "last_read_at", "rows")
        ),
    ]
    lines = pc.binary_join_element_wise(
        *columns, "\t", null_handling="replace", null_replacement="\\N"
    )
    found: list[bytes] = lines.cast(pa.binary()).to_pylist()
    return found


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without the characters that part columns and lines."""
    for character, written in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        if pc.any(pc.match_substring(column, character)).as_py():
            column = pc.replace_substring(column, character, written)
    return column
