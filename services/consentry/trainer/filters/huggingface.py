"""Hugging Face datasets: map-style and streaming, and dictionaries of their splits."""

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

_AT_ONCE: Final = 1 << 20
"""Rows of a map-style data set that are judged at once."""
_BATCH: Final = 1000
"""Rows of a stream that are judged at once."""
_TABLES: Final = ("arrow", "pandas", "polars")


def filter(
    decider: Decider,
    data: Data,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Data:
    """The rows that may be used for `purpose`, in the data set's own format; every row is counted
    in `tally`.

    A map-style data set is judged now, whole, and never from a cache: what is returned, and so
    whatever is made of it, has a fingerprint of its own for each view and each answer. A stream is
    judged while it is read, a thousand rows at a time, again after a resume; in a table format
    (arrow, pandas, polars) a resume goes on after as many allowed rows of that thousand as were
    read before.

    Raises InvalidInput where a column is missing: of a stream whose columns nobody knows yet, when
    it is read.
    """
    asked: dict[str, Any] = {
        "purpose": purpose,
        "columns": columns,
        "at_least": at_least,
        "tally": tally,
    }
    if isinstance(data, datasets.Dataset):
        return _kept(data, decider, **asked)
    if isinstance(data, datasets.IterableDataset):
        return _kept_of_stream(data, decider, **asked)
    return type(data)({name: filter(decider, split, **asked) for name, split in data.items()})


def _kept(data: datasets.Dataset, decider: Decider, **asked: Any) -> datasets.Dataset:
    batch_filter = BatchFilter(decider, data.column_names, **asked)
    snapshot_id = decider.snapshot_id
    masks = [
        batch_filter.mask(_part(data, start, batch_filter))
        for start in range(0, len(data), _AT_ONCE)
    ]
    mask = np.concatenate([np.zeros(0, dtype=np.bool_), *masks])
    fingerprint = _fingerprint(
        [data._fingerprint, snapshot_id, asked["purpose"], repr(batch_filter.columns)], mask
    )
    if not len(data):
        return data  # `select` gives it back as it is
    return data.select(np.flatnonzero(mask).tolist(), new_fingerprint=fingerprint)


def _part(data: datasets.Dataset, start: int, batch_filter: BatchFilter) -> pa.Table:
    """Some rows as they are stored, whatever format the data set is read in, in the order that it
    has by now.
    """
    table, order = data.data.table.select(batch_filter.names), data._indices
    part = (
        table.slice(start, _AT_ONCE)
        if order is None
        else table.take(order.column(0).slice(start, _AT_ONCE))
    )
    return pa.table({name: _named(part[name], data.features, name) for name in batch_filter.names})


def _named(column: Any, features: Mapping[str, Any] | None, name: str) -> Any:
    """A column of class labels by their names: their numbers would be taken for other members."""
    label = (features or {}).get(name)
    if not isinstance(label, datasets.ClassLabel):
        return column
    return pa.array(label.names or [], pa.string()).take(
        pc.if_else(pc.less(column, 0), None, column)
    )


def _fingerprint(parts: Sequence[str], mask: npt.NDArray[np.bool_]) -> str:
    """Another one for each view and each answer, so that nothing cached from an earlier one is ever
    found.
    """
    told = hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16)
    for part in ("consentry", *parts, str(len(mask))):
        told.update(f"{len(part)}:{part}".encode())
    return told.hexdigest()


def _kept_of_stream(
    data: datasets.IterableDataset, decider: Decider, **asked: Any
) -> datasets.IterableDataset:
    stream = _Stream(decider, data.features, asked)
    if data.column_names is not None:
        stream.batch_filter(data.column_names)
    kind = data._formatting.format_type if data._formatting else None
    if kind in _TABLES:
        tables = data.with_format("arrow").map(
            stream.of_table, batched=True, batch_size=_BATCH, features=data.features
        )
        return tables.with_format(kind)
    # Judged as they are stored, not as tensors; a resume counts the rows before judging, so it
    # loses none.
    plain = data if kind is None else data.with_format(None)
    left = plain.filter(stream.of_rows, batched=True, batch_size=_BATCH)
    return left if kind is None else left.with_format(kind)


class _Stream:
    """Judges the batches of a stream, whose columns may be known only from its batches."""

    def __init__(
        self, decider: Decider, features: Mapping[str, Any] | None, asked: Mapping[str, Any]
    ) -> None:
        self._decider = decider
        self._features = features
        self._asked = asked
        self._sieves: dict[tuple[str, ...], BatchFilter] = {}

    def batch_filter(self, names: Sequence[str]) -> BatchFilter:
        """That of the columns; one for each shape of batch."""
        key = tuple(names)
        if key not in self._sieves:
            self._sieves[key] = BatchFilter(self._decider, key, **self._asked)
        return self._sieves[key]

    def of_rows(self, batch: Mapping[str, Sequence[Any]]) -> list[bool]:
        """Which rows of a batch stay."""
        batch_filter = self.batch_filter(list(batch))
        arrays = {
            name: _named(batch_filter.column(name, batch[name]), self._features, name)
            for name in batch_filter.names
        }
        found: list[bool] = batch_filter.mask(pa.table(arrays)).tolist()
        return found

    def of_table(self, batch: pa.Table) -> pa.Table:
        """The rows of a batch that stay."""
        batch_filter = self.batch_filter(batch.column_names)
        arrays = {name: _named(batch[name], self._features, name) for name in batch_filter.names}
        return batch.filter(pa.array(batch_filter.mask(pa.table(arrays))))
