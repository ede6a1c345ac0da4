"""An HTTP request to the gateway that was let in, as the code behind the routes takes it."""

from __future__ import annotations

from dataclasses import dataclass

from consentry.gateway.access import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizedRequest:
    """An HTTP request to the gateway that was let in: its caller, whole body and headers.

    `path` is the one that was called, with its names of pauses and messages.
    """

    caller: Principal
    method: str
    path: str
    body: bytes
    idempotency_key: str | None = None
    if_match: str | None = None
    traceparent: str | None = None
