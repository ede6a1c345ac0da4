"""Routes for controls: pauses bind at once; what opens something needs a second person."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from consentry.domain.values import NAME_PATTERN
from consentry.gateway.accept import accept
from consentry.gateway.access import Permission
from consentry.gateway.context import receive
from consentry.gateway.control_drafts import ControlDraft, PauseDraft
from consentry.gateway.http.bodies import CONTROL_BYTES_MAX
from consentry.gateway.http.models import Accepted, AwaitingApproval
from consentry.gateway.http.openapi import ACCEPTS_REPETITION, form_body, problems
from consentry.gateway.propose import propose
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem

router = APIRouter(prefix="/v1", tags=["desk"])

PausePath = Annotated[str, Path(pattern=f"^{NAME_PATTERN.pattern}$")]
_VERSION: Final = {"type": "integer", "minimum": 1, "maximum": 2_147_483_647}
_CODES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "string",
        "pattern": r"^([A-Z]{2,3}|[A-Z]{2}-[A-Z0-9]{1,3}|\*)$",
        "examples": ["HK"],
    },
    "description": "ISO 3166 codes, EEA, *.",
}
_NAMES: Final = {
    "type": ["array", "null"],
    "minItems": 1,
    "items": {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"},
    "description": "Default: all of them.",
}
_INSTANT: Final = {
    "type": "string",
    "minLength": 7,
    "examples": ["2024-10-11T09:00:00Z"],
    "description": "ISO 8601; default: when it is accepted or approved.",
}
_LIFT: Final = {
    "version": _VERSION,
    "effective": _INSTANT,
    "opt_ins": {"enum": ["VOID", "KEEP"], "default": "VOID"},
}
_PAUSE_SCHEMA: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["pause", "jurisdictions"],
    "properties": {
        "pause": {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"},
        "version": _VERSION,
        "jurisdictions": _CODES,
        "purposes": _NAMES,
        "categories": _NAMES,
        "effective": _INSTANT,
        "authority": {"type": "string", "maxLength": 200},
        "basis": {"enum": ["ORDER", "UNDERTAKING"]},
        "reach": {"enum": ["GOING_FORWARD", "PRIOR_AND_FUTURE"]},
    },
}
_LIFT_SCHEMA: Final = {"type": "object", "additionalProperties": False, "properties": _LIFT}
_POLICY_SCHEMA: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "terms"],
    "description": "As in a policy file; docs/policies.md.",
    "properties": {
        "version": {"type": "string", "maxLength": 200},
        "effective": _INSTANT,
        "terms": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    },
}
_PROPOSED: Final = {
    "model": Accepted | AwaitingApproval,
    "description": "Accepted, or awaiting approval",
}


@router.post(
    "/pauses",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 408, 409, 413, 415, 422, 504),
    openapi_extra=form_body(_PAUSE_SCHEMA, *ACCEPTS_REPETITION),
)
async def post_pause(http_request: Request) -> Response:
    """Stop a use for a scope, however many members it covers.

    Binds at once, without a second person.
    """
    context, request = await receive(http_request, Permission.IMPOSE, bytes_max=CONTROL_BYTES_MAX)
    draft = PauseDraft(context, parse_json(request.body), source=request.caller.subject)
    return await accept(context, request, draft)


@router.post(
    "/pauses/{pause}/lift",
    status_code=202,
    response_model=AwaitingApproval,
    responses=problems(400, 408, 409, 413, 415, 422),
    openapi_extra=form_body(_LIFT_SCHEMA, *ACCEPTS_REPETITION),
)
async def post_lift(http_request: Request, pause: PausePath) -> Response:
    """Propose to end a pause. It takes effect when a second person approves; opt-outs survive
    it.
    """
    context, request = await receive(http_request, Permission.PROPOSE)
    form = parse_json(request.body)
    if not isinstance(form, dict) or "pause" in form:
        raise Problem(
            422,
            "The body is not an object of fields, or names the pause again.",
            code="input.form",
            fix="see docs",
        )
    form = {**form, "pause": pause}
    draft = ControlDraft(context, "lift", form, source=request.caller.subject)
    draft.control_now()  # what does not fit is refused before the Idempotency-Key is used up
    return await propose(context, request, draft)


@router.post(
    "/policies",
    status_code=202,
    responses={**problems(400, 408, 409, 413, 415, 422, 504), 202: _PROPOSED},
    openapi_extra=form_body(_POLICY_SCHEMA, *ACCEPTS_REPETITION),
)
async def post_policy(http_request: Request) -> Response:
    """Publish a policy version.

    What opens nothing binds from its effective time; the rest needs a second person.
    """
    context, request = await receive(http_request, Permission.PROPOSE, bytes_max=CONTROL_BYTES_MAX)
    form = parse_json(request.body)
    draft = ControlDraft(context, "policy", form, source=request.caller.subject)
    if await draft.opens_something():
        return await propose(context, request, draft)
    return await accept(context, request, draft)
