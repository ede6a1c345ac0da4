"""Routes by which a second person looks at what would widen use, and lets it take effect or not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Path, Request, Response

from consentry.domain.controls import Control
from consentry.domain.errors import ConsentryError
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.gateway.access import Permission, Principal
from consentry.gateway.context import GatewayContext, authorize
from consentry.gateway.control_drafts import ControlDraft, openings_of
from consentry.gateway.http.models import Json
from consentry.gateway.http.openapi import problems
from consentry.gateway.proposals import (
    Proposal,
    as_in_log,
    being_decided,
    both_persons,
    check_decidable,
)
from consentry.gateway.routes.quarantine import carry_out as release_or_replay
from consentry.gateway.tokens import control_token
from consentry.kafka.clients import DELIVERY_TIMEOUT_MS
from consentry.kafka.sender import TopicPosition
from consentry.ops.http.problems import Problem

router = APIRouter(prefix="/v1/approvals", tags=["approvals"])
_LOG = structlog.get_logger(__name__)
_SENT_MICROS: Final = Micros(2 * DELIVERY_TIMEOUT_MS * 1000)
"""After that what was sent is in the log or never will be; twice the time, as gateways' clocks
differ.
"""

ApprovalPath = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@router.get("", responses=problems())
async def get_approvals(request: Request) -> Json:
    """The newest proposals, and what became of them."""
    context, _ = await authorize(request, Permission.READ_APPROVALS)
    return {"approvals": [_data(one) for one in await context.proposals.newest()]}


@router.get("/{approval_id}", responses=problems(404, 422))
async def get_approval(request: Request, approval_id: ApprovalPath) -> Json:
    """One proposal."""
    context, _ = await authorize(request, Permission.READ_APPROVALS)
    found = await context.proposals.get(approval_id)
    if found is None:
        raise Problem(
            404,
            "There is no such proposal.",
            code="approval.unknown",
            fix="GET /v1/approvals lists them",
        )
    return _data(found)


@router.post("/{approval_id}/approve", responses=problems(404, 409, 422, 504))
async def post_approve(request: Request, approval_id: ApprovalPath) -> Response:
    """Let a proposal take effect, now. Not by who proposed it.

    Repeated after a time-out it takes effect once.
    """
    context, caller = await authorize(request, Permission.APPROVE)
    return await _decide(context, caller, approval_id, _approve)


@router.post("/{approval_id}/reject", responses=problems(404, 409, 422))
async def post_reject(request: Request, approval_id: ApprovalPath) -> Response:
    """Let a proposal come to nothing."""
    context, caller = await authorize(request, Permission.APPROVE)
    return await _decide(context, caller, approval_id, _reject)


async def _decide(
    context: GatewayContext,
    caller: Principal,
    approval_id: str,
    act: Callable[[GatewayContext, Principal, Proposal], Awaitable[Proposal]],
) -> Response:
    """One person at a time decides."""
    ticket = await context.proposals.lock(approval_id)
    if ticket is None:
        raise Problem(
            409,
            "Somebody is deciding this right now.",
            code="approval.busy",
            fix="look again in a moment",
            headers={"Retry-After": "1"},
        )
    try:
        found = await context.proposals.get(approval_id)
        proposal = check_decidable(found, by=caller.subject, now=context.clock())
        decided = await act(context, caller, proposal)
    finally:
        await context.proposals.unlock(approval_id, ticket)
    return Response(json.dumps(_data(decided)), 200, media_type="application/json")


async def _approve(context: GatewayContext, caller: Principal, proposal: Proposal) -> Proposal:
    taken = being_decided(proposal, by=caller.subject, now=context.clock())
    await context.proposals.put(taken)
    try:
        carried = await _carry_out(context, taken)
    except Problem as error:
        if error.status != 504:
            await context.proposals.put(proposal)
        raise
    except ConsentryError:
        await context.proposals.put(proposal)
        raise
    done = replace(carried, state="approved")
    await context.proposals.put(done)
    _LOG.info(
        "approved",
        kind=done.kind,
        proposal=done.proposal_id,
        by=done.decided_by,
        requested_by=done.requested_by,
    )
    return done


async def _carry_out(context: GatewayContext, proposal: Proposal) -> Proposal:
    """Send what was approved, as of the time of the approval; both persons are named in it.

    What the log has already is not sent again, though the store may have forgotten that it was
    approved.
    """
    if proposal.kind in ("release", "replay"):
        return await release_or_replay(context, proposal)
    await context.reader.wait_for_controls()
    known = _in_log(context, proposal)
    if known is not None:
        done = as_in_log(proposal, source=known.source, recorded_at=known.recorded_at)
        return replace(done, result=_result(context, proposal, None))
    draft = ControlDraft(context, proposal.kind, proposal.form, source=both_persons(proposal))
    control = draft.control(proposal.event_id, proposal.decided_at)
    draft.check(control)
    _check_opens(context, control, proposal)
    place = await context.submitter.submit_control(control)
    return replace(proposal, result=_result(context, proposal, place))


def _in_log(context: GatewayContext, proposal: Proposal) -> Control | None:
    """The control that the proposal came to, where the log has it."""
    log = context.reader.controls.controls.log
    return next((known for known in reversed(log) if known.event_id == proposal.event_id), None)


def _result(context: GatewayContext, proposal: Proposal, place: TopicPosition | None) -> Json:
    """What it came to; `place` is None where it stands among the controls that are known here."""
    return {
        "event_id": str(uuid.UUID(bytes=proposal.event_id)),
        "token": control_token(context, place),
        "offset": None if place is None else place.offset,
    }


def _check_opens(context: GatewayContext, control: Control, proposal: Proposal) -> None:
    """Raise Problem 409 where it would open what the proposal did not show: nobody has agreed to
    that.
    """
    opens = openings_of(context, control, now=context.clock())
    if not set(opens.words) <= set(proposal.opens) or opens.digest != proposal.digest:
        raise Problem(
            409,
            "Controls have changed since this was proposed: it would now open something else.",
            code="approval.changed",
            fix="reject it, and propose it again",
        )


async def _reject(context: GatewayContext, caller: Principal, proposal: Proposal) -> Proposal:
    if proposal.state != "open" and not await _never_came(context, proposal):
        raise Problem(
            409,
            "The proposal was approved, and it is not known whether that has taken effect.",
            code="approval.decided",
            fix="approve it again, which tells",
        )
    if _in_log(context, proposal) is not None:
        raise Problem(
            409,
            "The proposal was approved, and has taken effect.",
            code="approval.decided",
            fix="approve it again, which keeps that",
        )
    done = replace(
        proposal, state="rejected", decided_by=caller.subject, decided_at=context.clock()
    )
    await context.proposals.put(done)
    _LOG.info(
        "rejected",
        kind=done.kind,
        proposal=done.proposal_id,
        by=done.decided_by,
        requested_by=done.requested_by,
    )
    return done


async def _never_came(context: GatewayContext, proposal: Proposal) -> bool:
    """Whether what was approved is surely not among the controls: nothing sends it any more, and
    all are known.

    Raises Unavailable where they are not.
    """
    if proposal.kind in ("release", "replay") or context.clock() < proposal.tried_at + _SENT_MICROS:
        return False
    await context.reader.wait_for_controls()
    return _in_log(context, proposal) is None


def _data(proposal: Proposal) -> Json:
    return {
        "approval_id": proposal.proposal_id,
        "kind": proposal.kind,
        "state": proposal.state,
        "asks_for": proposal.form,
        "opens": proposal.opens,
        "requested_by": proposal.requested_by,
        "requested_at": iso_text(proposal.requested_at),
        "expires_at": iso_text(proposal.expires_at),
        "decided_by": proposal.decided_by or None,
        "decided_at": iso_text(proposal.decided_at) if proposal.decided_at else None,
        "result": proposal.result,
    }
