"""Ray Data: a Dataset of the rows that may be used, judged batch by batch where they are read.

The judge's portable form is put into Ray's object store once; each worker process takes it out once.
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
from consentry.trainer.filter import REASONS, Columns, Verdict
from consentry.trainer.integrations.arrow import kept
from consentry.trainer.integrations.portable import portable, stale
from consentry.trainer.integrations.sieve import Sieve
from consentry.trainer.judge import Judge

_STALE: Final = REASONS.index(Reason.STALE)
_REASON: Final = "__consentry_reason"
_JUDGES_MAX: Final = 4
"""A worker process keeps so many judges; each may be as large as all that is known of everybody."""


def filter(
    judge: Judge,
    data: Dataset,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Dataset:
    """The rows of a Dataset that may be used for `purpose`; other columns and types as they were.

    Rows are judged when the Dataset is executed, in Ray's workers, by the judge's portable form: what it knows then
    counts. Where freshness is not proven then, the execution fails with `trainer.stale`: a data set that just ended
    would be taken for a whole one. With `tally` the Dataset is executed now, and its rows are kept in the object store.

    Raises InvalidInput where a column is missing, Refused where the judge cannot be asked in other processes.
    """
    names = data.columns() or []
    sieve = Sieve(judge, names, purpose=purpose, columns=columns, at_least=at_least, tally=None)
    question: dict[str, Any] = {"purpose": purpose, "columns": sieve.columns, "at_least": at_least}
    told = {"judge": [ray.put(portable(judge))], "question": question}
    if tally is None:
        return data.map_batches(_allowed, fn_kwargs=told, batch_format="pyarrow", zero_copy_batch=True)
    judged = data.map_batches(_with_reasons, fn_kwargs=told, batch_format="pyarrow", zero_copy_batch=True).materialize()
    counts = judged.map_batches(_counted, batch_format="pyarrow", zero_copy_batch=True).take_all()
    for row in counts:
        tally[REASONS[row["reason"]]] += row["count"]
    return judged.map_batches(_allowed_by_reason, batch_format="pyarrow", zero_copy_batch=True)


def _allowed(batch: pa.Table, *, judge: list[Any], question: dict[str, Any]) -> pa.Table:
    return kept(batch, _verdict(batch, judge, question).mask)


def _with_reasons(batch: pa.Table, *, judge: list[Any], question: dict[str, Any]) -> pa.Table:
    return batch.append_column(_REASON, pa.array(_verdict(batch, judge, question).reasons))


def _counted(batch: pa.Table) -> pa.Table:
    reasons = batch[_REASON].combine_chunks().value_counts()
    return pa.table({"reason": reasons.field("values"), "count": reasons.field("counts")})


def _allowed_by_reason(batch: pa.Table) -> pa.Table:
    verdict = Verdict(batch[_REASON].to_numpy())
    return kept(batch.drop_columns([_REASON]), verdict.mask)


def _verdict(batch: pa.Table, judge: list[Any], question: dict[str, Any]) -> Verdict:
    """What the worker's own copy of the judge says. Raises Unavailable where that is STALE."""
    here = _taken_out(judge[0])
    asked = question["columns"]
    names = dict.fromkeys(name for name in (asked.member, asked.jurisdiction, asked.category, asked.collected) if name)
    # A block of a Dataset that is empty may have no columns at all.
    if batch.num_rows == 0:
        return Verdict(np.zeros(0, dtype=np.int8))
    verdict = here.judge(batch.select(list(names)), **question)
    if (verdict.reasons == _STALE).any():
        raise stale(here)
    return verdict


@lru_cache(maxsize=_JUDGES_MAX)
def _taken_out(judge: ray.ObjectRef[Judge]) -> Judge:
    """The judge of this process: what is taken out of the store is copied, so it is done once."""
    found: Judge = ray.get(judge)
    return found
