"""Idempotency-Keys at the gateway: a repeated request gets the first answer, no second event.

Source: the Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header-07): the same key with
another body is 422, one whose first request is still being answered 409.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import structlog
from fastapi import Response
from redis.asyncio import Redis
from redis.exceptions import RedisError

from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.values import Micros
from consentry.gateway.http.request import AuthorizedRequest
from consentry.gateway.redis_calls import RedisCalls
from consentry.ops.http.problems import Problem

KEPT_SECONDS: Final = 86_400
"""A key is remembered for this time after its first use."""
IN_FLIGHT_SECONDS: Final = 45.0
"""After this time nobody answers the first request any more: its gateway ended."""

_KEY_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,255}")
_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The first use of an Idempotency-Key at the gateway: its request, event, and later answer.

    `event_id` has 32 hexadecimal digits.
    """

    fingerprint: str
    event_id: str
    accepted_at: Micros
    """The time of recording in microseconds: a repetition sends the very same event."""
    in_flight_until: Micros
    answer: dict[str, Any] | None = None
    nonce: str = ""
    """Of one request alone: by it a request knows its own attempt when the store gives it back."""


class IdempotencyStore(Protocol):
    """The gateway's store of Idempotency-Keys. Every call may raise Unavailable."""

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        """Keep the attempt as the key's first, and return None; or return the first one."""
        ...

    async def finish(self, key: str, attempt: Attempt) -> None:
        """Keep the attempt under its key with all that is known by now."""
        ...

    async def forget(self, key: str) -> None:
        """Drop the Idempotency-Key: nothing was sent under it."""
        ...


class InMemoryIdempotency:
    """The gateway's Idempotency-Keys in the memory of this process only."""

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
    """The gateway's Idempotency-Keys in Redis, shared by all gateways of a namespace.

    They are kept for KEPT_SECONDS.
    """

    def __init__(self, redis: Redis, *, namespace: str) -> None:
        self._calls = RedisCalls(redis)
        self._prefix = f"{namespace}:idempotency:"

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        """See IdempotencyStore."""
        name, text = self._prefix + key, _write(attempt)
        try:
            earlier = await self._calls.call(
                "SET", name, text, "NX", "GET", "EX", KEPT_SECONDS, get=True
            )
        except RedisError as error:
            raise _unavailable(error) from error
        return _read(earlier) if isinstance(earlier, bytes | str) else None

    async def finish(self, key: str, attempt: Attempt) -> None:
        """See IdempotencyStore."""
        try:
            await self._calls.call("SET", self._prefix + key, _write(attempt), "EX", KEPT_SECONDS)
        except RedisError as error:
            raise _unavailable(error) from error

    async def forget(self, key: str) -> None:
        """See IdempotencyStore."""
        try:
            await self._calls.call("DEL", self._prefix + key)
        except RedisError as error:
            raise _unavailable(error) from error


def _write(attempt: Attempt) -> str:
    return json.dumps({name: getattr(attempt, name) for name in Attempt.__slots__})


def _read(text: bytes | str) -> Attempt:
    fields = json.loads(text)
    # What a newer gateway adds is not ours to understand.
    return Attempt(**{name: fields[name] for name in Attempt.__slots__ if name in fields})


def _unavailable(error: RedisError) -> Unavailable:
    return Unavailable(
        f"The store of Idempotency-Keys did not answer ({type(error).__name__}).",
        code="idempotency.unavailable",
        fix="send the request again with the same Idempotency-Key",
    )


class IdempotencyClaim:
    """The Idempotency-Key of one request to the gateway, while that request is answered.

    Without a key nothing is kept.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        key: str | None,
        attempt: Attempt,
        *,
        is_repetition: bool = False,
    ) -> None:
        self._store = store
        self._key = key
        self.attempt = attempt
        """The key's first attempt: of this request, or of the one that it repeats."""
        self.is_repetition = is_repetition
        self.event_id = bytes.fromhex(attempt.event_id)
        self.recorded_at = attempt.accepted_at
        self.replayed = None if attempt.answer is None else _replayed(attempt.answer)
        """The first request's response, to be sent again; None where there is none yet."""

    async def respond(self, answer: dict[str, Any]) -> Response:
        """Keep the answer for repetitions, and return it as a response with status 202."""
        await self._keep(with_answer(self.attempt, answer))
        return Response(json.dumps(answer), 202, media_type="application/json")

    async def give_up(self, error: BaseException) -> None:
        """Let a repetition try again after the request failed.

        The key is dropped where nothing was sent. After 504, a fault of ours or the end of the
        gateway nobody knows, and a repetition sends the same event.
        """
        is_unknown = isinstance(error, Problem) and error.status == 504
        if isinstance(error, ConsentryError) and not is_unknown:
            await self.drop()
        else:
            await self.leave_open()

    async def leave_open(self) -> None:
        """Let a repetition send the same event again at once."""
        await self._keep(left_open(self.attempt))

    async def drop(self) -> None:
        """Forget the Idempotency-Key, as this request sent nothing.

        A repetition leaves the key: the first request may have sent its event.
        """
        if self.is_repetition:
            await self.leave_open()
        elif self._key is not None:
            await _try(self._store.forget(self._key))

    async def _keep(self, attempt: Attempt) -> None:
        if self._key is not None:
            await _try(self._store.finish(self._key, attempt))


def _replayed(answer: dict[str, Any]) -> Response:
    headers = {"Idempotent-Replayed": "true"}
    return Response(json.dumps(answer), 202, headers, "application/json")


async def claim_request(
    store: IdempotencyStore,
    request: AuthorizedRequest,
    *,
    now: Micros,
    excludes: bool,
    event_id: uuid.UUID | None = None,
) -> IdempotencyClaim:
    """Claim a gateway request's Idempotency-Key; a repetition gets the first attempt.

    Raises Problem: 400 for a malformed key, 422 for the key of another request, 409 while the first
    request is still being answered. Raises Unavailable where the store does not answer, except that
    a request that only `excludes` does not wait for the store: its repetition is then another event
    that says the same.
    """
    key = store_key(request.caller.subject, request.idempotency_key)
    attempt = _new_attempt(request, now, event_id)
    if key is None:
        return IdempotencyClaim(store, None, attempt)
    try:
        first = await store.claim(key, attempt)
    except Unavailable as error:
        if not excludes:
            raise
        _LOG.warning("idempotency_unchecked", detail=str(error))
        return IdempotencyClaim(store, None, attempt)
    if first is None or first.nonce == attempt.nonce:
        # The client of the store repeats a command that was answered late, and then meets what it
        # has set itself.
        return IdempotencyClaim(store, key, attempt)
    _check_repetition(first, attempt)
    repeated = replace(first, in_flight_until=attempt.in_flight_until)
    if repeated.answer is None:
        await _try(store.finish(key, repeated))
    return IdempotencyClaim(store, key, repeated, is_repetition=True)


def store_key(subject: str, header: str | None) -> str | None:
    """Return the name under which the gateway stores a request's Idempotency-Key.

    It is another one for each caller; None without a header.

    Raises Problem 400 for a malformed header.
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


def _new_attempt(request: AuthorizedRequest, now: Micros, event_id: uuid.UUID | None) -> Attempt:
    return Attempt(
        _fingerprint(request),
        (event_id or uuid.uuid4()).hex,
        now,
        Micros(now + int(IN_FLIGHT_SECONDS * 1e6)),
        nonce=uuid.uuid4().hex,
    )


def _fingerprint(request: AuthorizedRequest) -> str:
    """Return the digest by which a repetition of the request is known to say the same."""
    head = "\0".join((request.method, request.path, request.if_match or "", ""))
    return hashlib.blake2b(head.encode() + request.body, digest_size=20).hexdigest()


def _check_repetition(first: Attempt, attempt: Attempt) -> None:
    """Return if `attempt` may be answered as a repetition of `first`.

    Raises Problem: 422 if it asks something else, 409 while the first is still being answered.
    """
    if first.fingerprint != attempt.fingerprint:
        raise Problem(
            422,
            "This Idempotency-Key was used for another request before.",
            code="idempotency.reused",
            fix="take a key of its own for each request",
        )
    if first.answer is None and attempt.accepted_at < first.in_flight_until:
        raise Problem(
            409,
            "The first request with this Idempotency-Key is still being answered.",
            code="idempotency.in_flight",
            fix="send it again in a moment",
            headers={"Retry-After": "1"},
        )


def with_answer(attempt: Attempt, answer: dict[str, Any]) -> Attempt:
    """Return the attempt under an Idempotency-Key with the gateway's answer to its request."""
    return replace(attempt, answer=answer)


def left_open(attempt: Attempt) -> Attempt:
    """Return the attempt under a gateway's Idempotency-Key; its event may be sent again at once.

    It is for an event of which nobody knows whether it counts.
    """
    return replace(attempt, in_flight_until=Micros(0))


async def _try(change: Awaitable[None]) -> None:
    """Change the store if it answers.

    The event is what counts: without the change a repetition finds the key in flight for a while,
    and then sends the same event.
    """
    try:
        await change
    except Unavailable as error:
        _LOG.warning("idempotency_not_kept", detail=str(error))
