"""The receipts that a purge earns: what each order's subscriber may answer, once it is done or has
failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from consentry.domain.errors import ConsentryError
from consentry.domain.orders import PurgeOrder, Receipt, Result
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.trainer.purge.dataset import PurgeResult

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
    """The answer to one order: of a purge that was done, of an error that it ended with, or of a
    reason for exemption.

    An order whose rows an earlier run removed is DELETED, with all its rows: also where that run
    was killed before its receipt was sent.
    """
    result, rows, versions = Result.FAILED, 0, ("", "")
    if isinstance(outcome, PurgeResult):
        rows = outcome.rows_in_all[order.order_id]
        result = Result.DELETED if rows else Result.NOT_FOUND
        versions = (outcome.versions_first[order.order_id], outcome.version_after)
        detail = detail if rows else ""
    elif isinstance(outcome, str):
        result, detail = Result.EXEMPT, outcome
    else:
        detail = reason_of(outcome)
    return Receipt(
        order_id=order.order_id,
        subscriber=subscriber,
        dataset=dataset,
        result=result,
        rows_removed=rows,
        version_before=versions[0],
        version_after=versions[1],
        completed_at=completed_at,
        detail=detail,
    )


def reason_of(error: Exception) -> str:
    """Why a purge failed, without what an error's text may quote from the data."""
    return error.code if isinstance(error, ConsentryError) else type(error).__name__


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
    """One receipt per order; `exempt` are reasons by order id."""
    return [
        receipt(
            order,
            exempt.get(order.order_id, outcome),
            subscriber=subscriber,
            dataset=dataset,
            completed_at=completed_at,
            detail=detail,
        )
        for order in orders
    ]


def as_fields(one: Receipt) -> dict[str, Any]:
    """A JSON object of a receipt, with its time in ISO 8601."""
    fields = {name: getattr(one, name) for name in Receipt.__slots__}
    return fields | {"result": one.result.value, "completed_at": iso_text(one.completed_at)}
