"""Purge orders and receipts from and to the Avro bytes of their messages."""

from __future__ import annotations

from consentry.domain.controls import Scope
from consentry.domain.errors import UndecodableEvent
from consentry.domain.orders import PurgeOrder, PurgeReason, Receipt, Result
from consentry.domain.values import MemberId, Micros
from consentry.wire.catalog import Catalog
from consentry.wire.framed_fields import as_list, as_tuple, read_fields, write_fields
from consentry.wire.schemas import PURGE_ORDERS, RECEIPTS


def read_order(value: bytes | None, catalog: Catalog) -> PurgeOrder:
    """Decode one purge order from its Avro bytes. Raises UndecodableEvent."""
    _, fields = read_fields(value, PURGE_ORDERS, catalog)
    if fields["because"] not in PurgeReason.__members__:
        raise UndecodableEvent("purge_reason", "The purge order's reason is not one of ours.")
    has_scope = fields["member_id"] is None or fields["purposes"] is not None
    scope = Scope(
        jurisdictions=tuple(fields["jurisdictions"]),
        purposes=as_tuple(fields["purposes"]),
        categories=as_tuple(fields["categories"]),
    )
    return PurgeOrder(
        order_id=fields["order_id"],
        because=PurgeReason(fields["because"]),
        recorded_at=Micros(fields["recorded_at"]),
        due_at=Micros(fields["due_at"]),
        member=None if fields["member_id"] is None else MemberId(fields["member_id"]),
        pause=fields["pause_id"],
        scope=scope if has_scope else None,
        is_settled=fields["state"] == "SETTLED",
    )


def write_order(order: PurgeOrder, catalog: Catalog) -> bytes:
    """Return the framed Avro bytes of a purge order; its key is the order's id."""
    scope = order.scope or Scope(jurisdictions=())
    fields = {
        "order_id": order.order_id,
        "because": order.because.value,
        "state": "SETTLED" if order.is_settled else "OPEN",
        "member_id": order.member,
        "pause_id": order.pause,
        "jurisdictions": list(scope.jurisdictions),
        "purposes": as_list(scope.purposes),
        "categories": as_list(scope.categories),
        "recorded_at": order.recorded_at,
        "due_at": order.due_at,
    }
    return write_fields("PurgeOrder", fields, catalog)


def read_receipt(value: bytes | None, catalog: Catalog) -> Receipt:
    """Decode one purge receipt from its bytes; an unknown result leaves the order open.

    Raises UndecodableEvent.
    """
    _, fields = read_fields(value, RECEIPTS, catalog)
    result = fields["result"]
    return Receipt(
        order_id=fields["order_id"],
        subscriber=fields["subscriber"],
        dataset=fields["dataset"],
        result=Result(result) if result in Result.__members__ else Result.FAILED,
        detail=fields["detail"],
        rows_removed=fields["rows_removed"],
        version_before=fields["version_before"],
        version_after=fields["version_after"],
        completed_at=Micros(fields["completed_at"]),
    )


def write_receipt(receipt: Receipt, catalog: Catalog) -> bytes:
    """Return the framed Avro bytes of a purge receipt; its key is the subscriber."""
    fields = {
        "order_id": receipt.order_id,
        "subscriber": receipt.subscriber,
        "dataset": receipt.dataset,
        "result": receipt.result.value,
        "detail": receipt.detail,
        "rows_removed": receipt.rows_removed,
        "version_before": receipt.version_before,
        "version_after": receipt.version_after,
        "completed_at": receipt.completed_at,
    }
    return write_fields("Receipt", fields, catalog)
