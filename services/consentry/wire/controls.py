"""Controls (pauses, lifts, policies) from and to the Avro bytes of their messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
from consentry.domain.errors import UndecodableEvent
from consentry.domain.values import Micros
from consentry.wire.catalog import Catalog
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN
from consentry.wire.framed_fields import as_list, as_tuple, read_fields, write_fields
from consentry.wire.schemas import CONTROLS

SECOND_MICROS = 1_000_000
WITHIN_SECONDS_MAX = 100 * 365 * 86_400
MILLI_MICROS = 1000


def control_key(control: Control) -> bytes:
    """Return the key of a control's message: unique, so that compaction never drops one."""
    if isinstance(control, PolicyPublished):
        return f"policy:{control.version}:{control.event_id.hex()}".encode()
    kind = "pause" if isinstance(control, PauseImposed) else "lift"
    return f"{kind}:{control.pause}:{control.version}:{control.event_id.hex()}".encode()


def read_control(value: bytes | None, catalog: Catalog) -> Control:
    """Decode one control (pause, lift, policy) from its bytes. Raises UndecodableEvent."""
    name, fields = read_fields(value, CONTROLS, catalog)
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
            purposes=as_tuple(fields["purposes"]),
            categories=as_tuple(fields["categories"]),
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
            pause=fields["pause_id"],
            version=fields["version"],
            opt_ins=OptIns(fields["opt_ins"]),
            **common,
        )
    return PolicyPublished(
        version=fields["version"], terms=tuple(map(_terms, fields["terms"])), **common
    )


def _terms(fields: Mapping[str, Any]) -> Terms:
    return Terms(
        jurisdictions=tuple(fields["jurisdictions"]),
        purpose=fields["purpose"],
        regime=Regime(fields["regime"]),
        basis=fields["basis"],
        notice_until=fields["notice_until"],
        categories=as_tuple(fields["categories"]),
        collected_from=fields["collected_from"],
        minors=Minors(fields["minors"]),
        purge_on_opt_out=fields["purge_on_opt_out"],
        purge_within=_purge_within(fields["purge_within_seconds"]),
    )


def _purge_within(seconds: int) -> Micros:
    """Return the time to purge, held between 0 and a hundred years: beyond is not a date."""
    return Micros(min(max(seconds, 0), WITHIN_SECONDS_MAX) * SECOND_MICROS)


def write_control(control: Control, catalog: Catalog) -> bytes:
    """Return the framed Avro bytes of a control (pause, lift, policy)."""
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
            "purposes": as_list(control.scope.purposes),
            "categories": as_list(control.scope.categories),
            "authority": control.authority,
            "pause_basis": control.basis.value,
            "reach": control.reach.value,
        }
    elif isinstance(control, PauseLifted):
        fields |= {
            "pause_id": control.pause,
            "version": control.version,
            "opt_ins": control.opt_ins.value,
        }
    else:
        fields |= {
            "version": control.version,
            "terms": [_terms_fields(terms) for terms in control.terms],
        }
    return write_fields(type(control).__name__, fields, catalog)


def _terms_fields(terms: Terms) -> dict[str, Any]:
    return {
        "jurisdictions": list(terms.jurisdictions),
        "purpose": terms.purpose,
        "regime": terms.regime.value,
        "basis": terms.basis,
        "notice_until": terms.notice_until,
        "categories": as_list(terms.categories),
        "collected_from": terms.collected_from,
        "minors": terms.minors.value,
        "purge_on_opt_out": terms.purge_on_opt_out,
        "purge_within_seconds": terms.purge_within // SECOND_MICROS,
    }


def _clamped(control: Control, appended_at: Micros) -> Control:
    """Return the control with `recorded_at` at most the broker's append time.

    A pause from a fast clock binds at once.
    """
    if control.recorded_at <= appended_at:
        return control
    if isinstance(control, PauseImposed):
        return replace(
            control, recorded_at=appended_at, effective_at=min(control.effective_at, appended_at)
        )
    return replace(control, recorded_at=appended_at)


def read_control_or_pause(
    value: bytes | None, *, offset: int, appended_at: Micros, catalog: Catalog
) -> Control:
    """Return the control in a message's bytes; if unreadable, a pause of everything.

    Its content is unknown, so nothing may be used until an operator lifts `unreadable-<offset>`.
    Source: B-28.
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
