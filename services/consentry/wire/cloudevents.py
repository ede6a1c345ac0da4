"""Message headers of a member event: CloudEvents in Kafka's binary mode, and W3C trace context.

No decision depends on a header; they are for the tools of those who run the topics. Source:
CloudEvents 1.0.2, Kafka protocol binding 1.0.2, section 3.2; W3C Trace Context, section 3.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from consentry.domain.events import SentEvent

CONTENT_TYPE: Final = b"application/avro"
TRACEPARENT_PATTERN: Final = re.compile(
    r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


@lru_cache(maxsize=1024)
def _constant(kind: str, source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("content-type", CONTENT_TYPE),
        ("ce_specversion", b"1.0"),
        ("ce_type", f"consentry.{kind}".encode()),
        ("ce_source", f"/{quote(source)}".encode()),
    )


def uuid_text(hexadecimal: str) -> str:
    """Return 32 hexadecimal digits as a UUID in a header is written, faster than module uuid.

    It is called once for each event.
    """
    head = f"{hexadecimal[:8]}-{hexadecimal[8:12]}-{hexadecimal[12:16]}"
    return f"{head}-{hexadecimal[16:20]}-{hexadecimal[20:]}"


def event_headers(event: SentEvent, *, traceparent: str | None = None) -> list[tuple[str, bytes]]:
    """Return the CloudEvents headers of a member event's message.

    A `traceparent` that is not well-formed is left out.

    No header names the member: tools show and log headers. `ce_partitionkey` would, and is left
    out; the message's key says the same.
    """
    return with_id(common_headers(event, traceparent=traceparent), uuid_text(event.event_id.hex()))


def common_headers(
    event: SentEvent, *, traceparent: str | None = None
) -> tuple[tuple[str, bytes], ...]:
    """Return the CloudEvents headers that all events of one kind, source and trace share."""
    headers = _constant(type(event).__name__, event.source)
    if traceparent is not None and TRACEPARENT_PATTERN.fullmatch(traceparent):
        return (*headers, ("traceparent", traceparent.encode()))
    return headers


def with_id(common: tuple[tuple[str, bytes], ...], event_id: str) -> list[tuple[str, bytes]]:
    """Return the CloudEvents headers of one event: the common ones, and its id as a UUID."""
    return [*common, ("ce_id", event_id.encode())]
