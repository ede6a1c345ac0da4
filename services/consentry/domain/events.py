"""The events of members as the rules take them: choices, moves, erasures, quarantines.

Each event has the fact that a record keeps of it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from consentry.domain.values import AgeBand, Choice, MemberId, Micros


class FactKind(enum.IntEnum):
    """The kind of a fact that the rules read in a member's record.

    The numbers are the order of symbols in ConsentRecord.avsc.
    """

    ERASED = 0
    QUARANTINED = 1
    OPTED_OUT = 2
    RELOCATED_MINOR = 3
    RELOCATED_AGE_UNKNOWN = 4
    CHOICE_UNKNOWN = 5
    RELOCATED_ADULT = 6
    RELEASED = 7
    OPTED_IN = 8
    UNKNOWN = 9


CHOICE_KINDS = {
    Choice.OPT_OUT: FactKind.OPTED_OUT,
    Choice.OPT_IN: FactKind.OPTED_IN,
    Choice.UNKNOWN: FactKind.CHOICE_UNKNOWN,
}
AGE_BAND_KINDS = {
    AgeBand.MINOR: FactKind.RELOCATED_MINOR,
    AgeBand.ADULT: FactKind.RELOCATED_ADULT,
    AgeBand.UNKNOWN: FactKind.RELOCATED_AGE_UNKNOWN,
}
AGE_BANDS = {kind: band for band, kind in AGE_BAND_KINDS.items()}
CHOICE_FACTS = frozenset(CHOICE_KINDS.values())
RELOCATION_FACTS = frozenset(AGE_BANDS)
CLAMPED_FACTS = (
    frozenset({FactKind.ERASED, FactKind.OPTED_OUT, FactKind.CHOICE_UNKNOWN}) | RELOCATION_FACTS
)
"""What holds from when the broker took it, where the sender's clock was ahead of the broker's."""
QUARANTINE_FACTS = frozenset({FactKind.QUARANTINED, FactKind.RELEASED, FactKind.UNKNOWN})
"""What begins or ends a quarantine; a kind that is not known is read as a quarantine."""


class Fact(NamedTuple):
    """One recorded fact of a member, as the rules read it.

    `version` is the record's version that the fact made, 0 before folding. `name` is the purpose of
    a choice or the jurisdiction of a relocation. `tag` is eight bytes of the event's identity, so
    that a repeated event is recognised. Times are microseconds since 1970-01-01 UTC.
    """

    kind: FactKind
    effective_at: Micros
    recorded_at: Micros
    tag: bytes
    observed_version: int | None = None
    name: str = ""
    version: int = 0

    def says_the_same(self, other: Fact) -> bool:
        """Return True if both facts are of the same event, whatever version each made.

        `recorded_at` may differ: a gateway stamps every attempt, and a fast clock is clamped to
        each append, where `effective_at` is clamped with it. The first one stands, so a retry can
        never outlive a lift.
        """
        if (self.kind, *self[3:6]) != (other.kind, *other[3:6]):
            return False
        return self.effective_at == other.effective_at or self._was_clamped_before(other)

    def _was_clamped_before(self, other: Fact) -> bool:
        """Return whether both can be one message appended twice, first ahead of the broker's clock.

        Then the one recorded first holds from when it was recorded, and the other from then or
        later. The one that came first in the log is kept.
        """
        first, again = sorted((self, other), key=lambda fact: fact.recorded_at)
        return (
            self.kind in CLAMPED_FACTS
            and first.recorded_at < again.recorded_at
            and first.effective_at == first.recorded_at < again.effective_at
        )

    def binds(self, later: Fact) -> bool:
        """Return True if this erasure binds a later fact: unless it is dated ahead of that."""
        return self.effective_at <= max(self.recorded_at, later.recorded_at)


def event_tag(event_id: bytes) -> bytes:
    """Return the tag by which the rules know a repeated event, from its 16-byte id.

    It is the two halves of the id, combined by exclusive or.
    """
    return (int.from_bytes(event_id[:8], "big") ^ int.from_bytes(event_id[8:], "big")).to_bytes(
        8, "big"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentChanged:
    """An event for the rules: a member chose for a purpose."""

    event_id: bytes
    member: MemberId
    purpose: str
    choice: Choice
    effective_at: Micros
    recorded_at: Micros
    observed_version: int | None = None
    legal_basis: str = "CONSENT"
    notice_version: str = ""
    source: str = ""
    evidence: str | None = None

    def fact(self) -> Fact:
        """Return the fact that the member's record keeps of this event."""
        kind = CHOICE_KINDS[self.choice]
        tag = event_tag(self.event_id)
        return Fact(
            kind, self.effective_at, self.recorded_at, tag, self.observed_version, self.purpose
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRelocated:
    """An event for the rules: a member's place became known, or their age band."""

    event_id: bytes
    member: MemberId
    jurisdiction: str
    effective_at: Micros
    recorded_at: Micros
    age_band: AgeBand = AgeBand.UNKNOWN
    source: str = ""

    def fact(self) -> Fact:
        """Return the fact that the member's record keeps of this event."""
        kind = AGE_BAND_KINDS[self.age_band]
        return Fact(
            kind,
            self.effective_at,
            self.recorded_at,
            event_tag(self.event_id),
            None,
            self.jurisdiction,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberErased:
    """An event for the rules: a member was erased (GDPR 17)."""

    event_id: bytes
    member: MemberId
    effective_at: Micros
    recorded_at: Micros
    source: str = ""

    def fact(self) -> Fact:
        """Return the fact that the member's record keeps of this event."""
        return Fact(FactKind.ERASED, self.effective_at, self.recorded_at, event_tag(self.event_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class EventUnreadable:
    """An event for the rules: an unreadable message has this member's key: quarantine."""

    event_id: bytes
    member: MemberId
    recorded_at: Micros

    def fact(self) -> Fact:
        """Return the fact that the member's record keeps of this event."""
        return Fact(
            FactKind.QUARANTINED, self.recorded_at, self.recorded_at, event_tag(self.event_id)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReleased:
    """An event for the rules: an operator ended the quarantine of a member.

    It came after replaying or dismissing the unreadable event.

    `observed_version` is the version of the record that the operator had looked at: a quarantine
    above it was not looked at, and stays. None releases from every quarantine before it.
    """

    event_id: bytes
    member: MemberId
    effective_at: Micros
    recorded_at: Micros
    observed_version: int | None = None
    source: str = ""

    def fact(self) -> Fact:
        """Return the fact that the member's record keeps of this event."""
        tag = event_tag(self.event_id)
        return Fact(
            FactKind.RELEASED, self.effective_at, self.recorded_at, tag, self.observed_version
        )


SentEvent = ConsentChanged | MemberRelocated | MemberErased | MemberReleased
"""What producers and operators send."""

MemberEvent = SentEvent | EventUnreadable
