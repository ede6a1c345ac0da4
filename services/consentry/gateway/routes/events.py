"""Routes by which producers say what members did: consent changes, relocations, erasures, and many
at once.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from consentry.domain.values import Choice
from consentry.gateway.accept import EventDraft, IdempotencyClaim, accept, new_attempt
from consentry.gateway.access import Permission
from consentry.gateway.bulk.lines import LineReader
from consentry.gateway.bulk.response import LINES_MAX, bulk_answer
from consentry.gateway.context import authorize
from consentry.gateway.event_checks import (
    check_ahead,
    check_observed,
    check_purpose,
    check_repeatable,
    to_event,
    with_observed,
)
from consentry.gateway.http.bodies import BULK_BYTES_MAX, read_body, read_model
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
from consentry.gateway.idempotency import store_key
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
    """Say that a member chose for a purpose.

    An OPT_IN names the version of the record that the person had seen.
    """
    context, caller = await authorize(request, Permission.EMIT)
    body = await read_body(request)
    change = with_observed(read_model(ConsentChangeIn, body), request.headers.get("if-match"))
    check_repeatable(change)
    check_ahead(change, context.clock())
    warnings = check_purpose(context, change)
    is_opt_in = change.choice is Choice.OPT_IN
    draft = EventDraft(
        make=partial(to_event, change, caller.subject),
        event_id=change.event_id,
        excludes=not is_opt_in,
        warnings=warnings,
        check=partial(check_observed, context, change) if is_opt_in else None,
    )
    return await accept(context, caller, request, body, draft)


@router.post(
    "/relocations",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 413, 415, 422, 504),
    openapi_extra=body_of(RelocationIn, *ACCEPTS_REPETITION),
)
async def post_relocation(request: Request) -> Response:
    """Say that a member lives somewhere (else) now, or that their age band became known."""
    context, caller = await authorize(request, Permission.EMIT)
    body = await read_body(request)
    relocation = read_model(RelocationIn, body)
    check_repeatable(relocation)
    draft = EventDraft(
        partial(to_event, relocation, caller.subject), relocation.event_id, excludes=False
    )
    return await accept(context, caller, request, body, draft)


@router.post(
    "/erasures",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 413, 415, 422, 504),
    openapi_extra=body_of(ErasureIn, *ACCEPTS_REPETITION),
)
async def post_erasure(request: Request) -> Response:
    """Say that a member was erased. It latches, and opens a purge order."""
    context, caller = await authorize(request, Permission.EMIT)
    body = await read_body(request)
    erasure = read_model(ErasureIn, body)
    check_repeatable(erasure)
    check_ahead(erasure, context.clock())
    draft = EventDraft(partial(to_event, erasure, caller.subject), erasure.event_id, excludes=True)
    return await accept(context, caller, request, body, draft)


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
async def post_bulk(request: Request) -> Response:
    """Send up to 10,000 events, one JSON object a line, with `kind` consent-change (default),
    relocation or erasure.

    Each line has a result of its own. Sent again with the same Idempotency-Key every event counts
    once.
    """
    context, caller = await authorize(request, Permission.EMIT, cost=0)  # each line costs, below
    body = await read_body(request, kind="application/x-ndjson", bytes_max=BULK_BYTES_MAX)
    lines = body.splitlines()
    if len(lines) > LINES_MAX:
        raise Problem(
            413,
            f"The body has {len(lines)} lines; at most {LINES_MAX} are taken.",
            code="input.too_many_lines",
            fix="split it",
        )
    context.rate.take(caller.subject, len(lines))
    key = store_key(caller.subject, request.headers.get("idempotency-key"))
    claim = await IdempotencyClaim.take(
        context, key, new_attempt(context, request, body), excludes=False
    )
    try:
        traceparent = request.headers.get("traceparent")
        reader = LineReader(
            context, caller, claim.attempt, count=len(lines), traceparent=traceparent
        )
        return await bulk_answer(context, reader, lines)
    finally:
        # Nothing is kept of the answer: a repetition sends the same events, which count once.
        await claim.leave_open()
