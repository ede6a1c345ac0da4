"""The lines of a bulk request to the gateway, and the Kafka messages that are made of them.

Lines of one request look alike. What is left of a line without its member, identity and time is its
shape: the first line of each shape is read as a single request would be, and makes a template; the
lines after it only have their three values put into the template.

This is a hot path: it runs once for each of up to 10,000 lines, on the event loop.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from consentry.domain.events import SentEvent
from consentry.gateway.context import GatewayContext
from consentry.gateway.event_checks import AHEAD_MAX, EventIn, MemberEventDraft, check_event
from consentry.gateway.http.bodies import BODY_BYTES_MAX, parse_model
from consentry.gateway.http.models import ConsentChangeIn, ErasureIn, RelocationIn, instant_of
from consentry.gateway.idempotency import Attempt
from consentry.gateway.kafka_submit import OutMessage
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem
from consentry.wire.cloudevents import common_headers, event_headers, uuid_text, with_id
from consentry.wire.event_writer import EventTemplate

_TEMPLATES_MAX: Final = 256
_KINDS: Final[Mapping[str, type[EventIn]]] = {
    "consent-change": ConsentChangeIn,
    "relocation": RelocationIn,
    "erasure": ErasureIn,
}
_VARYING: Final = re.compile(rb'"(member_id|event_id|effective_at)": ?"([A-Za-z0-9:_.+-]{1,64})"')
"""Splits a line into text, name, value, text, name, value, ... text.

It can only match members of the line's object: within a text of JSON each quote has a backslash
before it, and no field holds an object.
"""
_UUID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_new_tuple: Final = tuple.__new__


class _LineTemplate(NamedTuple):
    """The common part of lines of one shape, and the index of each value in the split line.

    An index of 0 means that the lines do not have the value.
    """

    write: EventTemplate
    headers: tuple[tuple[str, bytes], ...]
    warnings: tuple[str, ...]
    binds_at_once: bool
    member_index: int
    event_id_index: int
    effective_at_index: int


class LineReader:
    """Reads the lines of one bulk request to the gateway as messages for Kafka.

    A line without an id gets one that follows from the request's id and the line's number.

    The line `{"member_id": "m:1", "choice": "OPT_OUT", "purpose": "ads"}` is split into the pieces
    `{`, `member_id`, `m:1`, `, "choice": "OPT_OUT", "purpose": "ads"}`. Its shape is the texts and
    then the names: (`{`, `, "choice": …}`, `member_id`). The member of every later line of this
    shape is piece 2.
    """

    def __init__(
        self,
        context: GatewayContext,
        attempt: Attempt,
        *,
        source: str,
        count: int,
        traceparent: str | None,
    ) -> None:
        self._context = context
        self._source = source
        self._now = attempt.accepted_at
        self._traceparent = traceparent
        self._ids = hashlib.shake_128(bytes.fromhex(attempt.event_id)).hexdigest(16 * count)
        self._templates: dict[tuple[bytes, ...], _LineTemplate] = {}
        self.warnings: dict[int, tuple[str, ...]] = {}
        """By the line's number, what was accepted and may still not be what was meant."""

    def read(self, number: int, text: bytes) -> OutMessage:
        """Return the message of one line of a bulk request; `number` counts from 0.

        Raises ConsentryError for a line that holds no event.
        """
        if len(text) > BODY_BYTES_MAX:
            raise Problem(
                413,
                f"The line has more than {BODY_BYTES_MAX} bytes.",
                code="input.too_large",
                fix="put less into it",
            )
        pieces = _VARYING.split(text)
        shape = tuple(pieces[::3] + pieces[1::3])
        template = self._templates.get(shape)
        if template is not None:
            message = self._fill(template, number, pieces)
            if message is not None:
                return message
        return self._read_strictly(number, text, shape, pieces)

    def _fill(self, template: _LineTemplate, number: int, pieces: list[bytes]) -> OutMessage | None:
        """Return the message of a line of a known shape.

        None where a value is not one that can be put in as it stands.
        """
        now = effective_at = self._now
        if template.effective_at_index:
            try:
                effective_at = instant_of(pieces[template.effective_at_index].decode())
            except ValueError:
                return None
            if template.binds_at_once:
                if effective_at - now > AHEAD_MAX:
                    return None
                effective_at = min(effective_at, now)
        if template.event_id_index:
            given_id = pieces[template.event_id_index]
            if _UUID.fullmatch(given_id) is None:
                return None
            name = given_id.decode().lower()
            event_id = bytes.fromhex(name.replace("-", ""))
        else:
            digits = self._id(number)
            name, event_id = uuid_text(digits), bytes.fromhex(digits)
        member = pieces[template.member_index]
        value = template.write(event_id, member, effective_at, now)
        if value is None:
            return None
        if template.warnings:
            self.warnings[number] = template.warnings
        # The constructor of a NamedTuple is a Python function; this is what it does.
        return _new_tuple(OutMessage, (name, member, value, with_id(template.headers, name)))

    def _read_strictly(
        self, number: int, text: bytes, shape: tuple[bytes, ...], pieces: list[bytes]
    ) -> OutMessage:
        """Return the message of a line as a single request would make it, and keep its template."""
        draft = check_event(
            self._context, _parse(text), source=self._source, if_match=None, now=self._now
        )
        if draft.warnings:
            self.warnings[number] = draft.warnings
        given_id = draft.event_id
        event_id = bytes.fromhex(self._id(number)) if given_id is None else given_id.bytes
        event = draft.event(event_id, self._now)
        value = self._context.submitter.writer.write(event)
        # Beyond this many shapes the lines are not alike: each has a text of its own.
        if len(self._templates) < _TEMPLATES_MAX:
            indexes = _value_indexes(pieces)
            if _holds_its_values(indexes, draft.fields):
                self._templates[shape] = self._template(event, value, draft, indexes)
        headers = event_headers(event, traceparent=self._traceparent)
        return OutMessage(uuid_text(event_id.hex()), event.member.encode(), value, headers)

    def _id(self, number: int) -> str:
        return self._ids[32 * number : 32 * number + 32]

    def _template(
        self, event: SentEvent, value: bytes, draft: MemberEventDraft, indexes: Mapping[bytes, int]
    ) -> _LineTemplate:
        return _LineTemplate(
            self._context.submitter.writer.template(event, value),
            common_headers(event, traceparent=self._traceparent),
            draft.warnings,
            draft.binds_at_once,
            indexes[b"member_id"],
            indexes.get(b"event_id", 0),
            indexes.get(b"effective_at", 0),
        )


def _value_indexes(pieces: list[bytes]) -> dict[bytes, int]:
    """Return the index of each value in a split line, by its name.

    The pieces are text, name, value, text, name, value, ...: the values have indexes 2, 5, 8.
    """
    return {name: 3 * count + 2 for count, name in enumerate(pieces[1::3])}


def _holds_its_values(indexes: Mapping[bytes, int], fields: EventIn) -> bool:
    """Return whether each value that differs between lines was split off, however it was spelt."""
    return (
        b"member_id" in indexes
        and (b"event_id" in indexes) == (fields.event_id is not None)
        and (b"effective_at" in indexes) == (fields.effective_at is not None)
    )


def _parse(text: bytes) -> EventIn:
    if not text.strip():
        raise Problem(400, "The line is empty.", code="input.json", fix="leave it out")
    if b"kind" not in text:
        return parse_model(ConsentChangeIn, text, parse=_parse_line)
    data = _parse_line(text)
    kind = data.pop("kind", "consent-change") if isinstance(data, dict) else "consent-change"
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise Problem(
            422,
            "'kind' is none of ours.",
            code="input.field",
            fix=f"use one of {', '.join(_KINDS)}",
            field="kind",
        )
    return parse_model(model, json.dumps(data).encode(), parse=_parse_line)


def _parse_line(text: bytes) -> Any:
    return parse_json(
        text,
        what="The line",
        fix="send one JSON object a line; curl keeps lines with --data-binary",
    )
