"""A decision in words that a privacy officer can read, from its grounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from consentry.domain.controls import PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.decisions import Decision, Ground
from consentry.domain.events import Fact, FactKind
from consentry.domain.values import Micros, Reason

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def date_text(instant: Micros) -> str:
    """`11 Oct 2024`, with the time where it is not midnight, UTC."""
    moment = _EPOCH + timedelta(microseconds=instant)
    day = f"{moment.day} {moment:%b %Y}"
    return day if (moment.hour, moment.minute, moment.second) == (0, 0, 0) else f"{day} {moment:%H:%M}Z"


def sentences(decision: Decision) -> tuple[str, ...]:
    """One sentence per ground, the deciding one first."""
    return tuple(sentence(ground) for ground in decision.because)


def sentence(ground: Ground) -> str:
    """What a ground says."""
    fact = ground.fact
    if isinstance(fact, str):
        return f"{fact} in {ground.jurisdiction}" if ground.reason is Reason.NO_TERMS and ground.jurisdiction else fact
    if isinstance(fact, PauseImposed):
        by = f"{fact.authority} " if fact.authority else ""
        return (
            f"{_place(ground)} is paused since {date_text(fact.effective_at)} by {by}{fact.basis.lower()} "
            f"({fact.pause} v{fact.version}), recorded {date_text(fact.recorded_at)}"
        )
    if isinstance(fact, PauseLifted):
        return f"the lift of {fact.pause} on {date_text(fact.recorded_at)} voided the earlier opt-in"
    if isinstance(fact, PolicyPublished):
        return _policy(ground, fact)
    return _member_fact(fact)


def _place(ground: Ground) -> str:
    return ground.jurisdiction or "the row"


def _policy(ground: Ground, policy: PolicyPublished) -> str:
    terms = ground.terms
    said = f"policy {policy.version} for {_place(ground)}: {terms.regime if terms else 'no terms'}"
    if terms is None:
        return said
    if ground.reason is Reason.NOTICE_OPEN and terms.notice_until is not None:
        return f"{said}, but its notice is open until {date_text(terms.notice_until)}"
    if ground.reason is Reason.OUTSIDE_TERMS:
        limits = []
        if terms.categories is not None:
            limits.append(f"categories {', '.join(terms.categories)}")
        if terms.collected_from is not None:
            limits.append(f"data collected from {date_text(terms.collected_from)}")
        limits.append(f"minors {terms.minors.lower().replace('_', ' ')}")
        return f"{said}, limited to {'; '.join(limits)}"
    return said


def _member_fact(fact: Fact) -> str:
    when = f"on {date_text(fact.effective_at)}"
    if fact.recorded_at != fact.effective_at:
        when += f", recorded {date_text(fact.recorded_at)}"
    if fact.kind is FactKind.OPTED_OUT:
        return f"the member opted out of {fact.name} {when}"
    if fact.kind is FactKind.OPTED_IN:
        return f"the member opted in to {fact.name} {when}"
    if fact.kind is FactKind.ERASED:
        return f"the member was erased {when}"
    if fact.kind in (FactKind.HELD, FactKind.UNKNOWN):
        return f"the member is held: an event could not be read {when}"
    return f"the member was in {fact.name} {when}"
