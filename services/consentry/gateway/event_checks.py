"""The gateway's checks of member events that were sent in, and the events made of them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Final

from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import Choice, MemberId, Micros, micros
from consentry.gateway.accept import PreparedEvent
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.models import ConsentChangeIn, ErasureIn, RelocationIn
from consentry.gateway.idempotency import IdempotencyClaim
from consentry.ops.http.problems import Problem

_ETAG: Final = re.compile(r'"?(\d{1,19})"?')
_VERSION_END: Final = 1 << 63
EventIn = ConsentChangeIn | RelocationIn | ErasureIn
AHEAD_MAX: Final = Micros(2_000_000)
"""A sender's clock may be this far ahead of ours, in microseconds; what excludes then binds at
once.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEventDraft:
    """A member event that the gateway has checked, before it has an identity and a time."""

    context: GatewayContext
    fields: EventIn
    source: str
    event_id: uuid.UUID | None
    excludes: bool
    binds_at_once: bool
    """True for an event that excludes, and is not announced for later."""
    warnings: tuple[str, ...]

    async def prepare(self, claim: IdempotencyClaim) -> PreparedEvent:
        """See Draft. Raises Problem 412 as `_check_observed`."""
        event = self.event(claim.event_id, claim.recorded_at)
        if isinstance(self.fields, ConsentChangeIn) and not self.excludes:
            await _check_observed(self.context, self.fields)
        return PreparedEvent(event, self.warnings)

    def event(self, event_id: bytes, recorded_at: Micros) -> SentEvent:
        """Return the event as this producer's, recorded now."""
        fields = self.fields
        effective_at = recorded_at if fields.effective_at is None else micros(fields.effective_at)
        if self.binds_at_once:
            effective_at = min(effective_at, recorded_at)
        member = MemberId(fields.member_id)
        if isinstance(fields, ConsentChangeIn):
            return ConsentChanged(
                event_id=event_id,
                member=member,
                purpose=fields.purpose,
                choice=fields.choice,
                effective_at=effective_at,
                recorded_at=recorded_at,
                observed_version=fields.observed_version,
                legal_basis=fields.legal_basis.value,
                notice_version=fields.notice_version,
                source=self.source,
                evidence=fields.evidence,
            )
        if isinstance(fields, RelocationIn):
            return MemberRelocated(
                event_id=event_id,
                member=member,
                jurisdiction=fields.jurisdiction,
                effective_at=effective_at,
                recorded_at=recorded_at,
                age_band=fields.age_band,
                source=self.source,
            )
        return MemberErased(
            event_id=event_id,
            member=member,
            effective_at=effective_at,
            recorded_at=recorded_at,
            source=self.source,
        )


def check_event(
    context: GatewayContext, fields: EventIn, *, source: str, if_match: str | None, now: Micros
) -> MemberEventDraft:
    """Check a member event that was sent to the gateway, as far as no store has to be asked.

    Raises Problem 400, 422 and 428.
    """
    if isinstance(fields, ConsentChangeIn):
        fields = _with_observed(fields, if_match)
    binds_at_once = _binds_at_once(fields)
    _check_repeatable(fields)
    if binds_at_once:
        _check_ahead(fields, now)
    warnings: tuple[str, ...] = ()
    if isinstance(fields, ConsentChangeIn):
        warnings = _check_purpose(context, fields)
    return MemberEventDraft(
        context=context,
        fields=fields,
        source=source,
        event_id=fields.event_id,
        excludes=_may_only_exclude(fields),
        binds_at_once=binds_at_once,
        warnings=warnings,
    )


def _may_only_exclude(fields: EventIn) -> bool:
    """Return whether the event can only take use away."""
    if isinstance(fields, ConsentChangeIn):
        return fields.choice is not Choice.OPT_IN
    return isinstance(fields, ErasureIn)


def _binds_at_once(fields: EventIn) -> bool:
    """Return whether the event excludes, and is not announced for later."""
    if isinstance(fields, RelocationIn) or fields.announced:
        return False
    return _may_only_exclude(fields)


def _with_observed(change: ConsentChangeIn, if_match: str | None) -> ConsentChangeIn:
    """Return the change with the version of If-Match.

    Raises Problem: 400 where two are named, 428 where an OPT_IN has none.
    """
    if if_match is not None:
        version = _version_of(if_match)
        if change.observed_version not in (None, version):
            raise _unclear_version()
        change = change.model_copy(update={"observed_version": version})
    if change.choice is Choice.OPT_IN and change.observed_version is None:
        raise Problem(
            428,
            "An OPT_IN does not say which version of the record the person had seen.",
            code="observed.missing",
            fix="show them GET /v1/members/{id}/decision; send its ETag as If-Match, or its "
            "`version`, a number, as observed_version, which is the only way in a line of a bulk "
            "request",
        )
    return change


def _version_of(if_match: str) -> int:
    """Return the version that If-Match holds. Raises Problem 400."""
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise _unclear_version()
    version = int(match[1])
    if version >= _VERSION_END:
        raise Problem(
            400, "If-Match holds no version.", code="observed.unclear", fix='send such as "3"'
        )
    return version


def _unclear_version() -> Problem:
    return Problem(
        400,
        "If-Match is not one version in quotes, or differs from observed_version.",
        code="observed.unclear",
        fix='send the ETag of the decision that the person saw, such as "3"',
    )


def _check_repeatable(fields: EventIn) -> None:
    """Return if a repetition of the event says the same.

    Raises Problem 422 for an id without a time: repeated, it would be the same id with other
    content.
    """
    if fields.event_id is not None and fields.effective_at is None:
        raise Problem(
            422,
            "event_id is given and effective_at is not: repeated later, the event would say "
            "something else.",
            code="event.time_missing",
            fix="send the same effective_at with each repetition, or use Idempotency-Key instead "
            "of event_id",
            field="effective_at",
        )


def _check_ahead(fields: EventIn, now: Micros) -> None:
    """Return if an event that excludes binds now.

    Raises Problem 422 for one that would bind later without saying so: a clock or a time zone that
    is wrong would otherwise leave the member in use until then, and nobody would notice.
    """
    if fields.effective_at is not None and micros(fields.effective_at) - now > AHEAD_MAX:
        raise Problem(
            422,
            "effective_at lies ahead: the event would be accepted now and exclude nobody before "
            "then.",
            code="event.ahead",
            fix="leave effective_at out to have it bind now; where it is meant for later, send "
            '"announced": true',
            field="effective_at",
        )


def _check_purpose(context: GatewayContext, change: ConsentChangeIn) -> tuple[str, ...]:
    """Return warnings about the purpose.

    Raises Problem 422 for an OPT_IN to a purpose that no policy names.
    """
    purposes = context.reader.controls.controls.purposes
    if change.purpose in purposes:
        return ()
    if change.choice is Choice.OPT_IN:
        fix = f"use one of {', '.join(purposes)[:400]}" if purposes else "publish a policy first"
        raise Problem(
            422,
            "No policy has terms for this purpose: nobody can have been shown any to opt in to.",
            code="purpose.unknown",
            fix=fix,
            field="purpose",
        )
    return ("no policy has terms for this purpose; was another one meant?",)


async def _check_observed(context: GatewayContext, change: ConsentChangeIn) -> None:
    """Return if the opt-in can count.

    Raises Problem 412 where an opt-out stands that the person cannot have seen.
    """
    opt_out_version = await context.reader.version_of_opt_out(
        MemberId(change.member_id), change.purpose
    )
    if opt_out_version is not None and opt_out_version > (change.observed_version or 0):
        raise Problem(
            412,
            "The person opted out since the version that they saw; this opt-in would not cancel "
            "that.",
            code="observed.outdated",
            fix="show them what holds now (GET /v1/members/{id}/decision), and ask again",
        )
