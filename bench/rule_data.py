"""The data for measuring the rules: histories, controls and a table of training data.

All of it is drawn from a seed.
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
"""The time of the questions: late in November 2025."""
YEAR_MICROS: Final = 365 * DAY_MICROS
PURPOSE: Final = PURPOSES[0]
CATEGORIES: Final = ("posts", "profile", "messages", "likes")
PARTITIONS: Final = 8
FACTS: Final = (3, 6)
"""The lowest and the highest number of events in a member's history."""
COLUMNS: Final = Columns(jurisdiction="country", category="category", collected="collected")

_SCOPES: Final = (("*",), ("EEA", "CH"), ("GB",), ("US",), ("US-CA",), ("HK",), ("CA",), ("EEA",))


def make_histories(count: int, *, seed: int) -> list[list[Event]]:
    """Return the last year's events of `count` members, each history in log order."""
    numbers = random.Random(seed)
    histories: list[list[Event]] = []
    for number in range(count):
        member = pseudonym(number, seed=seed)
        size = numbers.randint(*FACTS)
        instants = sorted(numbers.randrange(NOW - YEAR_MICROS, NOW) for _ in range(size))
        events: list[Event] = []
        for version, at in enumerate(instants):
            events.append(make_event(numbers, member, Micros(at), version))
        histories.append(events)
    return histories


def fold_all(histories: Sequence[Sequence[Event]]) -> list[Record]:
    """Return the record of each history that has an event."""
    records = []
    for events in histories:
        record: Record | None = None
        for event in events:
            record = fold(record, event)
        if record is not None:
            records.append(record)
    return records


def make_controls(count: int, *, seed: int, years: float = 2.0) -> list[Control]:
    """Return controls in the order in which they were recorded.

    A tenth are policies, the others pauses, of which half are lifted later. The first is a policy
    for everybody, so that there is something to pause.
    """
    numbers = random.Random(seed)
    span = round(years * YEAR_MICROS)
    instants = sorted(Micros(NOW - numbers.randrange(span)) for _ in range(count))
    controls: list[Control] = []
    open_pauses: list[PauseImposed] = []
    for number, at in enumerate(instants):
        drawn = numbers.random()
        if number == 0:
            controls.append(_policy(numbers, number, at, scope=("*",)))
        elif drawn < 0.1:
            controls.append(_policy(numbers, number, at, scope=numbers.choice(_SCOPES)))
        elif drawn < 0.4 and open_pauses:
            lifted = open_pauses.pop(numbers.randrange(len(open_pauses)))
            controls.append(_lift(numbers, number, at, lifted))
        else:
            pause = _pause(numbers, number, at)
            open_pauses.append(pause)
            controls.append(pause)
    return controls


def _policy(
    numbers: random.Random, number: int, at: Micros, *, scope: tuple[str, ...]
) -> PolicyPublished:
    collected_from: Micros | None = None
    if number != 0:
        collected_from = Micros(NOW - YEAR_MICROS)
    terms: list[Terms] = []
    for purpose in dict.fromkeys(PURPOSES):
        terms_of_purpose = Terms(
            jurisdictions=scope,
            purpose=purpose,
            regime=numbers.choice((Regime.DEFAULT_ON, Regime.OPT_IN)),
            collected_from=collected_from,
            minors=Minors.EXCLUDE_UNLESS_ADULT,
            notice_until=Micros(at + 30 * DAY_MICROS),
        )
        terms.append(terms_of_purpose)
    return PolicyPublished(
        event_id=_identity(number),
        version=f"v{number}",
        terms=tuple(terms),
        effective_at=at,
        recorded_at=at,
        source="bench",
    )


def _pause(numbers: random.Random, number: int, at: Micros) -> PauseImposed:
    scope = Scope(
        jurisdictions=(numbers.choice(JURISDICTIONS),),
        purposes=(numbers.choice(PURPOSES),),
        categories=numbers.choice((None, None, CATEGORIES[:1])),
    )
    return PauseImposed(
        event_id=_identity(number),
        pause=f"pause-{number}",
        version=1,
        scope=scope,
        effective_at=at,
        recorded_at=at,
    )


def _lift(numbers: random.Random, number: int, at: Micros, pause: PauseImposed) -> PauseLifted:
    return PauseLifted(
        event_id=_identity(number),
        pause=pause.pause,
        version=pause.version,
        effective_at=at,
        recorded_at=at,
        opt_ins=numbers.choice((OptIns.VOID, OptIns.KEEP)),
    )


def _identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


def controls_of(controls: Sequence[Control]) -> Controls:
    """Return the state after all of these controls."""
    return Controls(iso_jurisdictions()).after(*controls)


def make_raws(records: Sequence[Record], members: int, *, seed: int) -> dict[bytes, bytes]:
    """Return the published records of `members` members.

    If there are fewer records than members, several members have equal facts.
    """
    raws: dict[bytes, bytes] = {}
    for number in range(members):
        member = pseudonym(number, seed=seed)
        record = replace(records[number % len(records)], member=member)
        raws[member.encode()] = write_record(record, frame(1))
    return raws


def make_snapshot(raws: Mapping[bytes, bytes], controls: Sequence[Control]) -> Snapshot:
    """Return the snapshot of a trainer that has read these and has not decided anything yet."""
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    for control in controls:
        snapshot.apply_control(control)
    apply_raws(snapshot, raws)
    return snapshot


def apply_raws(snapshot: Snapshot, raws: Mapping[bytes, bytes]) -> None:
    """Apply records to the snapshot, partition by partition."""
    keys = list(raws)
    homes = partitions_of(keys, snapshot.partitions)
    for partition in range(snapshot.partitions):
        own = [keys[index] for index in np.flatnonzero(homes == partition).tolist()]
        snapshot.apply_records(partition, own, [raws[key] for key in own])


def opt_out(snapshot: Snapshot, count: int, *, seed: int) -> None:
    """Apply an opt-out of now to `count` of the snapshot's members."""
    numbers = random.Random(seed)
    raws: dict[bytes, bytes] = {}
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
    """Return rows of these members in random order, with country, category and collection time.

    One row in sixteen has no country, one in five no category.
    """
    numbers = np.random.default_rng(seed)

    def drawn(values: Sequence[str | None]) -> pa.Array:
        indexes = numbers.integers(0, len(values), rows)
        return pa.array(values, pa.string()).take(pa.array(indexes))

    collected = pa.array(NOW - numbers.integers(0, 2 * YEAR_MICROS, rows)).cast(pa.timestamp("us"))
    return pa.table(
        {
            "member_id": drawn([member.decode() for member in members]),
            "country": drawn([*JURISDICTIONS, None]),
            "category": drawn([*CATEGORIES, None]),
            "collected": collected,
        }
    )
