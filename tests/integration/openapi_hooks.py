"""How Schemathesis writes and reads JSON lines; named to it by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def written(_context: Any, value: Any) -> bytes:
    """What is generated, as a body: text as it is, anything else as one line."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


@schemathesis.deserializer("application/x-ndjson")
def read(_context: Any, response: Any) -> Any:
    """Its first line, after each has been read: the schema is that of one line."""
    first, *_ = [json.loads(line) for line in response.content.splitlines()]
    return first
