"""Member events from bytes, strictly: whatever is not exactly one well-formed event is refused.

This is the generic path, and the oracle of the fast one (event_batches.py).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import fastavro

from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import (
    ConsentChanged,
    EventUnreadable,
    MemberErased,
    MemberEvent,
    MemberReleased,
    MemberRelocated,
    SentEvent,
)
from consentry.domain.values import (
    MEMBER_ID_PATTERN,
    NAME_PATTERN,
    AgeBand,
    Choice,
    MemberId,
    Micros,
)
from consentry.wire.catalog import Catalog
from consentry.wire.frames import FRAME_LENGTH, schema_id_of
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import MEMBER_EVENTS, schema, topics

EVENT_BYTES_MAX: Final = 16_384
STRING_BYTES_MAX: Final = 512
INSTANT_MIN: Final = 1 << 48
INSTANT_MAX: Final = 1 << 55
"""Instants lie in [2^48, 2^55) microseconds, 1979 to 3111: as Avro longs they take exactly eight
bytes.
"""

CLOCK_TOLERANCE: Final = Micros(1_000_000)
"""A producer's clock may be this far ahead of the broker's, in microseconds."""

EVENT_NAMES: Final = topics()[MEMBER_EVENTS].records


def read_event(value: bytes | None, key: bytes, catalog: Catalog) -> MemberEvent:
    """Decode one member event from a message's Avro bytes.

    Raises UndecodableEvent for anything that is not exactly one, whatever it is.
    """
    schema_id = schema_id_of(value)
    assert value is not None  # schema_id_of refuses an empty value
    if len(value) > EVENT_BYTES_MAX:
        raise UndecodableEvent(
            "too_large", f"The value has {len(value)} bytes; at most {EVENT_BYTES_MAX} are read."
        )
    name = catalog.name_of(schema_id, allowed=EVENT_NAMES)
    fields = read_strictly(name, value[FRAME_LENGTH:])
    check_fields(fields, key)
    return _BUILDERS[name](fields)


def read_strictly(name: str, payload: bytes, *, bytes_max: int = EVENT_BYTES_MAX) -> dict[str, Any]:
    """Decode Avro bytes of record `name`, all of them; encoding must give the same bytes.

    Re-encoding catches what the decoder lets through: negative enum and union indexes, over-long
    varints, booleans beyond 1. Raises UndecodableEvent.
    """
    if len(payload) > bytes_max:
        raise UndecodableEvent(
            "too_large", f"The value has {len(payload)} bytes; at most {bytes_max} are read."
        )
    known = schema(name)
    buffer = io.BytesIO(payload)
    try:
        fields: Any = fastavro.schemaless_reader(buffer, known.parsed, None)
        end = buffer.tell()
        again = known.encode(fields)
    except Exception as error:
        # fastavro has no error class of its own: it raises IndexError, EOFError,
        # UnicodeDecodeError, OverflowError.
        raise UndecodableEvent(
            "avro", f"The bytes are not a {name} ({type(error).__name__})."
        ) from error
    if end != len(payload):
        raise UndecodableEvent("trailing", f"{len(payload) - end} bytes follow the {name}.")
    if again != payload:
        raise UndecodableEvent(
            "not_canonical",
            f"The bytes of the {name} are not the ones that its content encodes to.",
        )
    return dict(fields)


def check_fields(fields: Mapping[str, Any], key: bytes) -> None:
    """Check fields of a decoded event that Avro does not: identity, names, times, text.

    Raises UndecodableEvent.
    """
    member = fields["member_id"]
    if MEMBER_ID_PATTERN.fullmatch(member) is None:
        raise UndecodableEvent("member_id", "The member id does not match its pattern.")
    if member.encode() != key:
        raise UndecodableEvent("key_mismatch", "The record key is not the member id in the event.")
    for name in ("effective_at", "recorded_at"):
        if not INSTANT_MIN <= fields[name] < INSTANT_MAX:
            raise UndecodableEvent("time_window", f"{name} lies outside 1979 to 3111.")
    observed = fields.get("observed_version")
    if observed is not None and observed < 0:
        raise UndecodableEvent("observed_version", "observed_version is negative.")
    if "purpose" in fields and NAME_PATTERN.fullmatch(fields["purpose"]) is None:
        raise UndecodableEvent("purpose", "The purpose does not match its pattern.")
    if "jurisdiction" in fields and not iso_jurisdictions().is_code(fields["jurisdiction"]):
        raise UndecodableEvent("jurisdiction", "The jurisdiction is not an ISO 3166 code.")
    for name in ("source", "notice_version", "evidence"):
        text = fields.get(name) or ""
        if not text.isprintable() or len(text.encode()) > STRING_BYTES_MAX:
            raise UndecodableEvent(
                "text", f"{name} has unprintable characters or more than {STRING_BYTES_MAX} bytes."
            )


def admit(event: MemberEvent, appended_at: Micros) -> MemberEvent:
    """Return a decoded event with `recorded_at` at most the broker's append time (µs).

    A later time of an event that excludes is clamped. An opt-in or a release from the future is
    refused, as it could outlive a lift or end a quarantine too early. Raises UndecodableEvent.
    """
    if event.recorded_at <= appended_at:
        return event
    widens = isinstance(event, MemberReleased) or (
        isinstance(event, ConsentChanged) and event.choice is Choice.OPT_IN
    )
    if widens and event.recorded_at - appended_at > CLOCK_TOLERANCE:
        word = "release" if isinstance(event, MemberReleased) else "opt_in"
        raise UndecodableEvent(
            f"{word}_from_future", "The event claims to be recorded after the broker took it."
        )
    if widens or isinstance(event, EventUnreadable):
        return replace(event, recorded_at=appended_at)
    # The same clock set effective_at: left in the future, an opt-out would not bind until then.
    return replace(
        event, recorded_at=appended_at, effective_at=min(event.effective_at, appended_at)
    )


def _consent_changed(fields: Mapping[str, Any]) -> MemberEvent:
    return ConsentChanged(
        event_id=fields["event_id"],
        member=MemberId(fields["member_id"]),
        purpose=fields["purpose"],
        choice=Choice(fields["choice"]),
        effective_at=Micros(fields["effective_at"]),
        recorded_at=Micros(fields["recorded_at"]),
        observed_version=fields["observed_version"],
        legal_basis=fields["legal_basis"],
        notice_version=fields["notice_version"],
        source=fields["source"],
        evidence=fields["evidence"],
    )


def _member_relocated(fields: Mapping[str, Any]) -> MemberEvent:
    return MemberRelocated(
        event_id=fields["event_id"],
        member=MemberId(fields["member_id"]),
        jurisdiction=fields["jurisdiction"],
        effective_at=Micros(fields["effective_at"]),
        recorded_at=Micros(fields["recorded_at"]),
        age_band=AgeBand(fields["age_band"]),
        source=fields["source"],
    )


def _member_erased(fields: Mapping[str, Any]) -> MemberEvent:
    return MemberErased(
        event_id=fields["event_id"],
        member=MemberId(fields["member_id"]),
        effective_at=Micros(fields["effective_at"]),
        recorded_at=Micros(fields["recorded_at"]),
        source=fields["source"],
    )


def _member_released(fields: Mapping[str, Any]) -> MemberEvent:
    return MemberReleased(
        event_id=fields["event_id"],
        member=MemberId(fields["member_id"]),
        effective_at=Micros(fields["effective_at"]),
        recorded_at=Micros(fields["recorded_at"]),
        observed_version=fields["observed_version"],
        source=fields["source"],
    )


_BUILDERS: Final[Mapping[str, Callable[[Mapping[str, Any]], MemberEvent]]] = {
    "ConsentChanged": _consent_changed,
    "MemberRelocated": _member_relocated,
    "MemberErased": _member_erased,
    "MemberReleased": _member_released,
}


def write_event(event: SentEvent, catalog: Catalog) -> bytes:
    """Return the framed Avro bytes of a member event as producers send it.

    Its key is the member in ASCII.
    """
    name = type(event).__name__
    fields: dict[str, Any] = {
        "event_id": event.event_id,
        "effective_at": event.effective_at,
        "recorded_at": event.recorded_at,
        "source": event.source,
        "member_id": event.member,
    }
    if isinstance(event, ConsentChanged):
        fields |= {
            "choice": event.choice.value,
            "legal_basis": event.legal_basis,
            "purpose": event.purpose,
            "notice_version": event.notice_version,
            "observed_version": event.observed_version,
            "evidence": event.evidence,
        }
    elif isinstance(event, MemberRelocated):
        fields |= {"age_band": event.age_band.value, "jurisdiction": event.jurisdiction}
    elif isinstance(event, MemberReleased):
        fields |= {"observed_version": event.observed_version}
    return catalog.frame_of(name) + schema(name).encode(fields)
