"""The receipts of a purge, one for each purge order, and the file that they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from consentry.domain.errors import ConsentryError
from consentry.domain.orders import PurgeOrder, Receipt, Result
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.trainer.purge.dataset import Dataset, PurgeResult

KEPT_BY_OLD_VERSIONS: Final = "older versions of the table keep the rows until they are vacuumed"


def receipt(
    order: PurgeOrder,
    outcome: PurgeResult | Exception | str,
    *,
    subscriber: str,
    dataset: str,
    completed_at: Micros,
    detail: str = "",
) -> Receipt:
    """Return the receipt of a purge for one order: what was done about it.

    `outcome` is the result of a purge, the error that it ended with, or the reason of an exemption.
    An order whose rows an earlier run removed is DELETED, with all its rows: also where that run
    was killed before its receipt was sent.
    """
    rows = 0
    version_before = version_after = ""
    if isinstance(outcome, PurgeResult):
        rows = outcome.rows_in_all[order.order_id]
        version_before = outcome.versions_first[order.order_id]
        version_after = outcome.version_after
        if rows:
            result = Result.DELETED
        else:
            result = Result.NOT_FOUND
            detail = ""
    elif isinstance(outcome, str):
        result = Result.EXEMPT
        detail = outcome
    else:
        result = Result.FAILED
        detail = reason_of(outcome)
    return Receipt(
        order_id=order.order_id,
        subscriber=subscriber,
        dataset=dataset,
        result=result,
        rows_removed=rows,
        version_before=version_before,
        version_after=version_after,
        completed_at=completed_at,
        detail=detail,
    )


def reason_of(error: Exception) -> str:
    """Return why a purge failed, for its receipt: no error's text, which may quote the data."""
    if isinstance(error, ConsentryError):
        return error.code
    return type(error).__name__


def receipts(
    orders: Sequence[PurgeOrder],
    exempt: Mapping[str, str],
    outcome: PurgeResult | Exception,
    *,
    subscriber: str,
    dataset: str,
    completed_at: Micros,
    detail: str = "",
) -> list[Receipt]:
    """Return a purge's receipts, one for each order; `exempt` are reasons by order id."""
    answers: list[Receipt] = []
    for order in orders:
        answer = receipt(
            order,
            exempt.get(order.order_id, outcome),
            subscriber=subscriber,
            dataset=dataset,
            completed_at=completed_at,
            detail=detail,
        )
        answers.append(answer)
    return answers


def old_versions_detail(dataset: Dataset, *, is_vacuumed: bool) -> str:
    """Return a receipt's sentence that older versions keep purged rows; else empty."""
    if dataset.keeps_versions and not is_vacuumed:
        return KEPT_BY_OLD_VERSIONS
    return ""


def as_fields(receipt: Receipt) -> dict[str, Any]:
    """Return a purge's receipt as fields for JSON, with its time in ISO 8601."""
    fields = {name: getattr(receipt, name) for name in Receipt.__slots__}
    return fields | {"result": receipt.result.value, "completed_at": iso_text(receipt.completed_at)}


def write_receipts(path: Path, receipts: Sequence[Receipt]) -> None:
    """Write a purge's receipts as a JSON list; an existing file is replaced whole or not."""
    documents = [as_fields(receipt) for receipt in receipts]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(documents, indent=2) + "\n")
    temporary.replace(path)
