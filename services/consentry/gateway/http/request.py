"""A request whose caller may make it, as the rooms behind the routes take it."""

from __future__ import annotations

from dataclasses import dataclass

from consentry.gateway.access import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizedRequest:
    """The caller, the whole body, and the headers that say more about it.

    `path` is the one that was called, with its names of pauses and messages.
    """

    caller: Principal
    method: str
    path: str
    body: bytes
    idempotency_key: str | None = None
    if_match: str | None = None
    traceparent: str | None = None
