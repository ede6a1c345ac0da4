"""What a service can state of a member, one method each; whoever inherits says what becomes of the
event.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from datetime import datetime
from typing import Generic, TypeVar

from consentry.domain.errors import InvalidInput
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import AgeBand, Choice, MemberId, Micros
from consentry.forms.controls import micros
from consentry.ops.clock import Clock

Answer = TypeVar("Answer")
Instant = datetime | Micros


class Statements(ABC, Generic[Answer]):
    """Opt-outs, opt-ins, relocations and erasures, made into events with an id and both times.

    `effective_at` (an aware datetime, or microseconds since 1970 UTC) is when it holds in the
    world; default: now. `event_id` is for a service that has one already: a repetition has to carry
    the same id *and* the same times, because the same id with other content holds the member, so it
    needs `effective_at` too. Source: docs/producers.md, "Ordering and duplicates".
    """

    def __init__(self, *, source: str, clock: Clock) -> None:
        self._source = source
        self._clock = clock

    @abstractmethod
    def _take(self, event: SentEvent, traceparent: str | None) -> Answer:
        """Do with the event what this class is for."""

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
        """The member opted out, withdrew or objected: always applies."""
        choice = (purpose, Choice.OPT_OUT, None, legal_basis, notice_version, evidence)
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
        """The member opted in;

        `observed_version` is the version of the record that they were shown (0: none).

        A person cancels only what they had seen: an opt-out of a higher version stands.
        """
        choice = (purpose, Choice.OPT_IN, observed_version, legal_basis, notice_version, evidence)
        return self._choose(member, choice, effective_at, event_id, traceparent)

    def undecided(
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
        """What the member wants is not known (any more): takes an opt-in back, and leaves an
        opt-out.
        """
        choice = (purpose, Choice.UNKNOWN, None, legal_basis, notice_version, evidence)
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
        """The member lives in this place (ISO 3166, such as HK or US-CA), or their age band became
        known.
        """
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
        """The member is erased (GDPR 17): it latches, and opens a purge order."""
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
        said: tuple[str, Choice, int | None, str, str, str | None],
        effective_at: Instant | None,
        event_id: uuid.UUID | None,
        traceparent: str | None,
    ) -> Answer:
        identity, effective, recorded = self._stamp(event_id, effective_at)
        purpose, choice, observed_version, legal_basis, notice_version, evidence = said
        event = ConsentChanged(
            event_id=identity,
            member=MemberId(member),
            purpose=purpose,
            choice=choice,
            effective_at=effective,
            recorded_at=recorded,
            observed_version=observed_version,
            legal_basis=legal_basis,
            notice_version=notice_version,
            source=self._source,
            evidence=evidence,
        )
        return self._take(event, traceparent)

    def _stamp(
        self, event_id: uuid.UUID | None, effective_at: Instant | None
    ) -> tuple[bytes, Micros, Micros]:
        """Identity, when it holds, and when it is recorded. Raises InvalidInput."""
        recorded_at = self._clock()
        if effective_at is None:
            if event_id is not None:
                raise InvalidInput(
                    "An event_id was given without effective_at: repeated, the event would carry "
                    "another time, and the "
                    "same id with other content holds the member.",
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
