"""PyArrow: tables, record batches, readers, data sets and scanners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as pads

from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter
from consentry.trainer.filters.rows import kept

Data = TypeVar("Data", pa.Table, pa.RecordBatch, pa.RecordBatchReader, pads.Dataset, pads.Scanner)


def filter(
    decider: Decider,
    data: Data,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Any:
    """The rows that may be used for `purpose`: a table of a table, a batch of a batch, else a
    RecordBatchReader.

    A reader, a data set or a scanner is not read here: each batch is judged when it is read from
    what is returned, so what a member says meanwhile counts from the next batch on. That can be
    read once; filter anew for each epoch. To read few columns give a scanner of them, the member's
    among them. Every row that was read is counted in `tally`.

    Raises InvalidInput where a column is missing or there twice.
    """
    schema = _schema_of(data)
    batch_filter = BatchFilter(
        decider, schema.names, purpose=purpose, columns=columns, at_least=at_least, tally=tally
    )
    if isinstance(data, pa.Table):
        return kept(data, batch_filter.mask(data.select(batch_filter.names)))
    if isinstance(data, pa.RecordBatch):
        return _kept_of_batch(data, batch_filter)
    if isinstance(data, pa.RecordBatchReader):
        return pa.RecordBatchReader.from_batches(schema, _kept_batches(data, batch_filter))
    return pa.RecordBatchReader.from_batches(schema, _kept_scanned(data, batch_filter))


def _kept_scanned(
    data: pads.Dataset | pads.Scanner, batch_filter: BatchFilter
) -> Iterator[pa.RecordBatch]:
    """Opened only when the first batch is asked for."""
    yield from _kept_batches(data.to_batches(), batch_filter)


def _kept_batches(
    batches: Iterator[pa.RecordBatch], batch_filter: BatchFilter
) -> Iterator[pa.RecordBatch]:
    """Batches of which nothing is left are left out: nobody can train on them."""
    for batch in batches:
        left = _kept_of_batch(batch, batch_filter)
        if left.num_rows:
            yield left


def _kept_of_batch(batch: pa.RecordBatch, batch_filter: BatchFilter) -> pa.RecordBatch:
    table = pa.Table.from_batches([batch])
    left = kept(table, batch_filter.mask(table.select(batch_filter.names)))
    # One batch, also of no rows, for which to_batches gives none.
    columns = [column.combine_chunks() for column in left.columns]
    arrays = [
        column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _schema_of(data: Any) -> pa.Schema:
    return data.projected_schema if isinstance(data, pads.Scanner) else data.schema
