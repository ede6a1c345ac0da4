"""The filter for Hugging Face datasets: map-style, streaming, and dictionaries of splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter

Data = TypeVar(
    "Data",
    datasets.Dataset,
    datasets.DatasetDict,
    datasets.IterableDataset,
    datasets.IterableDatasetDict,
)

_CHUNK_ROWS: Final = 1 << 20
"""Rows of a map-style data set that are decided at once."""
_BATCH_ROWS: Final = 1000
"""Rows of a stream that are decided at once."""
_TABLE_FORMATS: Final = ("arrow", "pandas", "polars")


def filter(
    decider: Decider,
    data: Data,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Data:
    """Return a Hugging Face data set's rows that may be used for `purpose`, in its own format.

    A map-style data set is decided now, whole, and never from a cache: the result, and so whatever
    is made of it, has its own fingerprint for each snapshot and each answer. A stream is decided
    while it is read, a thousand rows at a time, again after a resume; in a table format (arrow,
    pandas, polars) a resume goes on after as many allowed rows of that thousand as were read
    before. Every row is counted in `tally`.

    Raises InvalidInput where a column is missing; for a stream whose columns nobody knows yet, when
    it is read.
    """
    question: dict[str, Any] = {
        "purpose": purpose,
        "columns": columns,
        "at_least": at_least,
        "tally": tally,
    }
    if isinstance(data, datasets.Dataset):
        return _filter_dataset(data, decider, **question)
    if isinstance(data, datasets.IterableDataset):
        return _filter_stream(data, decider, **question)
    splits = {name: filter(decider, split, **question) for name, split in data.items()}
    return type(data)(splits)


def _filter_dataset(data: datasets.Dataset, decider: Decider, **question: Any) -> datasets.Dataset:
    batch_filter = BatchFilter(decider, data.column_names, **question)
    snapshot_id = decider.snapshot_id
    masks = [
        batch_filter.mask(_part(data, start, batch_filter))
        for start in range(0, len(data), _CHUNK_ROWS)
    ]
    mask = np.concatenate([np.zeros(0, dtype=np.bool_), *masks])
    fingerprint = _fingerprint(
        [data._fingerprint, snapshot_id, question["purpose"], repr(batch_filter.columns)], mask
    )
    if not len(data):
        return data  # `select` would return it as it is
    return data.select(np.flatnonzero(mask).tolist(), new_fingerprint=fingerprint)


def _part(data: datasets.Dataset, start: int, batch_filter: BatchFilter) -> pa.Table:
    """Return some rows as they are stored, whatever the data set's format, in its present order."""
    table, order = data.data.table.select(batch_filter.names), data._indices
    if order is None:
        part = table.slice(start, _CHUNK_ROWS)
    else:
        part = table.take(order.column(0).slice(start, _CHUNK_ROWS))
    arrays = {
        name: _with_label_names(part[name], data.features, name) for name in part.column_names
    }
    return pa.table(arrays)


def _with_label_names(column: Any, features: Mapping[str, Any] | None, name: str) -> Any:
    """Return a column of class labels as their names: numbers would be taken for other members."""
    label = (features or {}).get(name)
    if not isinstance(label, datasets.ClassLabel):
        return column
    indices = pc.if_else(pc.less(column, 0), None, column)
    return pa.array(label.names or [], pa.string()).take(indices)


def _fingerprint(parts: Sequence[str], mask: npt.NDArray[np.bool_]) -> str:
    """Return a fingerprint that is another one for each snapshot and each answer.

    So nothing that was cached for an earlier answer is ever found.
    """
    digest = hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16)
    for part in ("consentry", *parts, str(len(mask))):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _filter_stream(
    data: datasets.IterableDataset, decider: Decider, **question: Any
) -> datasets.IterableDataset:
    stream = _StreamFilter(decider, data.features, question)
    if data.column_names is not None:
        stream.batch_filter(data.column_names)
    kind = None
    if data._formatting:
        kind = data._formatting.format_type
    if kind in _TABLE_FORMATS:
        tables = data.with_format("arrow").map(
            stream.filter_table, batched=True, batch_size=_BATCH_ROWS, features=data.features
        )
        return tables.with_format(kind)
    # Decided as they are stored, not as tensors. A resume counts the rows before the filter, so it
    # loses none.
    if kind is None:
        return data.filter(stream.mask_rows, batched=True, batch_size=_BATCH_ROWS)
    plain = data.with_format(None)
    allowed = plain.filter(stream.mask_rows, batched=True, batch_size=_BATCH_ROWS)
    return allowed.with_format(kind)


class _StreamFilter:
    """Filters the batches of a stream, whose columns may be known only from its batches."""

    def __init__(
        self, decider: Decider, features: Mapping[str, Any] | None, question: Mapping[str, Any]
    ) -> None:
        self._decider = decider
        self._features = features
        self._question = question
        self._batch_filters: dict[tuple[str, ...], BatchFilter] = {}

    def batch_filter(self, names: Sequence[str]) -> BatchFilter:
        """Return the filter for batches of these columns, the same one each time."""
        key = tuple(names)
        if key not in self._batch_filters:
            self._batch_filters[key] = BatchFilter(self._decider, key, **self._question)
        return self._batch_filters[key]

    def mask_rows(self, batch: Mapping[str, Sequence[Any]]) -> list[bool]:
        """Return True for each row of a batch that may be used."""
        batch_filter = self.batch_filter(list(batch))
        arrays: dict[str, Any] = {}
        for name in batch_filter.names:
            column = batch_filter.column(name, batch[name])
            arrays[name] = _with_label_names(column, self._features, name)
        mask: list[bool] = batch_filter.mask(pa.table(arrays)).tolist()
        return mask

    def filter_table(self, batch: pa.Table) -> pa.Table:
        """Return the rows of a batch that may be used."""
        batch_filter = self.batch_filter(batch.column_names)
        arrays: dict[str, Any] = {}
        for name in batch_filter.names:
            arrays[name] = _with_label_names(batch[name], self._features, name)
        return batch.filter(pa.array(batch_filter.mask(pa.table(arrays))))
