"""The filter for Ray Data: a Dataset's allowed rows, decided by batches where they are read.

The decider's portable form is put into Ray's object store once; each worker process takes it out
once.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter
from consentry.trainer.filters.portable import portable, stale
from consentry.trainer.filters.rows import filter_rows

_STALE: Final = REASONS.index(Reason.STALE)
_REASON: Final = "__consentry_reason"
_DECIDERS_MAX: Final = 4
"""Deciders that a worker process keeps; each may hold the records of all members."""


def filter(
    decider: Decider,
    data: Dataset,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Dataset:
    """Return a Ray Dataset's rows that may be used for `purpose`; columns and types stay.

    Rows are decided when the Dataset is executed, in Ray's workers, by the decider's portable form:
    what it knows then counts. Where freshness is not proven then, the execution fails with
    `trainer.stale`: a data set that just ended would be taken for a whole one. With `tally` the
    Dataset is executed now, and its rows stay in the object store.

    Raises InvalidInput where a column is missing, Refused where the decider cannot be asked in
    other processes.
    """
    names = data.columns()
    if names is not None:  # else there are no rows yet
        columns = BatchFilter(
            decider, names, purpose=purpose, columns=columns, at_least=at_least, tally=None
        ).columns
    question: dict[str, Any] = {"purpose": purpose, "columns": columns, "at_least": at_least}
    arguments = {"decider": [ray.put(portable(decider))], "question": question}
    if tally is None:
        return _map(data, _filter_batch, fn_kwargs=arguments)
    decided = _map(data, _add_reasons, fn_kwargs=arguments).materialize()
    for row in _map(decided, _count_reasons).take_all():
        tally[REASONS[row["reason"]]] += row["count"]
    return _map(decided, _filter_by_reasons)


def _map(data: Dataset, function: Any, **options: Any) -> Dataset:
    return data.map_batches(function, batch_format="pyarrow", zero_copy_batch=True, **options)


def _filter_batch(batch: pa.Table, *, decider: list[Any], question: dict[str, Any]) -> pa.Table:
    return filter_rows(batch, _decisions(batch, decider, question).mask)


def _add_reasons(batch: pa.Table, *, decider: list[Any], question: dict[str, Any]) -> pa.Table:
    return batch.append_column(_REASON, pa.array(_decisions(batch, decider, question).reasons))


def _count_reasons(batch: pa.Table) -> pa.Table:
    reasons = batch[_REASON].combine_chunks().value_counts()
    return pa.table({"reason": reasons.field("values"), "count": reasons.field("counts")})


def _filter_by_reasons(batch: pa.Table) -> pa.Table:
    decisions = Decisions(batch[_REASON].to_numpy())
    return filter_rows(batch.drop_columns([_REASON]), decisions.mask)


def _decisions(batch: pa.Table, decider: list[Any], question: dict[str, Any]) -> Decisions:
    """Return the decisions of the worker's own decider. Raises Unavailable where it is stale."""
    if batch.num_rows == 0:  # which may have no columns at all
        return Decisions(np.zeros(0, dtype=np.int8))
    own_decider = _take_out(decider[0])
    batch_filter = BatchFilter(own_decider, batch.column_names, tally=None, **question)
    arrays = {name: _arrow_of(batch_filter, name, batch[name]) for name in batch_filter.names}
    table = pa.table(arrays)
    decisions = own_decider.decide_table(table, **question | {"columns": batch_filter.columns})
    if (decisions.reasons == _STALE).any():
        raise stale(own_decider)
    return decisions


def _arrow_of(batch_filter: BatchFilter, name: str, column: pa.ChunkedArray) -> Any:
    """Return a column as Arrow holds it; Ray keeps some times and mixed ids as Python objects."""
    if isinstance(column.type, pa.BaseExtensionType):
        return batch_filter.column(name, column.to_pylist())
    return column


@lru_cache(maxsize=_DECIDERS_MAX)
def _take_out(decider: ray.ObjectRef[Decider]) -> Decider:
    """Return the decider of this process; the store copies it, so it is taken out once."""
    own_decider: Decider = ray.get(decider)
    return own_decider
