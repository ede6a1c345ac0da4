"""A repeated request is answered as the first one was, and never makes a second event.

Source: the Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header-07): the same key with
another body is 422, one whose first request is still being answered 409.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from consentry.domain.errors import Unavailable
from consentry.domain.values import Micros
from consentry.gateway.redis_calls import RedisCalls
from consentry.ops.http.problems import Problem

KEPT_SECONDS: Final = 86_400
"""So long a key is remembered after its first use."""
IN_FLIGHT_SECONDS: Final = 45.0
"""After this time nobody answers the first request any more: its gateway ended."""

_KEY_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,255}")
_UNAVAILABLE: Final = "idempotency.unavailable"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The first use of a key: what was asked (`fingerprint`), as which event, and the answer once
    there is one.
    """

    fingerprint: str
    event_id: str
    accepted_at: Micros
    """When the event was recorded, in microseconds: a repetition sends the very same event."""
    in_flight_until: Micros
    answer: dict[str, Any] | None = None
    nonce: str = ""
    """Of one request alone: by it a request knows its own attempt when the store gives it back."""


class IdempotencyStore(Protocol):
    """Attempts by key. Every call may raise Unavailable."""

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        """Keep the attempt as the key's first; the one that was there before, or None if this is
        it.
        """
        ...

    async def finish(self, key: str, attempt: Attempt) -> None:
        """Keep the attempt as it is now."""
        ...

    async def forget(self, key: str) -> None:
        """Drop the key: nothing was sent under it."""
        ...


class InMemoryIdempotency:
    """In this process: same contract, nothing kept."""

    def __init__(self) -> None:
        self._attempts: dict[str, Attempt] = {}

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        """See IdempotencyStore."""
        if key in self._attempts:
            return self._attempts[key]
        self._attempts[key] = attempt
        return None

    async def finish(self, key: str, attempt: Attempt) -> None:
        """See IdempotencyStore."""
        self._attempts[key] = attempt

    async def forget(self, key: str) -> None:
        """See IdempotencyStore."""
        self._attempts.pop(key, None)


class RedisIdempotency:
    """In Redis, for as long as KEPT_SECONDS; shared by all gateways of a namespace."""

    def __init__(self, redis: Redis, *, namespace: str) -> None:
        self._calls = RedisCalls(redis)
        self._prefix = f"{namespace}:idempotency:"

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        """See IdempotencyStore."""
        try:
            kept = await self._calls.call(
                "SET",
                self._prefix + key,
                _written(attempt),
                "NX",
                "GET",
                "EX",
                KEPT_SECONDS,
                get=True,
            )
        except RedisError as error:
            raise _unavailable(error) from error
        return _read(kept) if isinstance(kept, bytes | str) else None

    async def finish(self, key: str, attempt: Attempt) -> None:
        """See IdempotencyStore."""
        try:
            await self._calls.call("SET", self._prefix + key, _written(attempt), "EX", KEPT_SECONDS)
        except RedisError as error:
            raise _unavailable(error) from error

    async def forget(self, key: str) -> None:
        """See IdempotencyStore."""
        try:
            await self._calls.call("DEL", self._prefix + key)
        except RedisError as error:
            raise _unavailable(error) from error


def _written(attempt: Attempt) -> str:
    return json.dumps({name: getattr(attempt, name) for name in Attempt.__slots__})


def _read(text: bytes | str) -> Attempt:
    kept = json.loads(text)
    # What a newer gateway adds is not ours to understand.
    return Attempt(**{name: kept[name] for name in Attempt.__slots__ if name in kept})


def _unavailable(error: RedisError) -> Unavailable:
    return Unavailable(
        f"The store of Idempotency-Keys did not answer ({type(error).__name__}).",
        code=_UNAVAILABLE,
        fix="send the request again with the same Idempotency-Key",
    )


def store_key(subject: str, header: str | None) -> str | None:
    """The key of a request in the store: one caller cannot meet another's. None without the header.

    Raises Problem 400 for a header that is none.
    """
    if header is None:
        return None
    if _KEY_PATTERN.fullmatch(header) is None:
        raise Problem(
            400,
            "The Idempotency-Key is not 1 to 255 visible ASCII characters.",
            code="idempotency.key",
            fix="send a UUID of your own for each request, and the same one again when you repeat "
            "it",
        )
    return hashlib.blake2b(f"{subject}\0{header}".encode(), digest_size=20).hexdigest()


def fingerprint(method: str, path: str, body: bytes, *more: str) -> str:
    """What tells whether a repetition asks the same."""
    return hashlib.blake2b(
        "\0".join((method, path, *more, "")).encode() + body, digest_size=20
    ).hexdigest()


def check_repetition(first: Attempt, now: Attempt) -> None:
    """Return if `now` may be answered as a repetition of `first`.

    Raises Problem: 422 if it asks something else, 409 while the first is still being answered.
    """
    if first.fingerprint != now.fingerprint:
        raise Problem(
            422,
            "This Idempotency-Key was used for another request before.",
            code="idempotency.reused",
            fix="take a key of its own for each request",
        )
    if first.answer is None and now.accepted_at < first.in_flight_until:
        raise Problem(
            409,
            "The first request with this Idempotency-Key is still being answered.",
            code="idempotency.in_flight",
            fix="send it again in a moment",
            headers={"Retry-After": "1"},
        )


def answered(attempt: Attempt, answer: dict[str, Any]) -> Attempt:
    """The attempt with its answer."""
    return replace(attempt, answer=answer)


def left_open(attempt: Attempt) -> Attempt:
    """The attempt of which nobody knows whether it counts: a repetition may send the same event
    again at once.
    """
    return replace(attempt, in_flight_until=Micros(0))
