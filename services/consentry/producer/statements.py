"""The statements that a producer can send about a member, one method each.

A subclass decides what is done with the event: it is sent, or written into an outbox.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

from consentry.domain.errors import InvalidInput
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import AgeBand, Choice, MemberId, Micros, micros
from consentry.ops.clock import Clock

Answer = TypeVar("Answer")
Instant = datetime | Micros


class _ChoiceFields(NamedTuple):
    """The fields of a ConsentChanged that only a choice has."""

    purpose: str
    choice: Choice
    observed_version: int | None
    legal_basis: str
    notice_version: str
    evidence: str | None


class Statements(ABC, Generic[Answer]):
    """The producer SDK's methods for opt-outs, opt-ins, relocations and erasures.

    It turns them into events with an id and both times.

    `effective_at` (an aware datetime, or microseconds since 1970 UTC) is when the statement holds
    in the world; default: now. `event_id` is for a service that has an id already. A repetition has
    to carry the same id *and* the same times, because the same id with other content quarantines
    the member; so `event_id` needs `effective_at` too.
    Source: docs/producers.md, "Ordering and duplicates".
    """

    def __init__(self, *, source: str, clock: Clock) -> None:
        self._source = source
        self._clock = clock

    @abstractmethod
    def _take(self, event: SentEvent, traceparent: str | None) -> Answer:
        """Send or keep the event, as this class does."""

    def opt_out(
        self,
        member: str,
        purpose: str,
        *,
        effective_at: Instant | None = None,
        event_id: uuid.UUID | None = None,
        legal_basis: str = "CONSENT",
        notice_version: str = "",
        evidence: str | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """State that the member opted out, withdrew or objected; it always applies."""
        choice = _ChoiceFields(purpose, Choice.OPT_OUT, None, legal_basis, notice_version, evidence)
        return self._choose(member, choice, effective_at, event_id, traceparent)

    def opt_in(
        self,
        member: str,
        purpose: str,
        *,
        observed_version: int,
        effective_at: Instant | None = None,
        event_id: uuid.UUID | None = None,
        legal_basis: str = "CONSENT",
        notice_version: str = "",
        evidence: str | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """State that the member opted in.

        `observed_version` is the version of the record that they were shown (0: none). A person
        cancels only what they had seen: an opt-out of a higher version stands.
        """
        choice = _ChoiceFields(
            purpose, Choice.OPT_IN, observed_version, legal_basis, notice_version, evidence
        )
        return self._choose(member, choice, effective_at, event_id, traceparent)

    def clear_choice(
        self,
        member: str,
        purpose: str,
        *,
        effective_at: Instant | None = None,
        event_id: uuid.UUID | None = None,
        legal_basis: str = "CONSENT",
        notice_version: str = "",
        evidence: str | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """State that the member's wish is not known, or not any more.

        This takes an opt-in back, and leaves an opt-out as it is.
        """
        choice = _ChoiceFields(purpose, Choice.UNKNOWN, None, legal_basis, notice_version, evidence)
        return self._choose(member, choice, effective_at, event_id, traceparent)

    def relocate(
        self,
        member: str,
        jurisdiction: str,
        *,
        age_band: AgeBand = AgeBand.UNKNOWN,
        effective_at: Instant | None = None,
        event_id: uuid.UUID | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """State where the member lives (ISO 3166, such as HK or US-CA), and their age band."""
        identity, effective, recorded = self._stamp(event_id, effective_at)
        event = MemberRelocated(
            event_id=identity,
            member=MemberId(member),
            jurisdiction=jurisdiction,
            effective_at=effective,
            recorded_at=recorded,
            age_band=AgeBand(age_band),
            source=self._source,
        )
        return self._take(event, traceparent)

    def erase(
        self,
        member: str,
        *,
        effective_at: Instant | None = None,
        event_id: uuid.UUID | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """State that the member is erased (GDPR 17): this is final, and opens a purge order."""
        identity, effective, recorded = self._stamp(event_id, effective_at)
        event = MemberErased(
            event_id=identity,
            member=MemberId(member),
            effective_at=effective,
            recorded_at=recorded,
            source=self._source,
        )
        return self._take(event, traceparent)

    def _choose(
        self,
        member: str,
        choice: _ChoiceFields,
        effective_at: Instant | None,
        event_id: uuid.UUID | None,
        traceparent: str | None,
    ) -> Answer:
        identity, effective, recorded = self._stamp(event_id, effective_at)
        event = ConsentChanged(
            event_id=identity,
            member=MemberId(member),
            purpose=choice.purpose,
            choice=choice.choice,
            effective_at=effective,
            recorded_at=recorded,
            observed_version=choice.observed_version,
            legal_basis=choice.legal_basis,
            notice_version=choice.notice_version,
            source=self._source,
            evidence=choice.evidence,
        )
        return self._take(event, traceparent)

    def _stamp(
        self, event_id: uuid.UUID | None, effective_at: Instant | None
    ) -> tuple[bytes, Micros, Micros]:
        """Return the event's id, when it holds and when it is recorded. Raises InvalidInput."""
        recorded_at = self._clock()
        if effective_at is None:
            if event_id is not None:
                raise InvalidInput(
                    "An event_id was given without effective_at: repeated, the event would carry "
                    "another time, and the same id with other content quarantines the member.",
                    code="producer.id_without_time",
                    fix="give effective_at too, the same for every repetition, or leave event_id "
                    "out",
                )
            return uuid.uuid4().bytes, recorded_at, recorded_at
        if isinstance(effective_at, datetime):
            if effective_at.tzinfo is None:
                raise InvalidInput(
                    f"The time {effective_at.isoformat()} has no offset, so it is not one instant.",
                    code="producer.naive_time",
                    fix="give an aware datetime, such as datetime.now(UTC)",
                )
            effective_at = micros(effective_at)
        return (event_id or uuid.uuid4()).bytes, effective_at, recorded_at
