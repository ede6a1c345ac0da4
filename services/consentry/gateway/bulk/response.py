"""Many events in one request: a line each, a result each, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from fastapi import Response

from consentry.domain.errors import ConsentryError
from consentry.gateway.bulk.lines import LineReader
from consentry.gateway.context import GatewayContext
from consentry.gateway.kafka_submit import OutMessage
from consentry.gateway.tokens import token_of
from consentry.kafka.sender import TopicPosition, Undelivered

LINES_MAX: Final = 10_000
_LINES_AT_ONCE: Final = 250
_SECONDS_AT_ONCE: Final = 0.005
"""So many lines are read, at most for so long, before they are sent and other requests get their
turn.
"""


class InvalidLine(NamedTuple):
    """The result of a line that holds no event.

    Not its exception: with it all that was read would be kept alive.
    """

    result: str


Line = str | InvalidLine
"""The event id of a line, or why it holds no event."""


async def bulk_response(
    context: GatewayContext, reader: LineReader, lines: Sequence[bytes]
) -> Response:
    """Send what can be sent, and answer with a result for each line and a summary."""
    batch = context.submitter.batch()
    found: list[Line] = []
    while len(found) < len(lines):
        await batch.send(_read_some(reader, lines, found))
        await asyncio.sleep(0)
    results, counts, offsets = _results(found, await batch.answers(), reader.warnings)
    for outcome, count in counts.items():
        context.metrics.counter("consentry_gateway_bulk_lines_total", outcome).inc(count)
    token = token_of(context, offsets) if offsets else None
    results.append(_json({"summary": counts, "token": token}))
    return Response("\n".join(results) + "\n", 200, media_type="application/x-ndjson")


def _read_some(reader: LineReader, lines: Sequence[bytes], found: list[Line]) -> list[OutMessage]:
    """Messages of the next lines; adds to what was found in those before."""
    messages: list[OutMessage] = []
    began, until = len(found), monotonic() + _SECONDS_AT_ONCE
    for number in range(began, min(began + _LINES_AT_ONCE, len(lines))):
        try:
            message = reader.read(number, lines[number])
        except ConsentryError as error:
            found.append(InvalidLine(_refusal(number + 1, "invalid", error)))
        else:
            found.append(message.event_id)
            messages.append(message)
        if monotonic() > until:
            break
    return messages


def _results(
    lines: Sequence[Line],
    answers: Sequence[TopicPosition | ConsentryError | None],
    warnings: Mapping[int, Sequence[str]],
) -> tuple[list[str], dict[str, int], dict[int, int]]:
    """A result for each line, how many came to what, and by partition the offset behind the last
    accepted one.
    """
    counts = {"accepted": 0, "invalid": 0, "refused": 0, "unknown": 0}
    offsets: dict[int, int] = {}
    results = []
    of_sent = iter(answers)
    for number, line in enumerate(lines, start=1):
        if isinstance(line, InvalidLine):
            counts["invalid"] += 1
            results.append(line.result)
            continue
        answer, event_id = next(of_sent), line
        if isinstance(answer, TopicPosition):
            counts["accepted"] += 1
            partition, offset = answer
            if offsets.get(partition, 0) <= offset:
                offsets[partition] = offset + 1
            more = f',"warnings":{_json(warnings[number - 1])}' if number - 1 in warnings else ""
            results.append(f'{{"line":{number},"status":"accepted","event_id":"{event_id}"{more}}}')
        elif answer is None or (isinstance(answer, Undelivered) and answer.is_unknown):
            counts["unknown"] += 1
            results.append(
                _json(
                    {
                        "line": number,
                        "status": "unknown",
                        "event_id": event_id,
                        "code": "kafka.unknown",
                    }
                )
            )
        else:
            counts["refused"] += 1
            results.append(_refusal(number, "refused", answer, event_id=event_id))
    return results, counts, offsets


def _refusal(number: int, status: str, error: ConsentryError, **more: Any) -> str:
    return _json(
        {
            "line": number,
            "status": status,
            "code": error.code,
            "detail": error.message,
            "fix": error.fix,
            **more,
        }
    )


def _json(data: Mapping[str, Any] | Sequence[str]) -> str:
    return json.dumps(data, separators=(",", ":"))
