"""Routes of the gateway: a second person approves or rejects a proposal that would widen use."""

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
from consentry.gateway.control_drafts import openings_of, read_draft
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
"""After this time what was sent is in the log, or never will be.

It is twice the time that Kafka's client takes, as the clocks of gateways differ.
"""

ApprovalPath = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@router.get("", responses=problems())
async def get_approvals(request: Request) -> Json:
    """List the newest proposals that the gateway keeps, with their states."""
    context, _ = await authorize(request, Permission.READ_APPROVALS)
    proposals = await context.proposals.newest()
    return {"approvals": [_data(proposal) for proposal in proposals]}


@router.get("/{approval_id}", responses=problems(404, 422))
async def get_approval(request: Request, approval_id: ApprovalPath) -> Json:
    """Show one proposal that the gateway keeps for a second person."""
    context, _ = await authorize(request, Permission.READ_APPROVALS)
    proposal = await context.proposals.get(approval_id)
    if proposal is None:
        raise Problem(
            404,
            "There is no such proposal.",
            code="approval.unknown",
            fix="GET /v1/approvals lists them",
        )
    return _data(proposal)


@router.post("/{approval_id}/approve", responses=problems(404, 409, 422, 504))
async def post_approve(request: Request, approval_id: ApprovalPath) -> Response:
    """Approve a proposal at the gateway: it takes effect now.

    Whoever proposed it may not approve it.

    Repeated after a time-out, it takes effect once.
    """
    context, caller = await authorize(request, Permission.APPROVE)
    return await _decide(context, caller, approval_id, _approve)


@router.post("/{approval_id}/reject", responses=problems(404, 409, 422))
async def post_reject(request: Request, approval_id: ApprovalPath) -> Response:
    """Reject a proposal at the gateway, which then never takes effect."""
    context, caller = await authorize(request, Permission.APPROVE)
    return await _decide(context, caller, approval_id, _reject)


async def _decide(
    context: GatewayContext,
    caller: Principal,
    approval_id: str,
    act: Callable[[GatewayContext, Principal, Proposal], Awaitable[Proposal]],
) -> Response:
    """Let one person at a time decide, by `act`, and respond with the decided proposal."""
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
        stored = await context.proposals.get(approval_id)
        proposal = check_decidable(stored, by=caller.subject, now=context.clock())
        decided = await act(context, caller, proposal)
    finally:
        await context.proposals.unlock(approval_id, ticket)
    return Response(json.dumps(_data(decided)), 200, media_type="application/json")


async def _approve(context: GatewayContext, caller: Principal, proposal: Proposal) -> Proposal:
    approving = being_decided(proposal, by=caller.subject, now=context.clock())
    await context.proposals.put(approving)
    try:
        sent = await _carry_out(context, approving)
    except Problem as error:
        if error.status != 504:
            await context.proposals.put(proposal)
        raise
    except ConsentryError:
        await context.proposals.put(proposal)
        raise
    approved = replace(sent, state="approved")
    await context.proposals.put(approved)
    _LOG.info(
        "approved",
        kind=approved.kind,
        proposal=approved.proposal_id,
        by=approved.decided_by,
        requested_by=approved.requested_by,
    )
    return approved


async def _carry_out(context: GatewayContext, proposal: Proposal) -> Proposal:
    """Send what was approved, as of the time of the approval, in the name of both persons.

    What the log has already is not sent again, though the store may have forgotten that it was
    approved. Raises ConsentryError.
    """
    if proposal.kind in ("release", "replay"):
        return await release_or_replay(context, proposal)
    await context.reader.wait_for_controls()
    known = _in_log(context, proposal)
    if known is not None:
        logged = as_in_log(proposal, source=known.source, recorded_at=known.recorded_at)
        return replace(logged, result=_result(context, proposal, None))
    draft = read_draft(context, proposal.kind, proposal.form, source=both_persons(proposal))
    control = draft.control(proposal.event_id, proposal.decided_at)
    draft.check(control)
    _check_opens(context, control, proposal)
    position = await context.submitter.submit_control(control)
    return replace(proposal, result=_result(context, proposal, position))


def _in_log(context: GatewayContext, proposal: Proposal) -> Control | None:
    """Return the control that the proposal became, where the log has it."""
    for control in reversed(context.reader.controls.controls.log):
        if control.event_id == proposal.event_id:
            return control
    return None


def _result(context: GatewayContext, proposal: Proposal, position: TopicPosition | None) -> Json:
    """Return the result of a proposal that is in the log.

    `position` is None for a control that is known here already.
    """
    return {
        "event_id": str(uuid.UUID(bytes=proposal.event_id)),
        "token": control_token(context, position),
        "offset": None if position is None else position.offset,
    }


def _check_opens(context: GatewayContext, control: Control, proposal: Proposal) -> None:
    """Return if the control opens what the proposal showed, exactly.

    Raises Problem 409 where it would open something that nobody has agreed to.
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
    """Keep the proposal as rejected, unless it may have taken effect. Raises Problem 409."""
    if proposal.state != "open" and not await _never_arrived(context, proposal):
        raise Problem(
            409,
            "The proposal was approved, and it is not known whether that has taken effect.",
            code="approval.decided",
            fix="approve it again, which finds out",
        )
    if _in_log(context, proposal) is not None:
        raise Problem(
            409,
            "The proposal was approved, and has taken effect.",
            code="approval.decided",
            fix="approve it again, which keeps that",
        )
    rejected = replace(
        proposal, state="rejected", decided_by=caller.subject, decided_at=context.clock()
    )
    await context.proposals.put(rejected)
    _LOG.info(
        "rejected",
        kind=rejected.kind,
        proposal=rejected.proposal_id,
        by=rejected.decided_by,
        requested_by=rejected.requested_by,
    )
    return rejected


async def _never_arrived(context: GatewayContext, proposal: Proposal) -> bool:
    """Return whether the log surely lacks what was approved.

    Nothing sends it any more, and all controls are known. Raises Unavailable where they are not.
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
