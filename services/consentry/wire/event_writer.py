"""Member events to bytes, for those who send many: the very bytes of `events.write_event`, in a
fraction of the time.

What repeats from event to event (choice, basis, purpose, notice, source, place) was encoded once by
`write_event` and checked by the reader's own rules, and is remembered; identity, times and member
are written by hand. Whatever looks unusual takes the strict way, which writes it or says why nobody
would read it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

from consentry.domain.errors import InvalidInput, UndecodableEvent
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
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

_FORMS_MAX: Final = 8192
_UPPERS_MAX: Final = 4096
_EVENT_ID_LENGTH: Final = 16
_ID_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_-"
_KEY_MAX: Final = 64
_LENGTHS: Final = [b"", *(bytes((size << 1,)) for size in range(1, _KEY_MAX)), b"\x80\x01"]
"""By its size, the length that Avro writes before a member id."""
_ENUMS_AT: Final = FRAME_LENGTH + _EVENT_ID_LENGTH
_ENUMS: Final[dict[type, int]] = {ConsentChanged: 2, MemberRelocated: 1, MemberErased: 0}
"""How many one-byte enums stand before the two instants.

What only operators send is always written strictly.
"""
_INSTANTS_LENGTH: Final = 16
_BOTH_NULL: Final = b"\x00\x00"

EventTemplate = Callable[[bytes, bytes, int, int], bytes | None]
"""The framed bytes of an event from its identity, member, `effective_at` and `recorded_at`
(microseconds).

None where one of the four is not as a reader takes it; `EventWriter.write` says what is wrong with
it.
"""


class EventWriter:
    """Writes events, framed for the ids of one catalog. Threads may share it.

    It checks all that a reader checks, so that no bytes come out which would hold their member: a
    caller need not check anything before.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._frames: dict[type, bytes] = {kind: catalog.frame_of(kind.__name__) for kind in _ENUMS}
        self._forms: dict[Any, tuple[bytes, bytes]] = {}
        self._uppers: dict[int, bytes] = {}
        self._pairs = _pairs()

    def write(self, event: SentEvent) -> bytes:
        """The framed bytes of the event; the key is `event.member` in ASCII.

        Raises InvalidInput for an event that no reader would take; its code ends in what is wrong
        with it.
        """
        try:
            return self._write_quickly(event) or self._write_strictly(event)
        except (AttributeError, TypeError, UnicodeEncodeError):
            return self._write_strictly(
                event
            )  # which says what is wrong with a value of another type

    def template(self, event: SentEvent, value: bytes) -> EventTemplate:
        """Return what writes events that differ from this one only in identity, member and times.

        It is the cheapest way to write many.

        `value` is what `write` made of this event.
        """
        enums, texts = _cut(value, event)
        return partial(self._compose, value[:FRAME_LENGTH], enums, texts)

    def _write_quickly(self, event: SentEvent) -> bytes | None:
        kind = type(event)
        form = self._forms.get(_form_key(event))
        if form is None or kind not in self._frames:
            return None
        enums, texts = form
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
        """The parts in the order of the schema;

        None where identity, member or an instant is not as readers take it.
        """
        if (
            len(event_id) != _EVENT_ID_LENGTH
            or not 0 < len(member) <= _KEY_MAX
            or member.translate(None, _ID_CHARACTERS)
            or not INSTANT_MIN <= effective_at < INSTANT_MAX
            or not INSTANT_MIN <= recorded_at < INSTANT_MAX
        ):
            return None
        effective = self._instant(effective_at)
        recorded = effective if recorded_at == effective_at else self._instant(recorded_at)
        return b"".join(
            (frame, event_id, enums, effective, recorded, texts, _LENGTHS[len(member)], member)
        )

    def _instant(self, micros: int) -> bytes:
        """Eight bytes of a zig-zag varint, for an instant that takes as many.

        The upper half changes every 134 s.
        """
        upper = micros >> 27
        four = self._uppers.get(upper)
        if four is None:
            if len(self._uppers) >= _UPPERS_MAX:
                self._uppers.clear()
            four = bytes(
                (
                    upper & 0x7F | 0x80,
                    upper >> 7 & 0x7F | 0x80,
                    upper >> 14 & 0x7F | 0x80,
                    upper >> 21,
                )
            )
            self._uppers[upper] = four
        return self._pairs[micros << 1 & 0x3FFF] + self._pairs[micros >> 13 & 0x3FFF] + four

    @staticmethod
    def _optional(observed_version: int | None, evidence: str | None) -> bytes | None:
        """Both unions of a ConsentChanged; None where the strict way has to judge them."""
        if evidence is None:
            if observed_version is None:
                return _BOTH_NULL
            last = b"\x00"
        else:
            text = evidence.encode(errors="replace")
            if len(text) > STRING_BYTES_MAX or not evidence.isprintable():
                return None
            last = b"\x02" + _varint(len(text) << 1) + text
        if observed_version is None:
            return b"\x00" + last
        if not 0 <= observed_version < 1 << 63:
            return None
        return b"\x02" + _varint(observed_version << 1) + last

    def _write_strictly(self, event: SentEvent) -> bytes:
        """Encode by the schema and check by the reader's rules; remember what other events will
        have too.
        """
        try:
            value = write_event(event, self._catalog)
            check_fields(_fields(event), event.member.encode())
        except UndecodableEvent as error:
            raise _refusal(event, error.error_class, error.message) from error
        except Exception as error:
            # fastavro has no error class of its own: ValueError, TypeError and struct.error were
            # seen.
            raise _refusal(
                event, "avro", f"It does not fit the schema ({type(error).__name__})."
            ) from error
        if type(event) in _ENUMS:
            self._remember(event, value)
        return value

    def _remember(self, event: SentEvent, value: bytes) -> None:
        """Cut out of an event's bytes what others will have too."""
        enums, texts = _cut(value, event)
        if isinstance(event, ConsentChanged):
            optional = self._optional(event.observed_version, event.evidence)
            assert optional is not None  # the reader's rules are the stricter ones
            texts = texts[: -len(optional)]
        if len(self._forms) >= _FORMS_MAX:
            self._forms.clear()
        self._forms[_form_key(event)] = (enums, texts)


def _cut(value: bytes, event: SentEvent) -> tuple[bytes, bytes]:
    """Of an event's bytes the enums, and what stands between the instants and the member."""
    instants_at = _ENUMS_AT + _ENUMS.get(type(event), 0)
    member_at = len(value) - len(event.member) - len(_LENGTHS[len(event.member)])
    return value[_ENUMS_AT:instants_at], value[instants_at + _INSTANTS_LENGTH : member_at]


def _form_key(event: SentEvent) -> object:
    """What decides the bytes that repeat."""
    kind = type(event)
    if kind is ConsentChanged:
        return (event.choice, event.legal_basis, event.purpose, event.notice_version, event.source)  # type: ignore[union-attr] # told by kind
    if kind is MemberRelocated:
        return (event.age_band, event.jurisdiction, event.source)  # type: ignore[union-attr] # told by kind
    return event.source


def _fields(event: SentEvent) -> dict[str, Any]:
    """The event by the schema's names."""
    names = (field["name"] for field in schema(type(event).__name__).parsed["fields"])
    return {name: event.member if name == "member_id" else getattr(event, name) for name in names}


def _refusal(event: SentEvent, word: str, problem: str) -> InvalidInput:
    return InvalidInput(
        f"This {type(event).__name__} would hold its member, as nobody could read it: {problem}",
        code=f"event.{word}",
        fix="correct the event; docs/producers.md tells what each field may be",
    )


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@cache
def _pairs() -> list[bytes]:
    """By fourteen bits, two bytes of a varint that goes on.

    Half a megabyte, made when first needed.
    """
    return [bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(1 << 14)]
