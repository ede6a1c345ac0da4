"""What the rules are measured with: histories, controls and a table of training data, drawn from a
seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from bench.events import JURISDICTIONS, PURPOSES, Event, make_event, pseudonym
from consentry.domain.controls import (
    Control,
    Controls,
    Minors,
    OptIns,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Regime,
    Scope,
    Terms,
)
from consentry.domain.events import ConsentChanged
from consentry.domain.records import Record, fold
from consentry.domain.values import DAY_MICROS, Choice, MemberId, Micros
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.frames import frame
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partitions_of
from consentry.wire.records import write_record

NOW: Final = Micros(1_764_000_000_000_000)
"""Late in November 2025: when the questions are asked."""
YEAR_MICROS: Final = 365 * DAY_MICROS
PURPOSE: Final = PURPOSES[0]
CATEGORIES: Final = ("posts", "profile", "messages", "likes")
PARTITIONS: Final = 8
FACTS: Final = (3, 6)
"""A member's history has at least and at most so many events."""
COLUMNS: Final = Columns(jurisdiction="country", category="category", collected="collected")

_SCOPES: Final = (("*",), ("EEA", "CH"), ("GB",), ("US",), ("US-CA",), ("HK",), ("CA",), ("EEA",))


def make_histories(count: int, *, seed: int) -> list[list[Event]]:
    """What so many members did in the last year, each in log order."""
    numbers = random.Random(seed)
    histories = []
    for number in range(count):
        member, size = pseudonym(number, seed=seed), numbers.randint(*FACTS)
        instants = sorted(numbers.randrange(NOW - YEAR_MICROS, NOW) for _ in range(size))
        events = [
            make_event(numbers, member, Micros(at), version) for version, at in enumerate(instants)
        ]
        histories.append(events)
    return histories


def fold_all(histories: Sequence[Sequence[Event]]) -> list[Record]:
    """The record of each history that has an event."""
    records = []
    for events in histories:
        record: Record | None = None
        for event in events:
            record = fold(record, event)
        if record is not None:
            records.append(record)
    return records


def make_controls(count: int, *, seed: int, years: float = 2.0) -> list[Control]:
    """Controls in the order in which they were recorded: a tenth policies, else pauses, half of
    them lifted later.

    The first is a policy for everybody, so that there is something to pause.
    """
    numbers = random.Random(seed)
    span = round(years * YEAR_MICROS)
    instants = sorted(Micros(NOW - numbers.randrange(span)) for _ in range(count))
    controls: list[Control] = []
    open_pauses: list[PauseImposed] = []
    for place, at in enumerate(instants):
        drawn = numbers.random()
        if place == 0 or drawn < 0.1:
            controls.append(
                _policy(numbers, place, at, scope=("*",) if place == 0 else numbers.choice(_SCOPES))
            )
        elif drawn < 0.4 and open_pauses:
            controls.append(
                _lift(numbers, place, at, open_pauses.pop(numbers.randrange(len(open_pauses))))
            )
        else:
            open_pauses.append(_pause(numbers, place, at))
            controls.append(open_pauses[-1])
    return controls


def _policy(
    numbers: random.Random, place: int, at: Micros, *, scope: tuple[str, ...]
) -> PolicyPublished:
    terms = tuple(
        Terms(
            jurisdictions=scope,
            purpose=purpose,
            regime=numbers.choice((Regime.DEFAULT_ON, Regime.OPT_IN)),
            collected_from=None if place == 0 else Micros(NOW - YEAR_MICROS),
            minors=Minors.EXCLUDE_UNLESS_ADULT,
            notice_until=Micros(at + 30 * DAY_MICROS),
        )
        for purpose in dict.fromkeys(PURPOSES)
    )
    return PolicyPublished(
        event_id=_identity(place),
        version=f"v{place}",
        terms=terms,
        effective_at=at,
        recorded_at=at,
        source="bench",
    )


def _pause(numbers: random.Random, place: int, at: Micros) -> PauseImposed:
    scope = Scope(
        jurisdictions=(numbers.choice(JURISDICTIONS),),
        purposes=(numbers.choice(PURPOSES),),
        categories=numbers.choice((None, None, CATEGORIES[:1])),
    )
    return PauseImposed(
        event_id=_identity(place),
        pause=f"pause-{place}",
        version=1,
        scope=scope,
        effective_at=at,
        recorded_at=at,
    )


def _lift(numbers: random.Random, place: int, at: Micros, pause: PauseImposed) -> PauseLifted:
    return PauseLifted(
        event_id=_identity(place),
        pause=pause.pause,
        version=pause.version,
        effective_at=at,
        recorded_at=at,
        opt_ins=numbers.choice((OptIns.VOID, OptIns.KEEP)),
    )


def _identity(place: int) -> bytes:
    return place.to_bytes(16, "big")


def controls_of(controls: Sequence[Control]) -> Controls:
    """All of them at once."""
    return Controls(iso_jurisdictions()).after(*controls)


def make_raws(records: Sequence[Record], members: int, *, seed: int) -> dict[bytes, bytes]:
    """What is published of so many members.

    Beyond the records there are, members say what another one says.
    """
    raws = {}
    for number in range(members):
        member = pseudonym(number, seed=seed)
        raws[member.encode()] = write_record(
            replace(records[number % len(records)], member=member), frame(1)
        )
    return raws


def make_view(raws: Mapping[bytes, bytes], controls: Sequence[Control]) -> Snapshot:
    """What a trainer holds that has followed these to their end, and has not been asked
    anything.
    """
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    for control in controls:
        snapshot.apply_control(control)
    apply_raws(snapshot, raws)
    return snapshot


def apply_raws(snapshot: Snapshot, raws: Mapping[bytes, bytes]) -> None:
    """Have the view take records in, as they come from their partitions."""
    keys = list(raws)
    homes = partitions_of(keys, snapshot.partitions)
    for partition in range(snapshot.partitions):
        own = [keys[place] for place in np.flatnonzero(homes == partition).tolist()]
        snapshot.apply_records(partition, own, [raws[key] for key in own])


def opt_out(snapshot: Snapshot, count: int, *, seed: int) -> None:
    """Have so many of the members that the view knows opt out now."""
    numbers = random.Random(seed)
    raws = {}
    for key in numbers.sample(sorted(snapshot.records), count):
        member = MemberId(key.decode())
        event = ConsentChanged(
            event_id=numbers.randbytes(16),
            member=member,
            purpose=PURPOSE,
            choice=Choice.OPT_OUT,
            effective_at=NOW,
            recorded_at=NOW,
        )
        raws[key] = write_record(fold(snapshot.record(member), event), frame(1))
    apply_raws(snapshot, raws)


def make_table(members: Iterable[bytes], rows: int, *, seed: int) -> pa.Table:
    """Rows of these members in any order: where they were written, what they are, when they were
    collected.

    One row in sixteen names no country, one in five no category.
    """
    numbers = np.random.default_rng(seed)

    def drawn(values: Sequence[str | None]) -> pa.Array:
        return pa.array(values, pa.string()).take(pa.array(numbers.integers(0, len(values), rows)))

    collected = pa.array(NOW - numbers.integers(0, 2 * YEAR_MICROS, rows)).cast(pa.timestamp("us"))
    return pa.table(
        {
            "member_id": drawn([member.decode() for member in members]),
            "country": drawn([*JURISDICTIONS, None]),
            "category": drawn([*CATEGORIES, None]),
            "collected": collected,
        }
    )
