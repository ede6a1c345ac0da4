"""A gateway request that would widen use: it waits as a proposal for a second person."""

from __future__ import annotations

from typing import Protocol

import structlog
from fastapi import Response

from consentry.domain.wording import iso_text
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.request import AuthorizedRequest
from consentry.gateway.idempotency import claim_request
from consentry.gateway.proposals import ProposalRequest, new_proposal

_LOG = structlog.get_logger(__name__)


class ProposalDraft(Protocol):
    """A control, release or replay in a request to the gateway that becomes a proposal."""

    async def proposal(self) -> ProposalRequest:
        """Return what is to be proposed, checked against what holds now.

        Raises ConsentryError.
        """
        ...


async def propose(
    context: GatewayContext, request: AuthorizedRequest, draft: ProposalDraft
) -> Response:
    """Keep a gateway request as a proposal, once for an Idempotency-Key; answer that it waits.

    The draft is not checked again for a repetition: what was proposed has been looked at, and may
    have been approved since. Raises ConsentryError.
    """
    claim = await claim_request(context.idempotency, request, now=context.clock(), excludes=False)
    if claim.replayed is not None:
        return claim.replayed
    proposal = None
    try:
        if claim.is_repetition:
            # The first request may have ended between its proposal and its answer.
            proposal = await context.proposals.get(claim.attempt.event_id)
        if proposal is None:
            proposal = new_proposal(
                await draft.proposal(),
                proposal_id=claim.attempt.event_id,
                by=request.caller.subject,
                now=claim.recorded_at,
            )
            await context.proposals.put(proposal)
    except Exception:
        await claim.drop()
        raise
    _LOG.info(
        "proposed",
        kind=proposal.kind,
        proposal=proposal.proposal_id,
        by=request.caller.subject,
    )
    return await claim.respond(
        {
            "state": "awaiting_approval",
            "approval_id": proposal.proposal_id,
            "opens": proposal.opens,
            "expires_at": iso_text(proposal.expires_at),
        }
    )
