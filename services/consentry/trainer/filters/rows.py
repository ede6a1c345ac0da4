"""The rows of an Arrow table that a mask lets through."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def kept(table: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    """The rows of a table where the mask is True, also of types that Arrow itself cannot filter."""
    selection = pa.array(mask)
    try:
        return table.filter(selection)
    except pa.ArrowNotImplementedError:  # of a type in it, such as unions: each column for itself
        return pa.Table.from_arrays(
            [_kept_of_column(column, mask, selection) for column in table.columns],
            schema=table.schema,
        )


def _kept_of_column(
    column: pa.ChunkedArray, mask: npt.NDArray[np.bool_], selection: pa.Array
) -> pa.ChunkedArray:
    """By pieces that stay where they are, where Arrow cannot filter the type."""
    try:
        return column.filter(selection)
    except pa.ArrowNotImplementedError:  # of this very type: slices need no filter
        edges = np.flatnonzero(
            np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))
        ).tolist()
        pieces = [
            column.slice(start, end - start)
            for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
        return pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], column.type)
