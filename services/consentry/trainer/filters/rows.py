"""Filter the rows of an Arrow table by a mask, for all filters, whatever types it holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def filter_rows(table: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    """Return the rows of an Arrow table where a filter's mask is True.

    It does so also for types that Arrow itself cannot filter.
    """
    arrow_mask = pa.array(mask)
    try:
        return table.filter(arrow_mask)
    except pa.ArrowNotImplementedError:  # of a type in it, such as a union: column by column
        columns = [_filter_column(column, mask, arrow_mask) for column in table.columns]
        return pa.Table.from_arrays(columns, schema=table.schema)


def _filter_column(
    column: pa.ChunkedArray, mask: npt.NDArray[np.bool_], arrow_mask: pa.Array
) -> pa.ChunkedArray:
    try:
        return column.filter(arrow_mask)
    except pa.ArrowNotImplementedError:  # of this very type: slices need no filter
        return _join_slices(column, mask)


def _join_slices(column: pa.ChunkedArray, mask: npt.NDArray[np.bool_]) -> pa.ChunkedArray:
    """Return the rows of a mask as slices of the column, which copy nothing."""
    changes = np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))
    edges = np.flatnonzero(changes).tolist()
    chunks: list[pa.Array] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        chunks += column.slice(start, end - start).chunks
    return pa.chunked_array(chunks, column.type)
