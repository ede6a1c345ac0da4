"""Routes for what could not be read: look at it, and propose to release its member or to send it again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from consentry.domain.errors import ConsentryError
from consentry.domain.events import event_tag
from consentry.domain.records import Record
from consentry.gateway.access import Permission
from consentry.gateway.bodies import parse_json, read_body, validated
from consentry.gateway.desk import propose
from consentry.gateway.models import AwaitingApproval, Json, ReleaseIn
from consentry.gateway.openapi import ACCEPTS_REPETITION, answers, body_of
from consentry.gateway.parts import Parts, caller_of
from consentry.gateway.problems import Problem
from consentry.gateway.proposals import Kind, Proposal
from consentry.gateway.quarantine import LISTED_MAX, entry_data, observed_version
from consentry.wire.quarantined import Entry

router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"])

EntryPath = Annotated[
    str, Path(pattern="^[0-9]{1,6}-[0-9]{1,18}$", description="Partition and offset in member-events, such as 3-1042.")
]
LimitQuery = Annotated[int, Query(ge=1, le=LISTED_MAX)]


@router.get("", responses=answers(422))
async def get_quarantine(request: Request, limit: LimitQuery = 100) -> Json:
    """The newest messages that could not be read, and whether their members are still held."""
    parts, _ = await caller_of(request, Permission.READ_QUARANTINE)
    entries = (await parts.quarantine.aside(parts.quarantine.entries))[:limit]
    records: dict[str, Record | ConsentryError | None] = {}
    for entry in entries:
        if entry.member is not None and entry.member not in records:
            records[entry.member] = await _record(parts, entry)
    return {"entries": [entry_data(one, records.get(one.member or ""), whole=False) for one in entries]}


@router.get("/{entry}", responses=answers(404, 422))
async def get_entry(request: Request, entry: EntryPath) -> Json:
    """One message, with its original bytes and headers in hexadecimal digits."""
    parts, _ = await caller_of(request, Permission.READ_QUARANTINE)
    found = await _find(parts, entry)
    record = await _record(parts, found)
    why_not = await parts.quarantine.aside(parts.quarantine.why_not_replayed, found, parts.clock())
    return entry_data(found, record, whole=True) | {"why_not_replayed": why_not or None}


@router.post(
    "/{entry}/release",
    status_code=202,
    response_model=AwaitingApproval,
    responses=answers(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=body_of(ReleaseIn, *ACCEPTS_REPETITION),
)
async def post_release(request: Request, entry: EntryPath) -> Response:
    """Propose to release the member, without what the message said. Earlier holds of theirs end as well."""
    return await _propose(request, entry, "release")


@router.post(
    "/{entry}/replay",
    status_code=202,
    response_model=AwaitingApproval,
    responses=answers(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=body_of(ReleaseIn, *ACCEPTS_REPETITION),
)
async def post_replay(request: Request, entry: EntryPath) -> Response:
    """Propose to send the original bytes again, now that they can be read, and to release the member."""
    return await _propose(request, entry, "replay")


async def _propose(request: Request, name: str, kind: Kind) -> Response:
    parts, caller = await caller_of(request, Permission.PROPOSE)
    body = await read_body(request)
    reason = validated(ReleaseIn, parse_json(body)).reason

    async def draft() -> tuple[Kind, Json, list[str]]:
        return await _draft(parts, name, kind, reason)

    return await propose(parts, caller, request, body, draft)


async def _draft(parts: Parts, name: str, kind: Kind, reason: str) -> tuple[Kind, Json, list[str]]:
    """What to propose, and what it would open. Raises Problem."""
    entry = await _find(parts, name)
    record = await parts.reader.record(entry.member) if entry.member is not None else None
    observed = observed_version(entry, record)
    earlier = [one.name for one in await parts.quarantine.aside(parts.quarantine.open_before, entry, record)]
    if kind == "replay":
        if earlier:
            raise Problem(
                409,
                f"Earlier messages of the member are open: {', '.join(earlier[:10])}.",
                code="quarantine.order",
                fix="replay or release the oldest first: the log's order is kept",
            )
        await check_replay(parts, entry)
    opens = [f"the hold of one member ends, held since version {observed} ({entry.error_class})"]
    opens += [f"so do their earlier holds: {', '.join(earlier)}"] if earlier else []
    return kind, {"entry": name, "observed_version": observed, "reason": reason, "earlier": earlier}, opens


async def check_replay(parts: Parts, entry: Entry) -> None:
    """Raise Problem 409 where the bytes, sent again, would not mean what they meant."""
    why_not = await parts.quarantine.aside(parts.quarantine.why_not_replayed, entry, parts.clock())
    if why_not:
        raise Problem(
            409,
            f"The message cannot be replayed: {why_not}.",
            code="quarantine.not_replayable",
            fix="have the producer send the change again under a new event id, then release the member",
        )


async def carry_out(parts: Parts, proposal: Proposal) -> Json:
    """Do what two persons agreed on. Raises Problem where it does not hold any more."""
    entry = await _find(parts, proposal.form["entry"])
    assert entry.member is not None
    record = await parts.reader.record(entry.member)
    done = record is not None and any(fact.version for fact in record.facts if fact.tag == _release_tag(proposal))
    if not done and observed_version(entry, record) != proposal.form["observed_version"]:
        raise Problem(
            409,
            "The member's holds are not what they were when this was proposed.",
            code="quarantine.changed",
            fix="look at it again, and propose it again",
        )
    if proposal.kind == "replay" and not done:
        await check_replay(parts, entry)
    event_id, places = await parts.quarantine.carry_out(entry, proposal)
    last = places[-1]
    return {"event_id": event_id.hex(), "token": parts.event_token(last), "offset": last.offset}


def _release_tag(proposal: Proposal) -> bytes:
    return event_tag(proposal.event_id)


async def _find(parts: Parts, name: str) -> Entry:
    partition, _, offset = name.partition("-")
    found = None
    if int(partition) < parts.reader.partitions:
        found = await parts.quarantine.aside(parts.quarantine.find, int(partition), int(offset))
    if found is None:
        raise Problem(
            404, "No such message is in quarantine.", code="quarantine.unknown", fix="GET /v1/quarantine lists them"
        )
    return found


async def _record(parts: Parts, entry: Entry) -> Record | ConsentryError | None:
    if entry.member is None:
        return None
    try:
        return await parts.reader.record(entry.member)
    except ConsentryError as error:
        return error
