"""The events of the measurements.

They are drawn from a seed, so that each run and each peer gets the same ones.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from consentry.domain.events import ConsentChanged, MemberRelocated
from consentry.domain.values import AgeBand, Choice, MemberId, Micros
from consentry.wire.catalog import Catalog
from consentry.wire.events import write_event

CONSENT_SHARE = 0.8
"""The rest are relocations.

Erasures are left out: each opens a purge order, which is another path's cost.
"""
EVENTS_PER_MEMBER = 4

PURPOSES = ("genai_training", "genai_training", "genai_training", "ranking_models", "feed_research")
_NOTICES = ("2024-09", "2024-11", "2025-11")
_SOURCES = ("settings-page", "mobile", "support")
JURISDICTIONS = (
    *("US", "US-CA", "IN", "BR", "HK", "GB", "CA", "DE"),
    *("FR", "IE", "CH", "AU", "SG", "JP", "MX"),
)

Event = ConsentChanged | MemberRelocated


@dataclass(frozen=True, slots=True)
class Workload:
    """Keys and framed values, in the order in which they are sent."""

    keys: Sequence[bytes]
    values: Sequence[bytes]

    @property
    def members(self) -> int:
        """The number of different members."""
        return len(set(self.keys))

    def first(self, count: int) -> Workload:
        """Return the first events, for a peer that is too slow for all of them."""
        return Workload(self.keys[:count], self.values[:count])


def make_events(
    recorded_at: Sequence[int], *, seed: int, members: int | None = None
) -> list[Event]:
    """Return one event for each instant (microseconds).

    Four fifths are consent changes, the rest relocations.
    """
    random_numbers = random.Random(seed)
    count = members or max(1, len(recorded_at) // EVENTS_PER_MEMBER)
    names = [pseudonym(number, seed=seed) for number in range(count)]
    seen: Counter[MemberId] = Counter()
    events: list[Event] = []
    for instant in recorded_at:
        member = random_numbers.choice(names)
        events.append(make_event(random_numbers, member, Micros(instant), seen[member]))
        seen[member] += 1
    return events


def make_event(
    random_numbers: random.Random, member: MemberId, instant: Micros, version: int
) -> Event:
    """Return the next event of a member whose record has this version."""
    if random_numbers.random() < CONSENT_SHARE:
        return _consent(random_numbers, member, instant, version)
    return _relocation(random_numbers, member, instant)


def encode(events: Sequence[Event], catalog: Catalog) -> Workload:
    """Return the events as a producer sends them."""
    return Workload(
        [event.member.encode() for event in events],
        [write_event(event, catalog) for event in events],
    )


def pseudonym(number: int, *, seed: int) -> MemberId:
    """Return a member id of 20 characters that looks like a platform's URN."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=7).hexdigest()
    return MemberId(f"urn:m:{digest}")


def _consent(
    random_numbers: random.Random, member: MemberId, instant: Micros, version: int
) -> Event:
    choice = Choice.OPT_OUT
    observed_version: int | None = None
    legal_basis = "LEGITIMATE_INTEREST"
    if random_numbers.random() < 0.4:
        choice = Choice.OPT_IN
        observed_version = version
        legal_basis = "CONSENT"
    return ConsentChanged(
        event_id=random_numbers.randbytes(16),
        member=member,
        purpose=random_numbers.choice(PURPOSES),
        choice=choice,
        effective_at=instant,
        recorded_at=instant,
        observed_version=observed_version,
        legal_basis=legal_basis,
        notice_version=random_numbers.choice(_NOTICES),
        source=random_numbers.choice(_SOURCES),
    )


def _relocation(random_numbers: random.Random, member: MemberId, instant: Micros) -> Event:
    return MemberRelocated(
        event_id=random_numbers.randbytes(16),
        member=member,
        jurisdiction=random_numbers.choice(JURISDICTIONS),
        effective_at=instant,
        recorded_at=instant,
        age_band=AgeBand.ADULT if random_numbers.random() < 0.9 else AgeBand.UNKNOWN,
        source=random_numbers.choice(_SOURCES),
    )
