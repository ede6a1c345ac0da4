"""Routes of the gateway for controls: pauses bind at once; what opens needs a second person."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from consentry.domain.values import NAME_PATTERN
from consentry.forms.controls import LiftTerms, PauseDocument, PolicyDocument
from consentry.gateway.accept import accept
from consentry.gateway.access import Permission
from consentry.gateway.context import receive
from consentry.gateway.control_drafts import PauseDraft, read_draft, read_policy
from consentry.gateway.http.bodies import CONTROL_BYTES_MAX
from consentry.gateway.http.models import Accepted, AwaitingApproval
from consentry.gateway.http.openapi import ACCEPTS_REPETITION, body_of, problems
from consentry.gateway.propose import propose
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem

router = APIRouter(prefix="/v1", tags=["desk"])

PausePath = Annotated[str, Path(pattern=f"^{NAME_PATTERN.pattern}$")]
_PROPOSED: Final = {
    "model": Accepted | AwaitingApproval,
    "description": "Accepted, or awaiting approval",
}


@router.post(
    "/pauses",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 413, 415, 422, 504),
    openapi_extra=body_of(PauseDocument, *ACCEPTS_REPETITION),
)
async def post_pause(http_request: Request) -> Response:
    """Impose a pause at the gateway: stop a use for a scope, however many members it covers.

    It binds at once, without a second person.
    """
    context, request = await receive(http_request, Permission.IMPOSE, bytes_max=CONTROL_BYTES_MAX)
    document = PauseDocument.read(parse_json(request.body), name="the pause")
    draft = PauseDraft(context, document, source=request.caller.subject)
    return await accept(context, request, draft)


@router.post(
    "/pauses/{pause}/lift",
    status_code=202,
    response_model=AwaitingApproval,
    responses=problems(400, 408, 409, 413, 415, 422),
    openapi_extra=body_of(LiftTerms, *ACCEPTS_REPETITION),
)
async def post_lift(http_request: Request, pause: PausePath) -> Response:
    """Propose at the gateway to end a pause.

    It takes effect when a second person approves. Opt-outs survive it.
    """
    context, request = await receive(http_request, Permission.PROPOSE)
    form = parse_json(request.body)
    if not isinstance(form, dict) or "pause" in form:
        raise Problem(
            422,
            "The body is not an object of fields, or names the pause again.",
            code="input.form",
            fix="send an object of the lift's fields; the path names the pause",
        )
    form = {**form, "pause": pause}
    draft = read_draft(context, "lift", form, source=request.caller.subject)
    return await propose(context, request, draft)


@router.post(
    "/policies",
    status_code=202,
    responses={**problems(400, 408, 409, 413, 415, 422, 504), 202: _PROPOSED},
    openapi_extra=body_of(PolicyDocument, *ACCEPTS_REPETITION),
)
async def post_policy(http_request: Request) -> Response:
    """Publish a policy version through the gateway.

    What opens nothing binds from its effective time; the rest needs a second person.
    """
    context, request = await receive(http_request, Permission.PROPOSE, bytes_max=CONTROL_BYTES_MAX)
    form = parse_json(request.body)
    draft = await read_policy(context, form, source=request.caller.subject)
    if draft.opens_something:
        return await propose(context, request, draft)
    return await accept(context, request, draft)
