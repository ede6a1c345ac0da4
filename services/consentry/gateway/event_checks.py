"""From what was sent in to the events of the rules, and what speaks against them."""

from __future__ import annotations

import re
from typing import Final

from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import Choice, MemberId, Micros
from consentry.forms.controls import micros
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.models import ConsentChangeIn, ErasureIn, RelocationIn
from consentry.ops.http.problems import Problem

_ETAG: Final = re.compile(r'"?(\d{1,19})"?')
EventIn = ConsentChangeIn | RelocationIn | ErasureIn
AHEAD_MAX: Final = Micros(2_000_000)
"""A sender's clock may be this far ahead of ours, in microseconds; what excludes then binds at
once.
"""


def with_observed(change: ConsentChangeIn, if_match: str | None) -> ConsentChangeIn:
    """The change with the version from If-Match.

    Raises Problem: 400 where two are named, 428 where an OPT_IN has none.
    """
    if if_match is not None:
        found = _ETAG.fullmatch(if_match.strip())
        if found is None or (
            change.observed_version is not None and change.observed_version != int(found[1])
        ):
            raise Problem(
                400,
                "If-Match is not one version in quotes, or differs from observed_version.",
                code="observed.unclear",
                fix='send the ETag of the decision that the person saw, such as "3"',
            )
        if int(found[1]) >= 1 << 63:
            raise Problem(
                400, "If-Match holds no version.", code="observed.unclear", fix='send such as "3"'
            )
        change = change.model_copy(update={"observed_version": int(found[1])})
    if change.choice is Choice.OPT_IN and change.observed_version is None:
        raise Problem(
            428,
            "An OPT_IN does not say which version of the record the person had seen.",
            code="observed.missing",
            fix="show them GET /v1/members/{id}/decision; send its ETag as If-Match, or its "
            "`version`, a number, as "
            "observed_version, which is the only way in a line of a bulk request",
        )
    return change


def check_repeatable(event: EventIn) -> None:
    """Raise Problem 422 for an id without a time: repeated, it would be the same id with other
    content.
    """
    if event.event_id is not None and event.effective_at is None:
        raise Problem(
            422,
            "event_id is given and effective_at is not: repeated later, the event would say "
            "something else.",
            code="event.time_missing",
            fix="send the same effective_at with each repetition, or use Idempotency-Key instead "
            "of event_id",
            field="effective_at",
        )


def check_ahead(event: EventIn, now: Micros) -> None:
    """Raise Problem 422 for what excludes, but only later, and does not say that it is meant so.

    A clock or a time zone that is wrong would otherwise leave the member in use for that long, and
    nobody told.
    """
    if (
        not binds_at_once(event)
        or event.effective_at is None
        or micros(event.effective_at) - now <= AHEAD_MAX
    ):
        return
    raise Problem(
        422,
        "effective_at lies ahead: the event would be accepted now and exclude nobody before then.",
        code="event.ahead",
        fix="leave effective_at out to have it bind now; where it is meant for later, send "
        '"announced": true',
        field="effective_at",
    )


def binds_at_once(event: EventIn) -> bool:
    """Whether it excludes, and is not announced for later."""
    if isinstance(event, RelocationIn) or event.announced:
        return False
    return isinstance(event, ErasureIn) or event.choice is not Choice.OPT_IN


def check_purpose(context: GatewayContext, change: ConsentChangeIn) -> tuple[str, ...]:
    """Warnings about the purpose. Raises Problem 422 for an OPT_IN to what no policy names."""
    known = context.reader.controls.controls.purposes
    if change.purpose in known:
        return ()
    if change.choice is Choice.OPT_IN:
        raise Problem(
            422,
            "No policy has terms for this purpose: nobody can have been shown any to opt in to.",
            code="purpose.unknown",
            fix=f"use one of {', '.join(known)[:400]}" if known else "publish a policy first",
            field="purpose",
        )
    return ("no policy has terms for this purpose; was another one meant?",)


async def check_observed(context: GatewayContext, change: ConsentChangeIn) -> None:
    """Raise Problem 412 where an opt-out stands that the person cannot have seen: their opt-in
    would not count.
    """
    standing = await context.reader.version_of_opt_out(MemberId(change.member_id), change.purpose)
    if standing is not None and standing > (change.observed_version or 0):
        raise Problem(
            412,
            "The person opted out since the version that they saw; this opt-in would not cancel "
            "that.",
            code="observed.outdated",
            fix="show them what holds now (GET /v1/members/{id}/decision), and ask again",
        )


def to_event(data: EventIn, source: str, event_id: bytes, recorded_at: Micros) -> SentEvent:
    """The event that was sent in, recorded now by this producer."""
    effective_at = recorded_at if data.effective_at is None else micros(data.effective_at)
    if binds_at_once(data):
        effective_at = min(effective_at, recorded_at)
    member = MemberId(data.member_id)
    if isinstance(data, ConsentChangeIn):
        return ConsentChanged(
            event_id=event_id,
            member=member,
            purpose=data.purpose,
            choice=data.choice,
            effective_at=effective_at,
            recorded_at=recorded_at,
            observed_version=data.observed_version,
            legal_basis=data.legal_basis.value,
            notice_version=data.notice_version,
            source=source,
            evidence=data.evidence,
        )
    if isinstance(data, RelocationIn):
        return MemberRelocated(
            event_id=event_id,
            member=member,
            jurisdiction=data.jurisdiction,
            effective_at=effective_at,
            recorded_at=recorded_at,
            age_band=data.age_band,
            source=source,
        )
    return MemberErased(
        event_id=event_id,
        member=member,
        effective_at=effective_at,
        recorded_at=recorded_at,
        source=source,
    )
