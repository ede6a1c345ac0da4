"""The way of all routes of the gateway that send something: from a draft to an event, once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastapi import Response

from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.events import SentEvent
from consentry.domain.wording import iso_text
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.request import AuthorizedRequest
from consentry.gateway.idempotency import IdempotencyClaim, claim_request
from consentry.gateway.tokens import control_token, event_token


class PreparedEvent(NamedTuple):
    """An event or control that the gateway may send to Kafka, and warnings for its sender."""

    event: SentEvent | Control
    warnings: Sequence[str] = ()


class Draft(Protocol):
    """An event or control in a request to the gateway, before it has an identity and a time."""

    @property
    def event_id(self) -> uuid.UUID | None:
        """The identity that the sender gave to the event or control; None without one."""
        ...

    @property
    def excludes(self) -> bool:
        """True for an event that can only take use away: nothing but Kafka may hold it up."""
        ...

    async def prepare(self, claim: IdempotencyClaim) -> PreparedEvent:
        """Return the event of the claim, checked against what holds now. Raises ConsentryError."""
        ...


async def accept(context: GatewayContext, request: AuthorizedRequest, draft: Draft) -> Response:
    """Send the event of a request to the gateway, once; respond when Kafka has acknowledged it.

    Raises ConsentryError.
    """
    claim = await claim_request(
        context.idempotency,
        request,
        now=context.clock(),
        excludes=draft.excludes,
        event_id=draft.event_id,
    )
    if claim.replayed is not None:
        return claim.replayed
    try:
        event, warnings = await draft.prepare(claim)
        if isinstance(event, PauseImposed | PauseLifted | PolicyPublished):
            position = await context.submitter.submit_control(event)
            token = control_token(context, position)
        else:
            position = await context.submitter.submit(event, traceparent=request.traceparent)
            token = event_token(context, position)
    except BaseException as error:
        await claim.give_up(error)
        raise
    return await claim.respond(
        {
            "state": "accepted",
            "event_id": str(uuid.UUID(bytes=event.event_id)),
            "token": token,
            "accepted_at": iso_text(event.recorded_at),
            "partition": position.partition,
            "offset": position.offset,
            "warnings": list(warnings),
        }
    )
