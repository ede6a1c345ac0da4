"""A change that narrows use for some row is always noticed; one that does not is not reported."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import (
    MEMBER,
    PURPOSE,
    WORLD,
    chose,
    day,
    folded,
    histories,
    lift,
    moved,
    pause,
    policy,
    random_event,
    terms,
)

from consentry.domain.controls import Control, OptIns, Regime
from consentry.domain.decisions import Row
from consentry.domain.events import MemberEvent
from consentry.domain.values import AgeBand, Choice, MemberId, Micros, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks.changes import NarrowingDetector, StoredState
from consentry.wire.frames import frame
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4

US = moved("US", 1, on=1)


def _rows() -> list[Row | None]:
    jurisdictions = [None, "HK", "US", "US-CA", "DE", "GB-SCT"]
    rows = [
        Row(jurisdiction=jurisdiction, category=category, collected=collected)
        for jurisdiction in jurisdictions
        for category in (None, "posts", "photos")
        for collected in (None, day(3), day(9))
    ]
    return [None, *rows]


_CONTROLS: list[Control] = [
    policy(901, terms("*"), terms("DE", regime=Regime.OPT_IN), on=0),
    policy(
        902,
        terms("HK", categories=("posts",)),
        terms("US-CA", collected_from=day(5)),
        on=0,
        effective=1,
    ),
    pause(903, "HK", on=2, name="a"),
    pause(904, "EEA", on=2, name="b", categories=("photos",)),
    lift(905, on=12, name="a", opt_ins=OptIns.VOID),
    policy(906, terms("GB", "US", notice_until=day(40)), on=3),
]


class TestNarrowingDetector:
    @given(
        history=histories(size_max=6), seed=st.integers(0, 2**32), picked=st.sets(st.integers(0, 5))
    )
    def test_a_member_excluded_from_any_row_that_was_allowed_is_reported(
        self, history: list[MemberEvent], seed: int, picked: set[int]
    ) -> None:
        """An exclusion that is not reported never reaches somebody's cache."""
        snapshot = Snapshot(PARTITIONS, WORLD)
        for number in sorted(picked | {0}):
            snapshot.apply_control(_CONTROLS[number])
        after = [*history, random_event(Random(seed), len(history) + 1)]
        key, home = MEMBER.encode(), partition_of(MEMBER.encode(), PARTITIONS)
        question = {"purpose": PURPOSE, "known_at": Micros(1 << 62), "stale_detail": ""}

        def answers() -> dict[tuple[Row | None, Micros], bool]:
            return {
                (row, at): snapshot.decide(MemberId(MEMBER), row, at=at, **question).allowed  # type: ignore[arg-type]
                for row in _rows()
                for at in (day(14), day(60))
            }

        for events in (history, after):
            record = folded(*events)
            assert record is not None
            earlier = [(snapshot.records.get(key), snapshot.is_quarantined(key))]
            before = answers()
            snapshot.apply_records(home, [key], [write_record(record, frame(1))])
        narrowing = NarrowingDetector(snapshot, PURPOSE).narrowing(key, earlier, day(14))

        narrowed = [case for case, allowed in answers().items() if before[case] and not allowed]
        assert narrowing is not None or not narrowed

    @pytest.mark.parametrize(
        "event",
        [
            chose(Choice.OPT_IN, 3, on=3),
            chose(Choice.OPT_OUT, 3, on=3, purpose="ads"),
            moved("US", 3, on=3),
            moved("US-CA", 3, on=3),
        ],
    )
    def test_a_change_that_excludes_nobody_is_not_reported(
        self, snapshot: Snapshot, event: MemberEvent
    ) -> None:
        """If every change were reported, the promise above would be worth nothing."""
        home = partition_of(MEMBER.encode(), PARTITIONS)
        earlier: list[StoredState] = []
        for events in ([US], [US, event]):
            record = folded(*events)
            assert record is not None
            earlier = [(snapshot.records.get(MEMBER.encode()), False)]
            snapshot.apply_records(home, [MEMBER.encode()], [write_record(record, frame(1))])

        assert (
            NarrowingDetector(snapshot, PURPOSE).narrowing(MEMBER.encode(), earlier, day(30))
            is None
        )

    def test_a_minor_is_reported_even_where_no_terms_ask_for_age(self, snapshot: Snapshot) -> None:
        """Rows of another jurisdiction may ask for it."""
        home = partition_of(MEMBER.encode(), PARTITIONS)
        for events in ([US], [US, moved("US", 3, on=3, age_band=AgeBand.MINOR)]):
            record = folded(*events)
            assert record is not None
            earlier = [(snapshot.records.get(MEMBER.encode()), False)]
            snapshot.apply_records(home, [MEMBER.encode()], [write_record(record, frame(1))])

        narrowing = NarrowingDetector(snapshot, PURPOSE).narrowing(
            MEMBER.encode(), earlier, day(30)
        )
        assert narrowing == (Reason.OUTSIDE_TERMS, day(30))
