"""Many events in one request: a line each, a result each, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastapi import Response

from consentry.domain.errors import ConsentryError
from consentry.domain.events import SentEvent
from consentry.gateway.access import Principal
from consentry.gateway.bodies import read_model
from consentry.gateway.conversions import (
    EventIn,
    check_ahead,
    check_purpose,
    check_repeatable,
    to_event,
    with_observed,
)
from consentry.gateway.idempotency import Attempt
from consentry.gateway.models import ConsentChangeIn, ErasureIn, RelocationIn
from consentry.gateway.parts import Parts
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem
from consentry.wire.envelopes import uuid_text
from consentry.wire.sending import Place, Undelivered

LINES_MAX: Final = 10_000
_KINDS: Final[Mapping[str, type[EventIn]]] = {
    "consent-change": ConsentChangeIn,
    "relocation": RelocationIn,
    "erasure": ErasureIn,
}


class Line(NamedTuple):
    """One line: the event it holds, or why it holds none."""

    event: SentEvent | None
    problem: ConsentryError | None = None


def parse_lines(parts: Parts, caller: Principal, lines: Sequence[bytes], attempt: Attempt) -> list[Line]:
    """The event of each line. A line without an id gets one that follows from the request's and its own number."""
    found = []
    base = bytes.fromhex(attempt.event_id)
    for number, text in enumerate(lines):
        try:
            data = _parse(text)
            if isinstance(data, ConsentChangeIn):
                data = with_observed(data, None)
                check_purpose(parts, data)
            check_repeatable(data)
            check_ahead(data, attempt.accepted_at)
            event_id = data.event_id.bytes if data.event_id is not None else _event_id(base, number)
            found.append(Line(to_event(data, caller.subject, event_id, attempt.accepted_at)))
        except ConsentryError as error:
            found.append(Line(None, error))
    return found


def _parse(text: bytes) -> EventIn:
    if b"kind" not in text:
        return read_model(ConsentChangeIn, text)
    data = parse_json(text)
    kind = data.pop("kind", "consent-change") if isinstance(data, dict) else "consent-change"
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise Problem(
            422, "'kind' is none of ours.", code="input.field", fix=f"use one of {', '.join(_KINDS)}", field="kind"
        )
    return read_model(model, json.dumps(data).encode())


def _event_id(base: bytes, number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(4, "big"), key=base, digest_size=16).digest()


async def bulk_answer(parts: Parts, lines: Sequence[Line], *, traceparent: str | None) -> Response:
    """Send what can be sent, and answer with a result for each line and a summary."""
    events = [line.event for line in lines if line.event is not None]
    answers = iter(await parts.submitter.submit_all(events, traceparent=traceparent))
    counts = {"accepted": 0, "invalid": 0, "refused": 0, "unknown": 0}
    offsets: dict[int, int] = {}
    results = []
    for number, (event, problem) in enumerate(lines, start=1):
        if event is None:
            assert problem is not None
            counts["invalid"] += 1
            results.append(_refusal(number, "invalid", problem))
            continue
        answer = next(answers)
        event_id = uuid_text(event.event_id)
        if isinstance(answer, Place):
            counts["accepted"] += 1
            partition, offset = answer
            if offsets.get(partition, 0) <= offset:
                offsets[partition] = offset + 1
            results.append(f'{{"line":{number},"status":"accepted","event_id":"{event_id}"}}')
        elif answer is None or (isinstance(answer, Undelivered) and answer.is_unknown):
            counts["unknown"] += 1
            results.append(_json({"line": number, "status": "unknown", "event_id": event_id, "code": "kafka.unknown"}))
        else:
            counts["refused"] += 1
            results.append(_refusal(number, "refused", answer, event_id=event_id))
    for outcome, count in counts.items():
        parts.metrics.counter("consentry_gateway_bulk_lines_total", outcome).inc(count)
    token = parts.token(offsets) if offsets else None
    results.append(_json({"summary": counts, "token": token}))
    return Response("\n".join(results) + "\n", 200, media_type="application/x-ndjson")


def _refusal(number: int, status: str, error: ConsentryError, **more: Any) -> str:
    return _json(
        {"line": number, "status": status, "code": error.code, "detail": error.message, "fix": error.fix, **more}
    )


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
