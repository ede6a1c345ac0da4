"""What the routes share: whatever was opened for this gateway, and the gate every request goes
through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from consentry.gateway.access import Authenticator, Permission, Principal, require
from consentry.gateway.http.limits import RateLimit
from consentry.gateway.idempotency import IdempotencyStore
from consentry.gateway.kafka_submit import Submitter
from consentry.gateway.proposals import ProposalStore
from consentry.gateway.quarantine import QuarantinedMessages
from consentry.gateway.table_reader import TableReader
from consentry.kafka.sender import TopicPosition
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.wire.tokens import Token, TokenKeys, write_token

if TYPE_CHECKING:
    from consentry.gateway.bundle_downloads import BundleDownloads


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayContext:
    """The rooms and stores behind one gateway."""

    authenticator: Authenticator
    submitter: Submitter
    reader: TableReader
    idempotency: IdempotencyStore
    proposals: ProposalStore
    quarantine: QuarantinedMessages
    rate: RateLimit
    token_keys: TokenKeys
    clock: Clock
    metrics: Metrics
    subscribers: Sequence[tuple[str, str]] = ()
    bundles: BundleDownloads | None = None
    version: str = ""

    def event_token(self, place: TopicPosition) -> str:
        """The consistency token of one accepted member event: it also asks for the controls that
        were known then.
        """
        return self.token({place.partition: place.offset + 1})

    def token(self, offsets: Mapping[int, int], *, controls: int = 0) -> str:
        """A token over these partitions and at least the controls known here, or those up to
        `controls`.
        """
        known = max(controls, self.reader.controls.position)
        return write_token(Token(self.reader.log, offsets, known, self.clock()), self.token_keys)


def context_of(request: Request) -> GatewayContext:
    """The parts of the gateway that got this request."""
    context = request.app.state.context
    assert isinstance(context, GatewayContext)
    return context


async def authorize(
    request: Request, permission: Permission, *, cost: float = 1.0
) -> tuple[GatewayContext, Principal]:
    """Who asks, if they may. Raises Unauthenticated, Forbidden, and Problem 429."""
    context = context_of(request)
    given = request.headers.getlist("authorization")
    # Of several it would not be clear which one counts, here and at a proxy.
    caller = await context.authenticator.authenticate(given[0] if len(given) == 1 else None)
    require(caller, permission)
    context.rate.take(caller.subject, cost)
    return context, caller
