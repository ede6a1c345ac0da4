"""The stores and services that the gateway's routes share, and the check of every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from consentry.gateway.access import Authenticator, Permission, Principal
from consentry.gateway.http.bodies import BODY_BYTES_MAX, Model, read_body, read_model
from consentry.gateway.http.limits import RateLimit
from consentry.gateway.http.request import AuthorizedRequest
from consentry.gateway.idempotency import IdempotencyStore
from consentry.gateway.kafka_submit import Submitter
from consentry.gateway.proposals import ProposalStore
from consentry.gateway.quarantine import QuarantinedMessages
from consentry.gateway.table_reader import TableReader
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.wire.tokens import TokenKeys

if TYPE_CHECKING:
    from consentry.gateway.bundle_downloads import BundleDownloads


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayContext:
    """The stores and services behind one gateway."""

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
    """Subscriber and data set, once for each that is declared to owe receipts."""
    bundles: BundleDownloads | None = None
    version: str = ""


async def authorize(
    request: Request, permission: Permission, *, cost: float = 1.0
) -> tuple[GatewayContext, Principal]:
    """Check a request to the gateway; return its context and the caller with the permission.

    The request counts as `cost` events against the caller's rate.

    Raises Unauthenticated, Forbidden, and Problem 429.
    """
    context: GatewayContext = request.app.state.context
    headers = request.headers.getlist("authorization")
    # Of several it would not be clear which one counts, here and at a proxy.
    authorization = headers[0] if len(headers) == 1 else None
    caller = await context.authenticator.authorize(authorization, permission)
    context.rate.take(caller.subject, cost)
    return context, caller


async def receive(
    request: Request,
    permission: Permission,
    *,
    kind: str = "application/json",
    bytes_max: int = BODY_BYTES_MAX,
    cost: float = 1.0,
) -> tuple[GatewayContext, AuthorizedRequest]:
    """Check and read a request to the gateway; return its context and the request with body.

    The caller needs the permission.

    Nothing of the body is read before. Raises as `authorize` and `read_body`.
    """
    context, caller = await authorize(request, permission, cost=cost)
    body = await read_body(request, kind=kind, bytes_max=bytes_max)
    return context, _authorized(request, caller, body)


async def receive_model(
    request: Request, permission: Permission, model: type[Model]
) -> tuple[GatewayContext, AuthorizedRequest, Model]:
    """Check and read a request to the gateway; return its body as a model too, see `receive`.

    Raises as `authorize` and `read_model`.
    """
    context, caller = await authorize(request, permission)
    body, fields = await read_model(request, model)
    return context, _authorized(request, caller, body), fields


def _authorized(request: Request, caller: Principal, body: bytes) -> AuthorizedRequest:
    return AuthorizedRequest(
        caller=caller,
        method=request.method,
        path=request.scope["path"],
        body=body,
        idempotency_key=request.headers.get("idempotency-key"),
        if_match=request.headers.get("if-match"),
        traceparent=request.headers.get("traceparent"),
    )
