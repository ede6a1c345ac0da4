"""Controls, purge orders, receipts and frontiers from and to bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from consentry.domain.controls import (
    Control,
    Minors,
    OptIns,
    PauseBasis,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Reach,
    Regime,
    Scope,
    Terms,
)
from consentry.domain.errors import InvalidInput, UndecodableEvent
from consentry.domain.orders import PurgeOrder, PurgeReason, Receipt, Result
from consentry.domain.values import MemberId, Micros
from consentry.wire.catalog import Catalog
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN, read_strictly
from consentry.wire.frames import FRAME_LENGTH, schema_id_of
from consentry.wire.kafka import Stored
from consentry.wire.schemas import CONTROLS, FRONTIERS, PURGE_ORDERS, RECEIPTS, schema, topics

_LOG = structlog.get_logger(__name__)

SECOND_MICROS = 1_000_000
WITHIN_SECONDS_MAX = 100 * 365 * 86_400
MILLI_MICROS = 1000
CONTROL_BYTES_MAX = 500_000
INT_MAX = 1 << 31


class Frontier(NamedTuple):
    """How far a partition has come; times in microseconds since 1970-01-01 UTC, offsets exclusive.

    `log` names the log of `next_offset` (kafka.log_identity, in hexadecimal digits; empty: not known).
    """

    partition: int
    generation: str
    frontier_at: Micros
    next_offset: int
    records_offset: int
    controls_offset: int
    tainted: bool
    log: str = ""


def _read(value: bytes | None, topic: str, catalog: Catalog) -> tuple[str, dict[str, Any]]:
    name = catalog.name_of(schema_id_of(value), allowed=topics()[topic].records)
    assert value is not None  # schema_id_of refuses an empty value
    fields = read_strictly(name, value[FRAME_LENGTH:], bytes_max=CONTROL_BYTES_MAX)
    version = fields.get("version")
    if isinstance(version, int) and not 0 <= version < INT_MAX:
        raise UndecodableEvent("version", "The version is not an int of 32 bits.")
    return name, fields


def _write(name: str, fields: Mapping[str, Any], catalog: Catalog) -> bytes:
    payload = schema(name).encode(fields)
    if len(payload) > CONTROL_BYTES_MAX:
        raise InvalidInput(
            f"The {name} takes {len(payload)} bytes; at most {CONTROL_BYTES_MAX} are read.",
            code="input.too_large",
            fix="split it, such as a policy into several purposes",
        )
    return catalog.frame_of(name) + payload


def _many(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


def control_key(control: Control) -> bytes:
    """The record key of a control: its identity. Unique, so that compaction never drops one."""
    if isinstance(control, PolicyPublished):
        return f"policy:{control.version}:{control.event_id.hex()}".encode()
    kind = "pause" if isinstance(control, PauseImposed) else "lift"
    return f"{kind}:{control.pause}:{control.version}:{control.event_id.hex()}".encode()


def read_control(value: bytes | None, catalog: Catalog) -> Control:
    """Decode one control. Raises UndecodableEvent."""
    name, fields = _read(value, CONTROLS, catalog)
    for instant in ("effective_at", "recorded_at"):
        if not INSTANT_MIN <= fields[instant] < INSTANT_MAX:
            raise UndecodableEvent("time_window", f"{instant} lies outside 1979 to 3111.")
    common = {
        "event_id": fields["event_id"],
        "effective_at": Micros(fields["effective_at"]),
        "recorded_at": Micros(fields["recorded_at"]),
        "source": fields["source"],
    }
    if name == "PauseImposed":
        scope = Scope(
            jurisdictions=tuple(fields["jurisdictions"]),
            purposes=_many(fields["purposes"]),
            categories=_many(fields["categories"]),
        )
        return PauseImposed(
            pause=fields["pause_id"],
            version=fields["version"],
            scope=scope,
            authority=fields["authority"],
            basis=PauseBasis(fields["pause_basis"]),
            reach=Reach(fields["reach"]),
            **common,
        )
    if name == "PauseLifted":
        return PauseLifted(
            pause=fields["pause_id"], version=fields["version"], opt_ins=OptIns(fields["opt_ins"]), **common
        )
    return PolicyPublished(version=fields["version"], terms=tuple(map(_terms, fields["terms"])), **common)


def _terms(fields: Mapping[str, Any]) -> Terms:
    return Terms(
        jurisdictions=tuple(fields["jurisdictions"]),
        purpose=fields["purpose"],
        regime=Regime(fields["regime"]),
        basis=fields["basis"],
        notice_until=fields["notice_until"],
        categories=_many(fields["categories"]),
        collected_from=fields["collected_from"],
        minors=Minors(fields["minors"]),
        purge_on_opt_out=fields["purge_on_opt_out"],
        # Beyond a hundred years, or before now, a deadline would be no date; the stricter one is read for it.
        purge_within=Micros(min(max(fields["purge_within_seconds"], 0), WITHIN_SECONDS_MAX) * SECOND_MICROS),
    )


def write_control(control: Control, catalog: Catalog) -> bytes:
    """The framed bytes of a control."""
    fields: dict[str, Any] = {
        "event_id": control.event_id,
        "effective_at": control.effective_at,
        "recorded_at": control.recorded_at,
        "source": control.source,
    }
    if isinstance(control, PauseImposed):
        fields |= {
            "pause_id": control.pause,
            "version": control.version,
            "jurisdictions": list(control.scope.jurisdictions),
            "purposes": _list(control.scope.purposes),
            "categories": _list(control.scope.categories),
            "authority": control.authority,
            "pause_basis": control.basis.value,
            "reach": control.reach.value,
        }
    elif isinstance(control, PauseLifted):
        fields |= {"pause_id": control.pause, "version": control.version, "opt_ins": control.opt_ins.value}
    else:
        fields |= {"version": control.version, "terms": [_terms_fields(terms) for terms in control.terms]}
    return _write(type(control).__name__, fields, catalog)


def _terms_fields(terms: Terms) -> dict[str, Any]:
    return {
        "jurisdictions": list(terms.jurisdictions),
        "purpose": terms.purpose,
        "regime": terms.regime.value,
        "basis": terms.basis,
        "notice_until": terms.notice_until,
        "categories": _list(terms.categories),
        "collected_from": terms.collected_from,
        "minors": terms.minors.value,
        "purge_on_opt_out": terms.purge_on_opt_out,
        "purge_within_seconds": terms.purge_within // SECOND_MICROS,
    }


def read_order(value: bytes | None, catalog: Catalog) -> PurgeOrder:
    """Decode one purge order. Raises UndecodableEvent."""
    _, fields = _read(value, PURGE_ORDERS, catalog)
    if fields["because"] not in PurgeReason.__members__:
        raise UndecodableEvent("purge_reason", "The purge order's reason is not one of ours.")
    has_scope = fields["member_id"] is None or fields["purposes"] is not None
    scope = Scope(
        jurisdictions=tuple(fields["jurisdictions"]),
        purposes=_many(fields["purposes"]),
        categories=_many(fields["categories"]),
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
    """The framed bytes of a purge order; the key is its id."""
    scope = order.scope or Scope(jurisdictions=())
    fields = {
        "order_id": order.order_id,
        "because": order.because.value,
        "state": "SETTLED" if order.is_settled else "OPEN",
        "member_id": order.member,
        "pause_id": order.pause,
        "jurisdictions": list(scope.jurisdictions),
        "purposes": _list(scope.purposes),
        "categories": _list(scope.categories),
        "recorded_at": order.recorded_at,
        "due_at": order.due_at,
    }
    return _write("PurgeOrder", fields, catalog)


def read_receipt(value: bytes | None, catalog: Catalog) -> Receipt:
    """Decode one receipt; a result that is not known leaves the obligation open. Raises UndecodableEvent."""
    _, fields = _read(value, RECEIPTS, catalog)
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
    """The framed bytes of a receipt; the key is the subscriber."""
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
    return _write("Receipt", fields, catalog)


def read_frontier(value: bytes | None, catalog: Catalog) -> Frontier:
    """Decode one frontier. Raises UndecodableEvent."""
    _, fields = _read(value, FRONTIERS, catalog)
    return Frontier(**fields)


def readable_frontiers(messages: Iterable[Stored], catalog: Catalog) -> Iterator[Frontier]:
    """The frontiers of a topic; one that cannot be read proves nothing and is left out."""
    for message in messages:
        try:
            yield read_frontier(message.value, catalog)
        except UndecodableEvent as error:
            _LOG.error("frontier_unreadable", offset=message.offset, error_class=error.error_class)


def write_frontier(frontier: Frontier, catalog: Catalog) -> bytes:
    """The framed bytes of a frontier; the key is the partition's number."""
    return _write("Frontier", frontier._asdict(), catalog)


def _clamped(control: Control, appended_at: Micros) -> Control:
    """Hold `recorded_at` against the broker's append time; a pause from a fast clock binds at once."""
    if control.recorded_at <= appended_at:
        return control
    if isinstance(control, PauseImposed):
        return replace(control, recorded_at=appended_at, effective_at=min(control.effective_at, appended_at))
    return replace(control, recorded_at=appended_at)


def read_control_or_pause(value: bytes | None, *, offset: int, appended_at: Micros, catalog: Catalog) -> Control:
    """The control in a message; for one that cannot be read, a pause of everything.

    What it said is unknown, so nothing may be used until an operator lifts `unreadable-<offset>`. Source: B-28.
    """
    try:
        return _clamped(read_control(value, catalog), Micros(appended_at + MILLI_MICROS - 1))
    except UndecodableEvent as error:
        return PauseImposed(
            event_id=offset.to_bytes(16, "big"),
            pause=f"unreadable-{offset}",
            version=1,
            scope=Scope(jurisdictions=()),
            effective_at=Micros(0),
            recorded_at=appended_at,
            authority="",
            basis=PauseBasis.UNKNOWN,
            reach=Reach.GOING_FORWARD,
            source=error.error_class,
        )
