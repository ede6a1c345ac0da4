"""Ray Data: a Dataset of the rows that may be used, judged batch by batch where they are read.

The judge's portable form is put into Ray's object store once; each worker process takes it out
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
from consentry.trainer.filters.rows import kept

_STALE: Final = REASONS.index(Reason.STALE)
_REASON: Final = "__consentry_reason"
_JUDGES_MAX: Final = 4
"""A worker process keeps so many deciders; each may be as large as all that is known of
everybody.
"""


def filter(
    decider: Decider,
    data: Dataset,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Dataset:
    """The rows of a Dataset that may be used for `purpose`; other columns and types as they were.

    Rows are judged when the Dataset is executed, in Ray's workers, by the judge's portable form:
    what it knows then counts. Where freshness is not proven then, the execution fails with
    `trainer.stale`: a data set that just ended would be taken for a whole one. With `tally` the
    Dataset is executed now, and its rows are kept in the object store.

    Raises InvalidInput where a column is missing, Refused where the judge cannot be asked in other
    processes.
    """
    names = data.columns()
    if names is not None:  # else there are no rows yet
        columns = BatchFilter(
            decider, names, purpose=purpose, columns=columns, at_least=at_least, tally=None
        ).columns
    question: dict[str, Any] = {"purpose": purpose, "columns": columns, "at_least": at_least}
    told: dict[str, Any] = {
        "fn_kwargs": {"decider": [ray.put(portable(decider))], "question": question}
    }
    if tally is None:
        return _mapped(data, _allowed, **told)
    judged = _mapped(data, _with_reasons, **told).materialize()
    for row in _mapped(judged, _counted).take_all():
        tally[REASONS[row["reason"]]] += row["count"]
    return _mapped(judged, _allowed_by_reason)


def _mapped(data: Dataset, function: Any, **told: Any) -> Dataset:
    return data.map_batches(function, batch_format="pyarrow", zero_copy_batch=True, **told)


def _allowed(batch: pa.Table, *, decider: list[Any], question: dict[str, Any]) -> pa.Table:
    return kept(batch, _decisions(batch, decider, question).mask)


def _with_reasons(batch: pa.Table, *, decider: list[Any], question: dict[str, Any]) -> pa.Table:
    return batch.append_column(_REASON, pa.array(_decisions(batch, decider, question).reasons))


def _counted(batch: pa.Table) -> pa.Table:
    reasons = batch[_REASON].combine_chunks().value_counts()
    return pa.table({"reason": reasons.field("values"), "count": reasons.field("counts")})


def _allowed_by_reason(batch: pa.Table) -> pa.Table:
    decisions = Decisions(batch[_REASON].to_numpy())
    return kept(batch.drop_columns([_REASON]), decisions.mask)


def _decisions(batch: pa.Table, decider: list[Any], question: dict[str, Any]) -> Decisions:
    """What the worker's own copy of the judge says. Raises Unavailable where that is STALE."""
    if batch.num_rows == 0:  # which may have no columns at all
        return Decisions(np.zeros(0, dtype=np.int8))
    here = _taken_out(decider[0])
    batch_filter = BatchFilter(here, batch.column_names, tally=None, **question)
    asked = pa.table({name: _plain(batch_filter, name, batch[name]) for name in batch_filter.names})
    decisions = here.decide_table(asked, **question | {"columns": batch_filter.columns})
    if (decisions.reasons == _STALE).any():
        raise stale(here)
    return decisions


def _plain(batch_filter: BatchFilter, name: str, column: pa.ChunkedArray) -> Any:
    """A column as Arrow has it; what Ray keeps as Python objects, as some times and mixed ids, is
    read as such.
    """
    return (
        batch_filter.column(name, column.to_pylist())
        if isinstance(column.type, pa.BaseExtensionType)
        else column
    )


@lru_cache(maxsize=_JUDGES_MAX)
def _taken_out(decider: ray.ObjectRef[Decider]) -> Decider:
    """The judge of this process: what is taken out of the store is copied, so it is done once."""
    found: Decider = ray.get(decider)
    return found
