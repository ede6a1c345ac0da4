"""The filter for PyArrow: tables, record batches, readers, data sets and scanners."""

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
from consentry.trainer.filters.rows import filter_rows

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
    """Return Arrow rows that may be used for `purpose`: a table of a table, a batch of a batch.

    Of a reader, a data set or a scanner it returns a RecordBatchReader and reads nothing here: each
    batch is decided when it is read, so what a member says meanwhile counts from the next batch on.
    Such a reader can be read once; filter again for each epoch. To read few columns give a scanner
    of them, the member's among them. Every row that was read is counted in `tally`.

    Raises InvalidInput where a column is missing or there twice.
    """
    schema = _schema_of(data)
    batch_filter = BatchFilter(
        decider, schema.names, purpose=purpose, columns=columns, at_least=at_least, tally=tally
    )
    if isinstance(data, pa.Table):
        return filter_rows(data, batch_filter.mask(data.select(batch_filter.names)))
    if isinstance(data, pa.RecordBatch):
        return _filter_batch(data, batch_filter)
    if isinstance(data, pa.RecordBatchReader):
        return pa.RecordBatchReader.from_batches(schema, _filter_batches(data, batch_filter))
    return pa.RecordBatchReader.from_batches(schema, _filter_scanned(data, batch_filter))


def _filter_scanned(
    data: pads.Dataset | pads.Scanner, batch_filter: BatchFilter
) -> Iterator[pa.RecordBatch]:
    """Yield what `_filter_batches` does; the data set is opened when the first batch is read."""
    yield from _filter_batches(data.to_batches(), batch_filter)


def _filter_batches(
    batches: Iterator[pa.RecordBatch], batch_filter: BatchFilter
) -> Iterator[pa.RecordBatch]:
    """Yield the batches with their allowed rows, without those that have none."""
    for batch in batches:
        allowed = _filter_batch(batch, batch_filter)
        if allowed.num_rows:
            yield allowed


def _filter_batch(batch: pa.RecordBatch, batch_filter: BatchFilter) -> pa.RecordBatch:
    table = pa.Table.from_batches([batch])
    mask = batch_filter.mask(table.select(batch_filter.names))
    allowed = filter_rows(table, mask)
    # One batch, also of no rows, for which to_batches gives none.
    arrays = [_one_array(column) for column in allowed.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    # Of some types, such as extensions, Arrow combines the chunks into a chunked array of one.
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0)
    return combined


def _schema_of(data: Any) -> pa.Schema:
    if isinstance(data, pads.Scanner):
        return data.projected_schema
    return data.schema
