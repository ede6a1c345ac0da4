"""From a checked request to an acknowledged event, once: what all routes that send something have
in common.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog
from fastapi import Request, Response

from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.events import SentEvent
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.gateway.access import Principal
from consentry.gateway.context import GatewayContext
from consentry.gateway.idempotency import (
    IN_FLIGHT_SECONDS,
    Attempt,
    answered,
    check_repetition,
    fingerprint,
    left_open,
    store_key,
)
from consentry.ops.http.problems import Problem

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event that is wanted: how to make it of an identity and a time, and what to look at before
    it is sent.

    `excludes`: it can only take use away, so that nothing but Kafka may stand in its way.
    """

    make: Callable[[bytes, Micros], SentEvent | Control]
    event_id: uuid.UUID | None
    excludes: bool
    warnings: tuple[str, ...] = ()
    check: Callable[[], Awaitable[None]] | None = None


class IdempotencyClaim:
    """An Idempotency-Key in the store, for as long as one request is answered."""

    def __init__(
        self,
        context: GatewayContext,
        key: str | None,
        attempt: Attempt,
        *,
        is_repetition: bool = False,
    ) -> None:
        self._store = context.idempotency
        self._key = key
        self.is_repetition = is_repetition
        self.attempt = attempt

    @classmethod
    async def take(
        cls, context: GatewayContext, key: str | None, attempt: Attempt, *, excludes: bool
    ) -> IdempotencyClaim:
        """The claim; its attempt is the first one's where this is a repetition.

        Raises Problem and Unavailable.

        What only excludes is not kept waiting for the store: a repetition is then another event
        that says the same.
        """
        if key is None:
            return cls(context, None, attempt)
        try:
            first = await context.idempotency.claim(key, attempt)
        except Unavailable as error:
            if not excludes:
                raise
            _LOG.warning("idempotency_unchecked", detail=str(error))
            return cls(context, None, attempt)
        if first is None or first.nonce == attempt.nonce:
            # The client of the store repeats a command that was answered late, and then meets what
            # it has set itself.
            return cls(context, key, attempt)
        check_repetition(first, attempt)
        claim = cls(
            context,
            key,
            replace(first, in_flight_until=attempt.in_flight_until),
            is_repetition=True,
        )
        if first.answer is None:
            await claim._keep(claim.attempt)
        return claim

    async def answer(self, answer: dict[str, Any]) -> None:
        """Keep the answer for repetitions."""
        await self._keep(answered(self.attempt, answer))

    async def leave_open(self) -> None:
        """A repetition may send the same event again at once."""
        await self._keep(left_open(self.attempt))

    async def drop(self) -> None:
        """Nothing was sent by this request.

        A repetition leaves the key: the first one may have sent its event.
        """
        if self.is_repetition:
            await self.leave_open()
        elif self._key is not None:
            await self._insist(self._store.forget(self._key))

    async def _keep(self, attempt: Attempt) -> None:
        if self._key is not None:
            await self._insist(self._store.finish(self._key, attempt))

    async def _insist(self, change: Awaitable[None]) -> None:
        try:
            await change
        except Unavailable as error:
            # The event is what counts; a repetition finds the key in flight for a while, then sends
            # the same event.
            _LOG.warning("idempotency_not_kept", detail=str(error))


def new_attempt(
    context: GatewayContext, request: Request, body: bytes, *, event_id: uuid.UUID | None = None
) -> Attempt:
    """The attempt that this request is, now."""
    now = context.clock()
    asked = fingerprint(
        request.method, request.scope["path"], body, request.headers.get("if-match", "")
    )
    in_flight_until = Micros(now + int(IN_FLIGHT_SECONDS * 1e6))
    return Attempt(
        asked, (event_id or uuid.uuid4()).hex, now, in_flight_until, nonce=uuid.uuid4().hex
    )


async def accept(
    context: GatewayContext, caller: Principal, request: Request, body: bytes, draft: EventDraft
) -> Response:
    """Send the event, once, and answer when the broker has acknowledged it. Raises
    ConsentryError.
    """
    key = store_key(caller.subject, request.headers.get("idempotency-key"))
    attempt = new_attempt(context, request, body, event_id=draft.event_id)
    claim = await IdempotencyClaim.take(context, key, attempt, excludes=draft.excludes)
    if claim.attempt.answer is not None:
        return _response(claim.attempt.answer, replayed=True)
    event = draft.make(bytes.fromhex(claim.attempt.event_id), claim.attempt.accepted_at)
    try:
        if draft.check is not None and not (claim.is_repetition and _stands(context, event)):
            await draft.check()
        if isinstance(event, PauseImposed | PauseLifted | PolicyPublished):
            place = await context.submitter.submit_control(event)
            token = context.token({}, controls=place.offset + 1)
        else:
            place = await context.submitter.submit(
                event, traceparent=request.headers.get("traceparent")
            )
            token = context.event_token(place)
    except ConsentryError as error:
        await (
            claim.leave_open()
            if isinstance(error, Problem) and error.status == 504
            else claim.drop()
        )
        raise
    except BaseException:
        await (
            claim.leave_open()
        )  # a fault of ours, or the end of the gateway: nobody knows how far it got
        raise
    answer = {
        "state": "accepted",
        "event_id": str(uuid.UUID(bytes=event.event_id)),
        "token": token,
        "accepted_at": iso_text(event.recorded_at),
        "partition": place.partition,
        "offset": place.offset,
        "warnings": [*draft.warnings, *_late(event)],
    }
    await claim.answer(answer)
    return _response(answer, replayed=False)


def _late(event: SentEvent | Control) -> tuple[str, ...]:
    """A warning about a pause that stops nothing yet."""
    if isinstance(event, PauseImposed) and event.effective_at > event.recorded_at:
        return (f"the pause does not bind before {iso_text(event.effective_at)}",)
    return ()


def _stands(context: GatewayContext, event: SentEvent | Control) -> bool:
    """Whether it is a control that the log has already: what it was checked against then includes
    itself now.
    """
    return any(known.event_id == event.event_id for known in context.reader.controls.controls.log)


def _response(answer: dict[str, Any], *, replayed: bool) -> Response:
    headers = {"Idempotent-Replayed": "true"} if replayed else None
    return Response(json.dumps(answer), 202, headers, "application/json")
