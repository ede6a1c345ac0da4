"""Member events to Avro bytes for producers that send many: as `events.write_event`, faster.

The bytes of an event fall into parts (see event_batches.py for one event taken apart):

    frame  event_id  enums  effective_at recorded_at  texts  length member_id

What repeats from event to event (the enums; in the texts the purpose, notice, source and place) was
encoded once by `write_event`, checked by the reader's own rules, and cut out of its bytes. The
identity, the times and the member are written by hand. An event that looks unusual goes through
`write_event`, which writes it or says why nobody would read it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from consentry.domain.errors import InvalidInput, UndecodableEvent
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.wire.avro_bytes import ID_CHARACTERS, LONGS, InstantWriter, long_bytes
from consentry.wire.catalog import Catalog
from consentry.wire.events import (
    INSTANT_MAX,
    INSTANT_MIN,
    STRING_BYTES_MAX,
    check_fields,
    write_event,
)
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.schemas import schema

_PARTS_MAX: Final = 8192
"""Events whose repeating parts are remembered."""
_EVENT_ID_LENGTH: Final = 16
_KEY_MAX: Final = 64
_ENUMS_AT: Final = FRAME_LENGTH + _EVENT_ID_LENGTH
_ENUMS: Final[dict[type, int]] = {ConsentChanged: 2, MemberRelocated: 1, MemberErased: 0}
"""The number of one-byte enums that stand before the two instants.

Events that only operators send are always written by `write_event`.
"""
_INSTANTS_LENGTH: Final = 16
_BOTH_NULL: Final = b"\x00\x00"
"""Two unions of which each is at its branch 0, null."""

EventTemplate = Callable[[bytes, bytes, int, int], bytes | None]
"""Takes identity, member, `effective_at` and `recorded_at` (microseconds); returns framed bytes.

None where one of the four is not as a reader takes it; `EventWriter.write` says what is wrong with
it.
"""


class EventWriter:
    """Writes member events as Avro bytes, framed for the schema ids of one catalog.

    Threads may share it.

    It checks all that a reader checks, so that no bytes come out for which a reader would
    quarantine the member: a caller need not check anything before.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._frames: dict[type, bytes] = {kind: catalog.frame_of(kind.__name__) for kind in _ENUMS}
        self._parts: dict[Any, tuple[bytes, bytes]] = {}
        """Enums and texts, by what decides them."""
        self._instant = InstantWriter().write

    def write(self, event: SentEvent) -> bytes:
        """Return the framed Avro bytes of a member event; its key is `event.member` in ASCII.

        Raises InvalidInput for an event that no reader would take; its code ends in the class of
        the error.
        """
        try:
            return self._write_quickly(event) or self._write_strictly(event)
        except (AttributeError, TypeError, UnicodeEncodeError):
            return self._write_strictly(event)  # names what is wrong with a value of another type

    def template(self, event: SentEvent, value: bytes) -> EventTemplate:
        """Return a function that writes bytes of events like this one: cheapest for many.

        They differ from `event` only in identity, member and times; `value` is what `write`
        returned for it.
        """
        enums, texts = _cut(value, event)
        return partial(self._compose, value[:FRAME_LENGTH], enums, texts)

    def _write_quickly(self, event: SentEvent) -> bytes | None:
        kind = type(event)
        parts = self._parts.get(_parts_key(event))
        if parts is None or kind not in self._frames:
            return None
        enums, texts = parts
        if kind is ConsentChanged:
            optional = self._optional(event.observed_version, event.evidence)  # type: ignore[union-attr] # told by kind
            if optional is None:
                return None
            texts += optional
        member = event.member.encode()
        return self._compose(
            self._frames[kind],
            enums,
            texts,
            event.event_id,
            member,
            event.effective_at,
            event.recorded_at,
        )

    def _compose(
        self,
        frame: bytes,
        enums: bytes,
        texts: bytes,
        event_id: bytes,
        member: bytes,
        effective_at: int,
        recorded_at: int,
    ) -> bytes | None:
        """Return the parts in the order of the schema.

        None where identity, member or an instant is not as readers take it.
        """
        if (
            len(event_id) != _EVENT_ID_LENGTH
            or not 0 < len(member) <= _KEY_MAX
            or member.translate(None, ID_CHARACTERS)
            or not INSTANT_MIN <= effective_at < INSTANT_MAX
            or not INSTANT_MIN <= recorded_at < INSTANT_MAX
        ):
            return None
        effective = self._instant(effective_at)
        recorded = effective if recorded_at == effective_at else self._instant(recorded_at)
        return b"".join(
            (frame, event_id, enums, effective, recorded, texts, LONGS[len(member)], member)
        )

    @staticmethod
    def _optional(observed_version: int | None, evidence: str | None) -> bytes | None:
        """Return both unions of a ConsentChanged; None where only `write_event` may decide."""
        if evidence is None:
            if observed_version is None:
                return _BOTH_NULL
            last = b"\x00"
        else:
            text = evidence.encode(errors="replace")
            if len(text) > STRING_BYTES_MAX or not evidence.isprintable():
                return None
            last = b"\x02" + long_bytes(len(text)) + text
        if observed_version is None:
            return b"\x00" + last
        if not 0 <= observed_version < 1 << 63:
            return None
        return b"\x02" + long_bytes(observed_version) + last

    def _write_strictly(self, event: SentEvent) -> bytes:
        """Encode by the schema, check by the reader's rules, and remember the parts that repeat."""
        try:
            value = write_event(event, self._catalog)
            check_fields(_fields(event), event.member.encode())
        except UndecodableEvent as error:
            raise _refusal(event, error.error_class, error.message) from error
        except Exception as error:
            # fastavro has no error class of its own: it raises ValueError, TypeError, struct.error.
            raise _refusal(
                event, "avro", f"It does not fit the schema ({type(error).__name__})."
            ) from error
        if type(event) in _ENUMS:
            self._remember(event, value)
        return value

    def _remember(self, event: SentEvent, value: bytes) -> None:
        """Remember the parts of an event's bytes that other events will have too."""
        enums, texts = _cut(value, event)
        if isinstance(event, ConsentChanged):
            optional = self._optional(event.observed_version, event.evidence)
            assert optional is not None  # the reader's rules are the stricter ones
            texts = texts[: -len(optional)]
        if len(self._parts) >= _PARTS_MAX:
            self._parts.clear()
        self._parts[_parts_key(event)] = (enums, texts)


def _cut(value: bytes, event: SentEvent) -> tuple[bytes, bytes]:
    """Return the enums of an event's bytes, and the texts between the instants and the member."""
    instants_at = _ENUMS_AT + _ENUMS.get(type(event), 0)
    member_at = len(value) - len(event.member) - len(LONGS[len(event.member)])
    return value[_ENUMS_AT:instants_at], value[instants_at + _INSTANTS_LENGTH : member_at]


def _parts_key(event: SentEvent) -> object:
    """Return what decides the bytes that repeat."""
    kind = type(event)
    if kind is ConsentChanged:
        return (event.choice, event.legal_basis, event.purpose, event.notice_version, event.source)  # type: ignore[union-attr] # told by kind
    if kind is MemberRelocated:
        return (event.age_band, event.jurisdiction, event.source)  # type: ignore[union-attr] # told by kind
    return event.source


def _fields(event: SentEvent) -> dict[str, Any]:
    """Return the fields of the event by the schema's names."""
    fields: dict[str, Any] = {}
    for field in schema(type(event).__name__).parsed["fields"]:
        name = field["name"]
        fields[name] = event.member if name == "member_id" else getattr(event, name)
    return fields


def _refusal(event: SentEvent, word: str, problem: str) -> InvalidInput:
    return InvalidInput(
        f"Nobody could read this {type(event).__name__}, and its member would be quarantined: "
        f"{problem}",
        code=f"event.{word}",
        fix="correct the event; docs/producers.md tells what each field may be",
    )
