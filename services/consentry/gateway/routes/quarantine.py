"""Routes of the gateway for unreadable messages: show them, propose a release or a replay."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from consentry.domain.errors import ConsentryError
from consentry.domain.events import Fact, FactKind, event_tag
from consentry.domain.records import Record
from consentry.gateway.access import Permission
from consentry.gateway.context import GatewayContext, authorize, receive
from consentry.gateway.http.bodies import validated
from consentry.gateway.http.models import AwaitingApproval, Json, ReleaseIn
from consentry.gateway.http.openapi import ACCEPTS_REPETITION, body_of, problems
from consentry.gateway.proposals import Proposal, ProposalKind, ProposalRequest
from consentry.gateway.propose import propose
from consentry.gateway.quarantine import LISTED_MAX, entry_data, observed_version
from consentry.gateway.tokens import event_token, token_of
from consentry.ops.http.bodies import parse_json
from consentry.ops.http.problems import Problem
from consentry.wire.quarantine import QuarantineEntry

router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"])

EntryPath = Annotated[
    str,
    Path(
        pattern="^[0-9]{1,6}-[0-9]{1,18}$",
        description="Partition and offset in member-events, such as 3-1042.",
    ),
]
LimitQuery = Annotated[int, Query(ge=1, le=LISTED_MAX)]


@router.get("", responses=problems(422))
async def get_quarantine(request: Request, limit: LimitQuery = 100) -> Json:
    """List the newest unreadable messages at the gateway, with the states of their members."""
    context, _ = await authorize(request, Permission.READ_QUARANTINE)
    newest = await context.quarantine.run(context.quarantine.entries)
    entries = newest[:limit]
    records: dict[str, Record | ConsentryError | None] = {}
    for entry in entries:
        if entry.member is not None and entry.member not in records:
            records[entry.member] = await _record(context, entry)
    data = []
    for entry in entries:
        record = records.get(entry.member) if entry.member is not None else None
        data.append(entry_data(entry, record, whole=False))
    return {"entries": data}


@router.get("/{entry}", responses=problems(404, 422))
async def get_entry(request: Request, entry: EntryPath) -> Json:
    """Show one unreadable message at the gateway, with its original bytes and headers.

    Both are in hexadecimal digits.
    """
    context, _ = await authorize(request, Permission.READ_QUARANTINE)
    messages = context.quarantine
    message = await _find(context, entry)
    record = await _record(context, message)
    why_not = await messages.run(messages.why_not_replayed, message, context.clock())
    return entry_data(message, record, whole=True) | {"why_not_replayed": why_not or None}


@router.post(
    "/{entry}/release",
    status_code=202,
    response_model=AwaitingApproval,
    responses=problems(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=body_of(ReleaseIn, *ACCEPTS_REPETITION),
)
async def post_release(request: Request, entry: EntryPath) -> Response:
    """Propose at the gateway to release a member, without what the unreadable message said.

    Earlier quarantines of the member end as well.
    """
    return await _propose(request, entry, "release")


@router.post(
    "/{entry}/replay",
    status_code=202,
    response_model=AwaitingApproval,
    responses=problems(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=body_of(ReleaseIn, *ACCEPTS_REPETITION),
)
async def post_replay(request: Request, entry: EntryPath) -> Response:
    """Propose at the gateway to send an unreadable message again and to release the member.

    The original bytes are sent.

    It is for bytes that can be read by now.
    """
    return await _propose(request, entry, "replay")


async def _propose(http_request: Request, name: str, kind: ProposalKind) -> Response:
    context, request = await receive(http_request, Permission.PROPOSE)
    reason = validated(ReleaseIn, parse_json(request.body)).reason
    return await propose(context, request, ReleaseDraft(context, name, kind, reason))


@dataclass(frozen=True, slots=True)
class ReleaseDraft:
    """A request to the gateway to release a quarantined member or to replay a message.

    `name` names the message.
    """

    context: GatewayContext
    name: str
    kind: ProposalKind
    reason: str

    async def proposal(self) -> ProposalRequest:
        """See ProposalDraft. Raises Problem."""
        context, messages = self.context, self.context.quarantine
        entry = await _find(context, self.name)
        record = None if entry.member is None else await context.reader.record(entry.member)
        observed = observed_version(entry, record)
        earlier_entries = await messages.run(messages.open_before, entry, record)
        earlier = [entry.name for entry in earlier_entries]
        if self.kind == "replay":
            if earlier:
                raise Problem(
                    409,
                    f"Earlier messages of the member are open: {', '.join(earlier[:10])}.",
                    code="quarantine.order",
                    fix="replay or release the oldest first: the log's order is kept",
                )
            await check_replay(context, entry)
        opens = [
            f"the quarantine of one member ends, which began at version {observed} "
            f"({entry.error_class})"
        ]
        if earlier:
            opens.append(f"so do their earlier holds: {', '.join(earlier)}")
        if self.kind == "replay":
            opens.append(f"sent again: {await messages.run(messages.describe, entry)}")
        form = {
            "entry": self.name,
            "observed_version": observed,
            "reason": self.reason,
            "earlier": earlier,
        }
        return ProposalRequest(self.kind, form, opens)


async def check_replay(context: GatewayContext, entry: QuarantineEntry) -> None:
    """Check that a message replayed at the gateway means the same as before.

    Raises Problem 409.
    """
    why_not = await context.quarantine.run(
        context.quarantine.why_not_replayed, entry, context.clock()
    )
    if why_not:
        raise Problem(
            409,
            f"The message cannot be replayed: {why_not}.",
            code="quarantine.not_replayable",
            fix="have the producer send the change again under a new event id, then release the "
            "member",
        )


async def carry_out(context: GatewayContext, proposal: Proposal) -> Proposal:
    """Send the approved release or replay of an unreadable message from the gateway.

    Two persons agreed on it.

    A release that the member's record has already is not sent again: under another time it would be
    another event of the same identity, which quarantines the member. Raises Problem where the
    member's quarantine has changed.
    """
    entry = await _find(context, proposal.form["entry"])
    assert entry.member is not None
    record = await context.reader.record(entry.member)
    known = _release_in(record, proposal)
    if known is not None:
        result = await _result_of_known(context, entry, proposal)
        return replace(proposal, decided_at=known.recorded_at, result=result)
    if observed_version(entry, record) != proposal.form["observed_version"]:
        raise Problem(
            409,
            "The member's holds are not what they were when this was proposed.",
            code="quarantine.changed",
            fix="look at it again, and propose it again",
        )
    if proposal.kind == "replay":
        await check_replay(context, entry)
    event_id, places = await context.quarantine.carry_out(entry, proposal)
    last = places[-1]
    result = {
        "event_id": event_id.hex(),
        "token": event_token(context, last),
        "offset": last.offset,
    }
    return replace(proposal, result=result)


def _release_in(record: Record | None, proposal: Proposal) -> Fact | None:
    """Return the release that the proposal became, where the record has it."""
    if record is None:
        return None
    tag = event_tag(proposal.event_id)
    for fact in record.facts:
        if fact.kind is FactKind.RELEASED and fact.version and fact.tag == tag:
            return fact
    return None


async def _result_of_known(
    context: GatewayContext, entry: QuarantineEntry, proposal: Proposal
) -> Json:
    """Return the result of a release that is in the record already.

    Its token asks for what the table has applied.
    """
    offsets: dict[int, int] = {}
    for status in await asyncio.to_thread(context.reader.status):
        next_offset = status["next_offset"]
        if status["partition"] == entry.partition and isinstance(next_offset, int):
            offsets[entry.partition] = next_offset
    return {
        "event_id": proposal.event_id.hex(),
        "token": token_of(context, offsets),
        "offset": None,
    }


async def _find(context: GatewayContext, name: str) -> QuarantineEntry:
    partition, _, offset = name.partition("-")
    entry = None
    if int(partition) < context.reader.partitions:
        entry = await context.quarantine.run(context.quarantine.find, int(partition), int(offset))
    if entry is None:
        raise Problem(
            404,
            "No such message is in quarantine.",
            code="quarantine.unknown",
            fix="GET /v1/quarantine lists them",
        )
    return entry


async def _record(
    context: GatewayContext, entry: QuarantineEntry
) -> Record | ConsentryError | None:
    if entry.member is None:
        return None
    try:
        return await context.reader.record(entry.member)
    except ConsentryError as error:
        return error
