"""From the lines of a bulk request to messages.

Lines of one request look alike. What is left of a line without its member, identity and time is its
form: the first of each form is read as a single request would be, and those after it only have the
three values put in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from consentry.domain.events import SentEvent
from consentry.gateway.access import Principal
from consentry.gateway.context import GatewayContext
from consentry.gateway.event_checks import (
    AHEAD_MAX,
    EventIn,
    binds_at_once,
    check_ahead,
    check_purpose,
    check_repeatable,
    to_event,
    with_observed,
)
from consentry.gateway.http.bodies import BODY_BYTES_MAX, read_model
from consentry.gateway.http.models import ConsentChangeIn, ErasureIn, RelocationIn, instant_of
from consentry.gateway.idempotency import Attempt
from consentry.gateway.kafka_submit import OutMessage
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem
from consentry.wire.cloudevents import common_headers, event_headers, uuid_text, with_id
from consentry.wire.event_writer import EventTemplate

_FORMS_MAX: Final = 256
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
    """What lines of one form have in common, and where in the split line each value stands (0: it
    has none).
    """

    stencil: EventTemplate
    headers: tuple[tuple[str, bytes], ...]
    warnings: tuple[str, ...]
    binds_at_once: bool
    member_at: int
    event_id_at: int
    effective_at_at: int


class LineReader:
    """Reads the lines of one request.

    A line without an id gets one that follows from the request's and its number.
    """

    def __init__(
        self,
        context: GatewayContext,
        caller: Principal,
        attempt: Attempt,
        count: int,
        traceparent: str | None,
    ) -> None:
        self._context = context
        self._caller = caller
        self._now = attempt.accepted_at
        self._traceparent = traceparent
        self._ids = hashlib.shake_128(bytes.fromhex(attempt.event_id)).hexdigest(16 * count)
        self._forms: dict[tuple[bytes, ...], _LineTemplate] = {}
        self.warnings: dict[int, tuple[str, ...]] = {}
        """By the line's number, what was taken and may still not be what was meant."""

    def read(self, number: int, text: bytes) -> OutMessage:
        """The message of one line; `number` counts from 0.

        Raises ConsentryError for a line that is not taken.
        """
        if len(text) > BODY_BYTES_MAX:
            raise Problem(
                413,
                f"The line has more than {BODY_BYTES_MAX} bytes.",
                code="input.too_large",
                fix="put less into it",
            )
        pieces = _VARYING.split(text)
        key = tuple(pieces[::3] + pieces[1::3])
        form = self._forms.get(key)
        if form is not None:
            message = self._fill(form, number, pieces)
            if message is not None:
                return message
        return self._read_strictly(number, text, key, pieces)

    def _read_strictly(
        self, number: int, text: bytes, key: tuple[bytes, ...], pieces: list[bytes]
    ) -> OutMessage:
        data, warnings = self._parse(text)
        if warnings:
            self.warnings[number] = warnings
        event_id = bytes.fromhex(self._id(number)) if data.event_id is None else data.event_id.bytes
        event = to_event(data, self._caller.subject, event_id, self._now)
        writer = self._context.submitter.writer
        value = writer.write(event)
        if (
            len(self._forms) < _FORMS_MAX
        ):  # many forms are no forms: each line has a text of its own
            places = {name: 3 * place + 2 for place, name in enumerate(pieces[1::3])}
            if _holds_its_values(places, data):
                self._forms[key] = self._form(event, value, data, warnings, places)
        headers = event_headers(event, traceparent=self._traceparent)
        return OutMessage(uuid_text(event_id.hex()), event.member.encode(), value, headers)

    def _fill(self, form: _LineTemplate, number: int, pieces: list[bytes]) -> OutMessage | None:
        """The message of a line of a known form;

        None where a value is not one that can be put in as it stands.
        """
        now = effective_at = self._now
        if form.effective_at_at:
            try:
                effective_at = instant_of(pieces[form.effective_at_at].decode())
            except ValueError:
                return None
            if form.binds_at_once:
                if effective_at - now > AHEAD_MAX:
                    return None
                effective_at = min(effective_at, now)
        if form.event_id_at:
            given = pieces[form.event_id_at]
            if _UUID.fullmatch(given) is None:
                return None
            name = given.decode().lower()
            event_id = bytes.fromhex(name.replace("-", ""))
        else:
            hexadecimal = self._id(number)
            name, event_id = uuid_text(hexadecimal), bytes.fromhex(hexadecimal)
        member = pieces[form.member_at]
        value = form.stencil(event_id, member, effective_at, now)
        if value is None:
            return None
        if form.warnings:
            self.warnings[number] = form.warnings
        # The constructor of a NamedTuple is a Python function; this is what it does.
        return _new_tuple(OutMessage, (name, member, value, with_id(form.headers, name)))

    def _parse(self, text: bytes) -> tuple[EventIn, tuple[str, ...]]:
        """What the line says, and warnings."""
        data = _parse(text)
        warnings: tuple[str, ...] = ()
        if isinstance(data, ConsentChangeIn):
            data = with_observed(data, None)
            warnings = check_purpose(self._context, data)
        check_repeatable(data)
        check_ahead(data, self._now)
        return data, warnings

    def _id(self, number: int) -> str:
        return self._ids[32 * number : 32 * number + 32]

    def _form(
        self,
        event: SentEvent,
        value: bytes,
        data: EventIn,
        warnings: tuple[str, ...],
        places: Mapping[bytes, int],
    ) -> _LineTemplate:
        return _LineTemplate(
            self._context.submitter.writer.stencil(event, value),
            common_headers(event, traceparent=self._traceparent),
            warnings,
            binds_at_once(data),
            places[b"member_id"],
            places.get(b"event_id", 0),
            places.get(b"effective_at", 0),
        )


def _holds_its_values(places: Mapping[bytes, int], data: EventIn) -> bool:
    """Whether each value that other lines have differently was split off, however it was spelt."""
    return (
        b"member_id" in places
        and (b"event_id" in places) == (data.event_id is not None)
        and (b"effective_at" in places) == (data.effective_at is not None)
    )


def _parse(text: bytes) -> EventIn:
    if not text.strip():
        raise Problem(400, "The line is empty.", code="input.json", fix="leave it out")
    if b"kind" not in text:
        return read_model(ConsentChangeIn, text, parse=_parse_line)
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
    return read_model(model, json.dumps(data).encode(), parse=_parse_line)


def _parse_line(text: bytes) -> Any:
    return parse_json(
        text,
        what="The line",
        fix="send one JSON object a line; curl keeps lines with --data-binary",
    )
