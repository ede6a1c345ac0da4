"""Routes of the regulator desk: pauses bind at once; lifts and policies that open something need a
second person.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, Final, NamedTuple

import structlog
from fastapi import APIRouter, Path, Request, Response

from consentry.domain.control_checks import (
    ControlConflict,
    conflict_of_lift,
    conflict_of_pause,
    conflict_of_policy,
    is_published,
)
from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.impact import openings, openings_digest
from consentry.domain.values import NAME_PATTERN, Micros
from consentry.domain.wording import iso_text
from consentry.forms.controls import parse_lift, parse_pause, parse_policy
from consentry.gateway.accept import EventDraft, IdempotencyClaim, accept, new_attempt
from consentry.gateway.access import Permission, Principal
from consentry.gateway.context import GatewayContext, authorize
from consentry.gateway.http.bodies import CONTROL_BYTES_MAX, read_body
from consentry.gateway.http.models import Accepted, AwaitingApproval, Json
from consentry.gateway.http.openapi import ACCEPTS_REPETITION, form_body, problems
from consentry.gateway.idempotency import store_key
from consentry.gateway.proposals import Kind, new_proposal
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem

router = APIRouter(prefix="/v1", tags=["desk"])
_LOG = structlog.get_logger(__name__)

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
async def post_pause(request: Request) -> Response:
    """Stop a use for a scope, however many members it covers.

    Binds at once, without a second person.
    """
    context, caller = await authorize(request, Permission.IMPOSE)
    body = await read_body(request, bytes_max=CONTROL_BYTES_MAX)
    form = parse_json(body)

    def make(event_id: bytes, recorded_at: Micros) -> PauseImposed:
        return parse_pause(form, event_id=event_id, recorded_at=recorded_at, source=caller.subject)

    async def check() -> None:
        pause = make(bytes(16), context.clock())
        log = context.reader.controls.controls.log
        refuse(conflict_of_pause(pause, log, has_effective=form.get("effective") is not None))

    make(
        bytes(16), context.clock()
    )  # what does not fit is refused before the Idempotency-Key is used up
    return await accept(
        context, caller, request, body, EventDraft(make, None, excludes=True, check=check)
    )


@router.post(
    "/pauses/{pause}/lift",
    status_code=202,
    response_model=AwaitingApproval,
    responses=problems(400, 408, 409, 413, 415, 422),
    openapi_extra=form_body(_LIFT_SCHEMA, *ACCEPTS_REPETITION),
)
async def post_lift(request: Request, pause: PausePath) -> Response:
    """Propose to end a pause. It takes effect when a second person approves; opt-outs survive
    it.
    """
    context, caller = await authorize(request, Permission.PROPOSE)
    body = await read_body(request)
    data = parse_json(body)
    if not isinstance(data, dict) or "pause" in data:
        raise Problem(
            422,
            "The body is not an object of fields, or names the pause again.",
            code="input.form",
            fix="see docs",
        )
    return await _propose(context, caller, request, body, "lift", {**data, "pause": pause})


@router.post(
    "/policies",
    status_code=202,
    responses={**problems(400, 408, 409, 413, 415, 422, 504), 202: _PROPOSED},
    openapi_extra=form_body(_POLICY_SCHEMA, *ACCEPTS_REPETITION),
)
async def post_policy(request: Request) -> Response:
    """Publish a policy version.

    What opens nothing binds from its effective time; the rest needs a second person.
    """
    context, caller = await authorize(request, Permission.PROPOSE)
    body = await read_body(request, bytes_max=CONTROL_BYTES_MAX)
    form = parse_json(body)
    await context.reader.wait_for_controls()
    now = context.clock()
    policy = control_of("policy", form, event_id=bytes(16), recorded_at=now, source=caller.subject)
    if openings(policy, context.reader.controls.controls, now=now):
        return await _propose(context, caller, request, body, "policy", form)

    made: list[PauseLifted | PolicyPublished] = []

    def make(event_id: bytes, recorded_at: Micros) -> Control:
        made.append(
            control_of(
                "policy", form, event_id=event_id, recorded_at=recorded_at, source=caller.subject
            )
        )
        return made[-1]

    async def check() -> None:
        await _check_opens_nothing(context, made[-1], form)

    return await accept(
        context, caller, request, body, EventDraft(make, None, excludes=False, check=check)
    )


async def _check_opens_nothing(
    context: GatewayContext, policy: PauseLifted | PolicyPublished, form: Json
) -> None:
    """Raise Problem where a policy opens something after all, right before it is sent.

    Between the first look and this one the store was asked, which may take seconds: somebody may
    have narrowed terms.
    """
    await context.reader.wait_for_controls()
    check_control(context, policy, form)
    now = context.clock()
    # A repetition after a time-out keeps its first time: sent now, that is one in the past.
    opens = openings(replace(policy, recorded_at=now), context.reader.controls.controls, now=now)
    if opens:
        raise Problem(
            409,
            f"Controls have changed since this was sent: it would now widen use ({opens[0]}).",
            code="approval.changed",
            fix="send it again: it then waits for a second person",
        )


class ProposalRequest(NamedTuple):
    """What is to be proposed: of what kind, as which plain values, and what it would open, in words
    and exactly.
    """

    kind: Kind
    form: Json
    opens: list[str]
    digest: str = ""


async def _propose(
    context: GatewayContext,
    caller: Principal,
    request: Request,
    body: bytes,
    kind: Kind,
    form: Json,
) -> Response:
    """Keep a proposal; a repetition of the request finds the same one."""
    now = context.clock()
    control = control_of(kind, form, event_id=bytes(16), recorded_at=now, source=caller.subject)

    async def draft() -> ProposalRequest:
        check_control(context, control, form)
        known = context.reader.controls.controls
        return ProposalRequest(
            kind,
            form,
            list(openings(control, known, now=now)),
            openings_digest(control, known, now=now),
        )

    return await propose(context, caller, request, body, draft)


async def propose(
    context: GatewayContext,
    caller: Principal,
    request: Request,
    body: bytes,
    draft: Callable[[], Awaitable[ProposalRequest]],
) -> Response:
    """Keep what `draft` asks for as a proposal, once for an Idempotency-Key, and say how it goes
    on.

    `draft` raises what speaks against it. It is not asked again for a repetition: what was proposed
    has been looked at, and may have been approved since.
    """
    key = store_key(caller.subject, request.headers.get("idempotency-key"))
    claim = await IdempotencyClaim.take(
        context, key, new_attempt(context, request, body), excludes=False
    )
    headers = None
    if claim.attempt.answer is None:
        try:
            # The first request may have ended between its proposal and its answer.
            proposal = (
                await context.proposals.get(claim.attempt.event_id) if claim.is_repetition else None
            )
            if proposal is None:
                wanted, now = await draft(), claim.attempt.accepted_at
                proposal = new_proposal(
                    wanted.kind,
                    wanted.form,
                    wanted.opens,
                    by=caller.subject,
                    now=now,
                    digest=wanted.digest,
                )
                proposal = replace(proposal, proposal_id=claim.attempt.event_id)
                await context.proposals.put(proposal)
        except Exception:
            await claim.drop()
            raise
        _LOG.info("proposed", kind=proposal.kind, proposal=proposal.proposal_id, by=caller.subject)
        answer = {
            "state": "awaiting_approval",
            "approval_id": proposal.proposal_id,
            "opens": proposal.opens,
            "expires_at": iso_text(proposal.expires_at),
        }
        await claim.answer(answer)
    else:
        answer, headers = claim.attempt.answer, {"Idempotent-Replayed": "true"}
    return Response(json.dumps(answer), 202, headers, "application/json")


def control_of(
    kind: Kind, form: Any, *, event_id: bytes, recorded_at: Micros, source: str
) -> PauseLifted | PolicyPublished:
    """The lift or policy that a form asks for. Raises InvalidDocument."""
    parse = parse_lift if kind == "lift" else parse_policy
    return parse(form, event_id=event_id, recorded_at=recorded_at, source=source)


def check_control(context: GatewayContext, control: Control, form: Json) -> None:
    """Raise Problem 409 where the control would not do what it is meant to."""
    log = context.reader.controls.controls.log
    has_effective = form.get("effective") is not None
    if isinstance(control, PauseLifted):
        refuse(conflict_of_lift(control, log, has_effective=has_effective))
    elif isinstance(control, PolicyPublished):
        refuse(conflict_of_policy(control, log, has_effective=has_effective))
        if is_published(control, log, has_effective=has_effective):
            raise Problem(
                409,
                f"The policy version {control.version!r} is published already, with the same "
                "terms.",
                code="input.policy_version",
                fix="nothing is to be done",
            )


def refuse(objection: ControlConflict | None) -> None:
    """Raise Problem 409 for an objection."""
    if objection is not None:
        text = f"{objection.problem[0].upper()}{objection.problem[1:]}."
        raise Problem(409, text, code=objection.code, fix=objection.fix, field=objection.field)
