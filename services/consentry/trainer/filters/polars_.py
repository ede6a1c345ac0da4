"""The filter for Polars: data frames and lazy frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa

from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter

_AS_THEY_ARE = pl.CompatLevel.newest()
"""Texts stay the string views that Polars holds; else all would be copied."""
Data = TypeVar("Data", pl.DataFrame, pl.LazyFrame)


def filter(
    decider: Decider,
    data: Data,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Data:
    """Return a Polars frame's rows that may be used for `purpose`; count all in `tally`.

    A lazy frame stays lazy: its rows are decided, a batch at a time, each time that the plan runs.
    Nothing that comes after is moved before, so the columns that decide may be dropped after; your
    own conditions cost least before.

    Raises InvalidInput where a column is missing, when this is called.
    """
    batch_filter = BatchFilter(
        decider,
        _column_names(data),
        purpose=purpose,
        columns=columns,
        at_least=at_least,
        tally=tally,
    )
    if isinstance(data, pl.DataFrame):
        return _filter_frame(data, batch_filter)
    return data.map_batches(
        lambda batch: _filter_frame(batch, batch_filter),
        # A condition moved before would change which rows are decided; a projection would take the
        # member away.
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
        streamable=True,
    )


def _column_names(data: pl.DataFrame | pl.LazyFrame) -> list[str]:
    if isinstance(data, pl.LazyFrame):
        return data.collect_schema().names()
    return data.columns


def _filter_frame(frame: pl.DataFrame, batch_filter: BatchFilter) -> pl.DataFrame:
    def values(name: str) -> Any:
        return arrow_of(frame[name], lambda listed: batch_filter.column(name, listed))

    table = pa.table({name: values(name) for name in batch_filter.names})
    return frame.filter(pl.Series(batch_filter.mask(table)))


def arrow_of(series: pl.Series, read: Callable[[list[Any]], Any]) -> Any:
    """Return a Polars series as an Arrow array to filter by, without a copy of its texts.

    `read` makes an array of the values that Arrow would misread or cannot hold: of objects, which
    it would take for numbers, and of integers of 128 bits. A gap stays one.
    """
    if series.dtype == pl.Object:
        return read(series.to_list())
    try:
        return series.to_arrow(compat_level=_AS_THEY_ARE)
    except pa.ArrowInvalid:
        return read(series.to_list())
