"""Routes of the gateway for producers: what members did, one event at a time or many at once."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from consentry.gateway.accept import accept
from consentry.gateway.access import Permission
from consentry.gateway.bulk.lines import LineReader
from consentry.gateway.bulk.response import LINES_MAX, bulk_response
from consentry.gateway.context import receive, receive_model
from consentry.gateway.event_checks import EventIn, check_event
from consentry.gateway.http.bodies import BULK_BYTES_MAX
from consentry.gateway.http.models import (
    Accepted,
    BulkLine,
    BulkSummary,
    ConsentChangeIn,
    ErasureIn,
    RelocationIn,
)
from consentry.gateway.http.openapi import (
    ACCEPTS_REPETITION,
    body_of,
    ndjson_body,
    one_of_lines,
    problems,
)
from consentry.gateway.idempotency import claim_request
from consentry.ops.http.problems import Problem

router = APIRouter(prefix="/v1", tags=["producers"])


@router.post(
    "/consent-changes",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 412, 413, 415, 422, 428, 504),
    openapi_extra=body_of(ConsentChangeIn, *ACCEPTS_REPETITION, "if-match"),
)
async def post_consent_change(request: Request) -> Response:
    """Tell the gateway that a member chose for a purpose.

    An OPT_IN names the version of the record that the person had seen.
    """
    return await _accept_event(request, ConsentChangeIn)


@router.post(
    "/relocations",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 413, 415, 422, 504),
    openapi_extra=body_of(RelocationIn, *ACCEPTS_REPETITION),
)
async def post_relocation(request: Request) -> Response:
    """Tell the gateway that a member lives elsewhere now, or their age band."""
    return await _accept_event(request, RelocationIn)


@router.post(
    "/erasures",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 413, 415, 422, 504),
    openapi_extra=body_of(ErasureIn, *ACCEPTS_REPETITION),
)
async def post_erasure(request: Request) -> Response:
    """Tell the gateway that a member was erased. It latches, and opens a purge order."""
    return await _accept_event(request, ErasureIn)


async def _accept_event(http_request: Request, model: type[EventIn]) -> Response:
    context, request, fields = await receive_model(http_request, Permission.EMIT, model)
    draft = check_event(
        context,
        fields,
        source=request.caller.subject,
        if_match=request.if_match,
        now=context.clock(),
    )
    return await accept(context, request, draft)


@router.post(
    "/bulk",
    responses={
        200: {
            "description": "One result a line, in order, then one line with the counts and a "
            "token over all of them.",
            "content": {"application/x-ndjson": {"schema": one_of_lines(BulkLine, BulkSummary)}},
        },
        **problems(400, 408, 409, 413, 415, 422),
    },
    openapi_extra=ndjson_body(*ACCEPTS_REPETITION),
)
async def post_bulk(http_request: Request) -> Response:
    """Send up to 10,000 events to the gateway in one request, one JSON object a line.

    `kind` is consent-change (default), relocation or erasure. Each line has a result of its own.
    Sent again with the same Idempotency-Key every event counts once.
    """
    context, request = await receive(
        http_request,
        Permission.EMIT,
        kind="application/x-ndjson",
        bytes_max=BULK_BYTES_MAX,
        cost=0,  # each line costs, below
    )
    lines = request.body.splitlines()
    if len(lines) > LINES_MAX:
        raise Problem(
            413,
            f"The body has {len(lines)} lines; at most {LINES_MAX} are accepted.",
            code="input.too_many_lines",
            fix="split it",
        )
    context.rate.take(request.caller.subject, len(lines))
    claim = await claim_request(context.idempotency, request, now=context.clock(), excludes=False)
    try:
        reader = LineReader(
            context,
            claim.attempt,
            source=request.caller.subject,
            count=len(lines),
            traceparent=request.traceparent,
        )
        return await bulk_response(context, reader, lines)
    finally:
        # Nothing is kept of the answer: a repetition sends the same events, which count once.
        await claim.leave_open()
