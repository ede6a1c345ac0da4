"""The batches that a training run filters: read for deciding, and cut to the usable rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.trainer.deciding.columns import (
    NO_ONE_TYPE,
    Columns,
    arrow_reads_exactly,
    find_columns,
    member_id_column,
    texts_column,
)

_Mask = npt.NDArray[np.bool_]


class RunBatch(NamedTuple):
    """One batch of rows of a training run, as it is decided and as it is handed out.

    `table` holds the columns that the decision depends on, named by `columns`. `keep_rows` takes a
    mask with one value for each row, and returns the rows where it is True, in the batch's own
    kind.
    """

    table: pa.Table
    columns: Columns
    keep_rows: Callable[[_Mask], Any]


def is_batch(data: Any) -> bool:
    """Return True if a training run was given one batch, not something that gives batches."""
    return (
        isinstance(data, pa.Table | pa.RecordBatch | Mapping)
        or _is_polars(data)
        or _is_pandas(data)
    )


def each_batch(source: Any) -> Iterable[Any]:
    """Return the batches that a training run reads from a loader, an Arrow scanner or the like.

    Arrow data sets and any other iterables have batches too. Raises InvalidInput.
    """
    batches = source
    # An Arrow data set gives batches too, but is no iterable; a lazy Polars frame is neither.
    if hasattr(source, "to_batches") and not hasattr(source, "__iter__"):
        batches = source.to_batches()
    if isinstance(batches, Iterable) and not isinstance(batches, str | bytes):
        return batches
    raise InvalidInput(
        f"A {type(source).__name__} is neither a batch of rows nor an iterable of batches.",
        code="input.batch",
        fix="give an Arrow table, a Polars or pandas frame, a mapping of columns, or an iterable "
        "of these",
    )


def read_batch(data: Any, columns: Columns | None) -> RunBatch:
    """Read a batch of a training run so that it can be decided.

    Without `columns` the conventional names count. Raises InvalidInput where `data` is no batch, or
    a column is missing.
    """
    if isinstance(data, pa.Table | pa.RecordBatch):
        return _read_arrow(data, columns)
    if _is_polars(data):
        named = _find_columns(data.columns, columns)
        return RunBatch(_polars_table(data, named), named, data.filter)
    if _is_pandas(data):
        names = [str(name) for name in data.columns]
        named = _find_columns(names, columns)
        return RunBatch(_table(data, named), named, lambda mask: data[mask])
    if isinstance(data, Mapping):
        return _read_mapping(data, columns)
    raise InvalidInput(
        f"A {type(data).__name__} is not a batch of rows.",
        code="input.batch",
        fix="give Arrow tables, Polars or pandas frames, or mappings of columns",
    )


def _read_arrow(data: pa.Table | pa.RecordBatch, columns: Columns | None) -> RunBatch:
    named = _find_columns(data.schema.names, columns)
    chosen = {name: data.column(name) for name in named.names}
    return RunBatch(pa.table(chosen), named, lambda mask: data.filter(pa.array(mask)))


def _read_mapping(data: Mapping[str, Any], columns: Columns | None) -> RunBatch:
    """Read a batch as loaders make it: a list, array or tensor for each column, of equal length."""
    named = _find_columns(list(data), columns)
    _check_lengths(data)

    def keep_rows(mask: _Mask) -> dict[str, Any]:
        return {name: _keep_values(values, mask) for name, values in data.items()}

    return RunBatch(_table(data, named), named, keep_rows)


def _check_lengths(data: Mapping[str, Any]) -> None:
    """Raise InvalidInput unless each column has values, and all have the same number of them."""
    lengths: dict[str, int | None] = {}
    for name, values in data.items():
        if isinstance(values, str | bytes):
            raise InvalidInput(
                f"The column {name!r} of a batch is one text: a mapping is a batch of columns, "
                "not one row.",
                code="input.batch",
                fix="give a list of values for each column, or Arrow, Polars or pandas batches",
            )
        if hasattr(values, "__len__"):
            lengths[name] = len(values)
        else:
            lengths[name] = None
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise InvalidInput(
            f"The columns of a batch differ in length: {lengths}.",
            code="input.batch",
            fix="give each column one value for each row; leave out what has no value for each row",
        )


def _table(data: Any, columns: Columns) -> pa.Table:
    """Return the columns that decide, of a pandas frame or a mapping."""
    arrays = {}
    for name in columns.names:
        arrays[name] = _array(data[name], is_member=name == columns.member)
    return pa.table(arrays)


def _polars_table(data: Any, columns: Columns) -> pa.Table:
    """Return the columns that decide, of a Polars frame."""
    from consentry.trainer.filters.polars_ import arrow_of  # noqa: PLC0415 - Polars is there

    arrays = {}
    for name in columns.names:
        read_values = partial(_array, is_member=name == columns.member)
        arrays[name] = arrow_of(data[name], read_values)
    return pa.table(arrays)


def _array(values: Any, *, is_member: bool) -> pa.Array | pa.ChunkedArray:
    """Return the values of one column; those of no common type are read one by one."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if _is_tensor(values):
        values = values.detach().cpu().numpy()
    if not is_member or arrow_reads_exactly(values):
        try:
            return pa.array(values)
        except NO_ONE_TYPE:
            pass  # they are read one by one, below
    if is_member:
        return member_id_column(values, numbers_beside_others=True)
    return texts_column(values)


def _keep_values(values: Any, mask: _Mask) -> Any:
    """Return the values of one column at the rows of a mask, in the column's own kind."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.filter(pa.array(mask))
    if isinstance(values, np.ndarray) or _is_tensor(values):
        return values[mask]
    selected = compress(values, mask.tolist())
    if isinstance(values, tuple):
        return tuple(selected)
    return list(selected)


def _find_columns(names: Sequence[str], columns: Columns | None) -> Columns:
    return find_columns(names, columns, holder="The batch")


def _is_polars(value: Any) -> bool:
    return _is_instance_of(value, "polars", "DataFrame")


def _is_pandas(value: Any) -> bool:
    return _is_instance_of(value, "pandas", "DataFrame")


def _is_tensor(value: Any) -> bool:
    return _is_instance_of(value, "torch", "Tensor")


def _is_instance_of(value: Any, package: str, name: str) -> bool:
    """Return whether a value is of that class, without importing the package to find out."""
    for kind in type(value).__mro__:
        if kind.__name__ == name and kind.__module__.split(".")[0] == package:
            return True
    return False
