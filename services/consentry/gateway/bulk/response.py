"""The gateway's response to a bulk request: a result for each of its lines, and a summary."""

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
_CHUNK_LINES: Final = 250
_CHUNK_SECONDS: Final = 0.005
"""At most this many lines are read, for at most this time, before they are sent and other requests
get their turn.
"""


class InvalidLine(NamedTuple):
    """The gateway's result for a line of a bulk request that holds no event.

    Not its exception: with it all that was read would be kept alive.
    """

    result: str


Line = str | InvalidLine
"""The event id of a line, or the result of a line that holds no event."""


class BulkResults(NamedTuple):
    """The result of each line of a bulk request to the gateway, as JSON."""

    results: list[str]
    counts: dict[str, int]
    """The number of lines by status."""
    offsets: dict[int, int]
    """By partition, the offset behind the last accepted event."""


async def bulk_response(
    context: GatewayContext, reader: LineReader, lines: Sequence[bytes]
) -> Response:
    """Send the events of a bulk request to the gateway; respond with a result for each line.

    A summary follows the results.
    """
    batch = context.submitter.batch()
    read_lines: list[Line] = []
    while len(read_lines) < len(lines):
        await batch.send(_read_chunk(reader, lines, read_lines))
        await asyncio.sleep(0)
    outcomes = await batch.outcomes()
    results, counts, offsets = _results(read_lines, outcomes, reader.warnings)
    for status, count in counts.items():
        context.metrics.counter("consentry_gateway_bulk_lines_total", status).inc(count)
    token = token_of(context, offsets) if offsets else None
    results.append(_json({"summary": counts, "token": token}))
    return Response("\n".join(results) + "\n", 200, media_type="application/x-ndjson")


def _read_chunk(
    reader: LineReader, lines: Sequence[bytes], read_lines: list[Line]
) -> list[OutMessage]:
    """Return the messages of the next lines, and add those lines to `read_lines`."""
    messages: list[OutMessage] = []
    start, until = len(read_lines), monotonic() + _CHUNK_SECONDS
    for number in range(start, min(start + _CHUNK_LINES, len(lines))):
        try:
            message = reader.read(number, lines[number])
        except ConsentryError as error:
            read_lines.append(InvalidLine(_refusal(number + 1, "invalid", error)))
        else:
            read_lines.append(message.event_id)
            messages.append(message)
        if monotonic() > until:
            break
    return messages


def _results(
    lines: Sequence[Line],
    outcomes: Sequence[TopicPosition | ConsentryError | None],
    warnings: Mapping[int, Sequence[str]],
) -> BulkResults:
    """Return the results of all lines; `outcomes` has one for each line that holds an event."""
    counts = {"accepted": 0, "invalid": 0, "refused": 0, "unknown": 0}
    offsets: dict[int, int] = {}
    results: list[str] = []
    remaining = iter(outcomes)
    for number, line in enumerate(lines, start=1):
        if isinstance(line, InvalidLine):
            counts["invalid"] += 1
            results.append(line.result)
            continue
        outcome, event_id = next(remaining), line
        if isinstance(outcome, TopicPosition):
            counts["accepted"] += 1
            partition, offset = outcome
            if offsets.get(partition, 0) <= offset:
                offsets[partition] = offset + 1
            more = ""
            if number - 1 in warnings:
                more = f',"warnings":{_json(warnings[number - 1])}'
            results.append(f'{{"line":{number},"status":"accepted","event_id":"{event_id}"{more}}}')
        elif outcome is None or (isinstance(outcome, Undelivered) and outcome.is_unknown):
            counts["unknown"] += 1
            unknown = {"line": number, "status": "unknown", "event_id": event_id}
            results.append(_json({**unknown, "code": "kafka.unknown"}))
        else:
            counts["refused"] += 1
            results.append(_refusal(number, "refused", outcome, event_id=event_id))
    return BulkResults(results, counts, offsets)


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
