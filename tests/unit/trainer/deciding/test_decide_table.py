"""A whole table at once, again and again while the world changes: every answer is the one that its
row gets alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import (
    PURPOSE,
    WORLD,
    chose,
    day,
    folded,
    lift,
    moved,
    pause,
    policy,
    random_event,
    released,
    terms,
    unreadable,
)

from consentry.domain.controls import Control, Minors, OptIns, Regime
from consentry.domain.decisions import Decision, MemberState, Row, decide_state
from consentry.domain.events import Fact, FactKind, MemberEvent
from consentry.domain.records import Record
from consentry.domain.values import MEMBER_ID_PATTERN, Choice, MemberId, Micros, Reason
from consentry.record_index import FoundRecords, Keys, RecordIndex
from consentry.record_index import index as store
from consentry.trainer.deciding import decide_table as filtering
from consentry.trainer.deciding import member_classes as member_classes
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import REASONS, decide_table
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.frames import frame
from consentry.wire.freshness import FOREVER
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import version_of, write_record

PARTITIONS = 4
ALL = Columns(jurisdiction="place", category="category", collected="collected")
MEMBERS = tuple(f"member-{number}" for number in range(12))
NO_MEMBERS = (None, "", "no such id", "é", "a\n", "m" * 65)
PLACES = (None, "US", "US-CA", "HK", "DE", "GB", "GB-SCT", "XX", "", "us")
CATEGORIES = (None, "posts", "profile", "likes", "")
PURPOSES = (PURPOSE, PURPOSE, "ads")
OTHER_PURPOSES = (
    "ads",
    "",
    PURPOSE[:-1],
    PURPOSE[:-1] + "x",
    PURPOSE + "x",
    PURPOSE[:8],
    "p" * 40,
    "p" * 70,
    "\x00",
)
OTHER_PLACES = ("", "XX", "US\x00", "a name of more than eight letters", "É")
INSTANTS = (
    *(day(number) for number in range(0, 33, 4)),
    Micros(day(20) - 1),
    Micros(1),
    Micros(1 << 55),
    Micros(-5),
)

Question = Mapping[str, Any]


def reasons(
    table: pa.Table, snapshot: Snapshot, question: Question, columns: Columns = ALL
) -> list[Reason]:
    """The reason of each row, all at once."""
    found = decide_table(table, snapshot, columns=columns, is_fresh=True, **question)
    assert found.mask.tolist() == [
        REASONS[place] in (Reason.OPTED_IN, Reason.DEFAULT_ON) for place in found.reasons
    ]
    assert sum(found.counts().values()) == table.num_rows
    return [REASONS[place] for place in found.reasons]


def alone(
    rows: Sequence[tuple[str | None, Row]], snapshot: Snapshot, question: Question
) -> list[Reason]:
    """The reason of each row, each decided alone."""
    return [
        snapshot.decide(MemberId(member), row, stale_detail="", **question).reason
        if member is not None and MEMBER_ID_PATTERN.fullmatch(member)
        else Reason.QUARANTINED
        for member, row in rows
    ]


def question_by_chance(random: Random) -> dict[str, Any]:
    """Any time, earlier and later ones mixed, and the moments around those that matter."""
    at, known_at = (Micros(random.choice(INSTANTS) + random.randrange(-1, 2)) for _ in range(2))
    known_at = random.choice([known_at, FOREVER, at])
    return {
        "purpose": random.choice(PURPOSES),
        "at": random.choice([at, day(31)]),
        "known_at": known_at,
    }


def rows_by_chance(random: Random) -> list[tuple[str | None, Row]]:
    """Some rows of members who are known, unknown or none."""
    times = (None, Micros(0), Micros(day(3) - 1), day(3), day(6), day(30))
    return [
        (
            random.choice(MEMBERS * 3 + NO_MEMBERS),
            Row(
                jurisdiction=random.choice(PLACES),
                category=random.choice(CATEGORIES),
                collected=random.choice(times),
            ),
        )
        for _ in range(random.randrange(1, 40))
    ]


def table_of(rows: list[tuple[str | None, Row]], random: Random) -> pa.Table:
    """The rows in any of the types that data sets come in, in several chunks."""

    def texts(values: list[str | None]) -> pa.ChunkedArray:
        kind = random.choice([pa.string(), pa.large_string(), pa.string_view()])
        column, cut = pa.array(values, kind), random.randrange(len(values) + 1)
        drawn = random.random() if kind != pa.string_view() else 1.0
        if drawn < 0.2:
            column = column.dictionary_encode()  # both chunks share a dictionary
        parts = [column[:cut], column[cut:]]
        if 0.2 <= drawn < 0.4:
            parts = [part.dictionary_encode() for part in parts]
        return pa.chunked_array(parts)

    kind = random.choice([pa.int64(), pa.timestamp("us"), pa.timestamp("ns", tz="Asia/Hong_Kong")])
    collected = pa.array([row.collected for _, row in rows], pa.int64())
    if kind != pa.int64():
        collected = collected.cast(pa.timestamp("us")).cast(pa.timestamp(kind.unit)).cast(kind)
    return pa.table(
        {
            "member_id": texts([member for member, _ in rows]),
            "place": texts([row.jurisdiction for _, row in rows]),
            "category": texts([row.category for _, row in rows]),
            "collected": collected.dictionary_encode() if random.random() < 0.2 else collected,
        }
    )


def control_by_chance(random: Random, number: int) -> Control:
    """Any control, in force early or late."""
    when: dict[str, Any] = {"on": random.choice([0, 4, 8, 12, 20, 28])}
    drawn = random.random()
    if drawn < 0.4:
        entries = [
            terms(
                random.choice(["*", "*", "US", "EEA", "HK"]),
                purpose=random.choice(PURPOSES),
                regime=random.choice(
                    [Regime.DEFAULT_ON, Regime.DEFAULT_ON, Regime.OPT_IN, Regime.NOT_OFFERED]
                ),
                minors=random.choice(list(Minors)),
                categories=random.choice([None, None, ("posts",), ("profile", "posts")]),
                collected_from=random.choice([None, None, day(3), day(6)]),
                notice_until=random.choice([None, None, day(16), day(24)]),
            )
            for _ in range(random.randrange(1, 3))
        ]
        return policy(number, *entries, effective=random.choice([None, 4, 24]), **when)
    name, version = random.choice(["p", "q"]), random.randrange(1, 3)
    when |= {"effective_at": day(random.choice([0, 8, 24]))}
    if drawn < 0.7:
        purposes, categories = (
            random.choice([None, (PURPOSE,)]),
            random.choice([None, ("posts",), ("likes",), ()]),
        )
        place = random.choice(["US", "HK", "GB", "EEA", "*"])
        return pause(
            number,
            place,
            name=name,
            version=version,
            purposes=purposes,
            categories=categories,
            **when,
        )
    return lift(number, name=name, version=version, opt_ins=random.choice(list(OptIns)), **when)


def odd_record(random: Random, member: str) -> Record:
    """A record of facts that hardly any event makes: each asks of the reader what an ordinary one
    never does.
    """
    first = random.choice([1, 1, 60, 300])
    facts = []
    for version in range(first, first + random.randrange(5)):
        kind = random.choice(list(FactKind)[1:])
        names = OTHER_PLACES if "RELOCATED" in kind.name else OTHER_PURPOSES
        usual = "US" if "RELOCATED" in kind.name else PURPOSE
        name = random.choice([usual, usual, random.choice(names)])
        observed = random.choice([None, None, version - 1, 0, 63, 64, 5000, -1])
        times = random.choice(INSTANTS), random.choice(INSTANTS)
        facts.append(Fact(kind, *times, random.randbytes(8), observed, name, version))
    horizons = random.choice([(0, 0), (0, 0), (day(4), day(8))])
    return Record(
        member=MemberId(member),
        version=random.randrange(1000),
        facts=tuple(facts),
        folded_effective_at=Micros(horizons[0]),
        folded_recorded_at=Micros(horizons[1]),
    )


def record_by_chance(random: Random, member: str) -> Record:
    """A record as events make it, or an odd one."""
    if random.random() < 0.3:
        return odd_record(random, member)
    record = folded(*(random_event(random, number) for number in range(1, random.randrange(2, 9))))
    assert record is not None
    return Record(member=MemberId(member), version=random.randrange(1000), facts=record.facts)


def put(snapshot: Snapshot, *records: Record) -> None:
    """Have the view apply these, each as the next version of what it holds."""
    for record in records:
        key = record.member.encode()
        version = version_of(snapshot.records[key]) + 1 if key in snapshot.records else 1
        raw = write_record(replace(record, version=version), frame(1))
        snapshot.apply_records(partition_of(key, PARTITIONS), [key], [raw])


def record_of(member: str, *events: MemberEvent) -> Record:
    """The member's record after these events of the one member of all tests."""
    record = folded(*events)
    assert record is not None
    return replace(record, member=MemberId(member))


def new_snapshot(*controls: Control) -> Snapshot:
    """A view of nobody, under these controls; by the first of them everything is on everywhere."""
    snapshot = Snapshot(PARTITIONS, WORLD)
    for control in (policy(900, terms("*"), on=0), *controls):
        snapshot.apply_control(control)
    return snapshot


def change_by_chance(random: Random, snapshot: Snapshot, number: int) -> None:
    """One more thing that happens: mostly to a member, sometimes to everybody."""
    drawn = random.random()
    if drawn < 0.5:
        put(snapshot, *(record_by_chance(random, member) for member in random.sample(MEMBERS, 3)))
    elif drawn < 0.8:
        snapshot.apply_control(control_by_chance(random, number))
    elif drawn < 0.9:
        key = random.choice(MEMBERS).encode()
        snapshot.apply_records(partition_of(key, PARTITIONS), [key], [b"damaged, whatever it was"])
    else:
        frontier = Frontier(
            random.randrange(PARTITIONS), "life", day(5 + number), 0, 0, 0, random.random() < 0.5
        )
        snapshot.apply_frontier(frontier)


class TestEveryRow:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**48))
    def test_each_row_gets_the_answer_that_it_would_get_alone_whatever_happened_before(
        self, seed: int
    ) -> None:
        """What is remembered from one call to the next must not outlive a member's record, a
        control or a time.
        """
        random = Random(seed)
        snapshot = new_snapshot(
            *(control_by_chance(random, number) for number in range(random.randrange(6)))
        )
        put(
            snapshot,
            *(record_by_chance(random, member) for member in MEMBERS[: random.randrange(12)]),
        )
        for step in range(8):
            rows, question = rows_by_chance(random), question_by_chance(random)

            assert reasons(table_of(rows, random), snapshot, question) == alone(
                rows, snapshot, question
            )

            change_by_chance(random, snapshot, 100 + step)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**48))
    def test_more_questions_than_can_be_listed_are_sorted_instead(self, seed: int) -> None:
        """A table of every jurisdiction and category must not need memory for each of their
        combinations.
        """
        random = Random(seed)
        snapshot = new_snapshot(*(control_by_chance(random, number) for number in range(6)))
        put(snapshot, *(record_by_chance(random, member) for member in MEMBERS))
        rows, question = rows_by_chance(random), question_by_chance(random)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filtering, "_DIRECT_MIN", 0)
            rows = rows[:3]
            assert reasons(table_of(rows, random), snapshot, question) == alone(
                rows, snapshot, question
            )

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 2**48))
    def test_members_who_share_an_answer_stand_alike(self, seed: int) -> None:
        """Two records that were taken for alike would let one member's choice speak for another."""
        random = Random(seed)
        snapshot = new_snapshot(
            lift(1, on=8), lift(2, on=16, name="other"), lift(3, on=24, opt_ins=OptIns.KEEP)
        )
        members = [f"m{number}" for number in range(60)]
        put(snapshot, *(record_by_chance(random, member) for member in members))
        question = question_by_chance(random)
        rows = [(member, Row(jurisdiction=place)) for member in members for place in (None, "HK")]
        table = pa.table(
            {
                "member_id": [member for member, _ in rows],
                "place": [row.jurisdiction for _, row in rows],
            }
        )

        assert reasons(table, snapshot, question, Columns(jurisdiction="place")) == alone(
            rows, snapshot, question
        )


NOW: Question = {"purpose": PURPOSE, "at": day(25), "known_at": FOREVER}
HOME = moved("US", 1, on=1)
OUT = chose(Choice.OPT_OUT, 2, on=2)
BACK = chose(Choice.OPT_IN, 3, on=3, observed=2)


def reason(
    snapshot: Snapshot, member: str = "member-1", *, place: str | None = None, **question: Any
) -> Reason:
    """The reason of the one row of a table."""
    table = pa.table({"member_id": [member], "place": pa.array([place], pa.string())})
    return reasons(table, snapshot, {**NOW, **question}, Columns(jurisdiction="place"))[0]


class TestWhatIsRemembered:
    def test_an_opt_out_between_two_calls_excludes_in_the_second(self) -> None:
        """A class that outlives the record that it was found by is an opt-out that nobody hears."""
        snapshot = new_snapshot()
        put(snapshot, record_of("member-1", HOME))
        assert reason(snapshot) is Reason.DEFAULT_ON

        put(snapshot, record_of("member-1", HOME, OUT))

        assert reason(snapshot) is Reason.OPTED_OUT

    def test_somebody_of_whom_nothing_was_recorded_is_not_remembered_as_nobody(self) -> None:
        """The first thing that is ever heard of a member may be their opt-out."""
        snapshot = new_snapshot()
        assert reason(snapshot, place="US") is Reason.DEFAULT_ON

        put(snapshot, record_of("member-1", OUT))

        assert reason(snapshot, place="US") is Reason.OPTED_OUT

    def test_a_choice_for_one_purpose_is_not_told_of_another(self) -> None:
        """Whoever opted out of one thing has not opted out of the other, nor the other way
        round.
        """
        snapshot = new_snapshot(policy(901, terms("*", purpose="ads"), on=0))
        put(snapshot, record_of("member-1", HOME, OUT))

        assert reason(snapshot) is Reason.OPTED_OUT
        assert reason(snapshot, purpose="ads") is Reason.DEFAULT_ON
        assert reason(snapshot) is Reason.OPTED_OUT

    def test_a_fact_dated_ahead_takes_effect_when_its_time_comes(self) -> None:
        """An opt-out as of Friday must not be lost because somebody asked on Thursday."""
        snapshot = new_snapshot()
        put(
            snapshot,
            record_of("member-1", HOME, chose(Choice.OPT_OUT, 2, on=2, effective_at=day(26))),
        )

        assert reason(snapshot, at=Micros(day(26) - 1)) is Reason.DEFAULT_ON
        assert reason(snapshot, at=day(26)) is Reason.OPTED_OUT

    @pytest.mark.parametrize(
        "earlier", [{"at": Micros(day(3) - 1)}, {"known_at": Micros(day(3) - 1)}]
    )
    def test_an_earlier_question_is_not_answered_with_what_came_later(
        self, earlier: dict[str, Any]
    ) -> None:
        """An auditor who asks what was right then must not be told what is right now."""
        snapshot = new_snapshot()
        put(snapshot, record_of("member-1", HOME, OUT, BACK))
        assert reason(snapshot) is Reason.OPTED_IN

        assert reason(snapshot, **earlier) is Reason.OPTED_OUT
        assert reason(snapshot) is Reason.OPTED_IN

    def test_a_folded_history_is_remembered_only_for_what_is_still_known(self) -> None:
        """Beyond its horizon a record knows nothing, and knowing nothing is no consent."""
        snapshot = new_snapshot()
        record = record_of("member-1", HOME)
        put(snapshot, replace(record, folded_effective_at=day(5), folded_recorded_at=day(7)))

        assert reason(snapshot) is Reason.DEFAULT_ON
        assert reason(snapshot, at=Micros(day(5) - 1)) is Reason.HISTORY_FOLDED
        assert reason(snapshot, at=day(5), known_at=Micros(day(7) - 1)) is Reason.HISTORY_FOLDED
        assert reason(snapshot, at=day(5), known_at=day(7)) is Reason.DEFAULT_ON

    def test_a_pause_and_its_lift_are_heard_at_once(self) -> None:
        """The answers of before a control must not be given after it."""
        snapshot = new_snapshot()
        put(snapshot, record_of("member-1", HOME))
        assert reason(snapshot) is Reason.DEFAULT_ON

        snapshot.apply_control(pause(1, "US", on=3))
        assert reason(snapshot) is Reason.PAUSED

        snapshot.apply_control(lift(2, on=4))
        assert reason(snapshot) is Reason.DEFAULT_ON

    def test_a_lift_that_voids_opt_ins_parts_members_who_stood_alike(self) -> None:
        """One opted in before the lift and one after it: only the later one still counts."""
        snapshot = new_snapshot(
            policy(901, terms("*", regime=Regime.OPT_IN), on=1), pause(1, "US", on=3)
        )
        early, late = (chose(Choice.OPT_IN, 5, on=on, observed=1) for on in (4, 6))
        put(snapshot, record_of("early", HOME, early), record_of("late", HOME, late))
        assert reason(snapshot, "early") is reason(snapshot, "late") is Reason.PAUSED

        snapshot.apply_control(lift(2, on=5))

        assert reason(snapshot, "early") is Reason.OPT_IN_REQUIRED
        assert reason(snapshot, "late") is Reason.OPTED_IN

    def test_an_opt_in_of_the_very_moment_of_a_lift_is_void(self) -> None:
        """A tie falls on the side of not using the data."""
        snapshot = new_snapshot(
            policy(901, terms("*", regime=Regime.OPT_IN), on=1), pause(1, "US", on=3), lift(2, on=5)
        )
        put(snapshot, record_of("tied", HOME, chose(Choice.OPT_IN, 5, on=5)))
        put(
            snapshot,
            record_of("later", HOME, chose(Choice.OPT_IN, 5, on=5, recorded_at=Micros(day(5) + 1))),
        )

        assert reason(snapshot, "tied") is Reason.OPT_IN_REQUIRED
        assert reason(snapshot, "later") is Reason.OPTED_IN

    @pytest.mark.parametrize(
        ("controls", "boundary", "before", "after"),
        [
            (
                [policy(901, terms("*", notice_until=day(9)), on=1)],
                day(9),
                Reason.NOTICE_OPEN,
                Reason.DEFAULT_ON,
            ),
            ([pause(1, "GB", on=2, effective_at=day(9))], day(9), Reason.DEFAULT_ON, Reason.PAUSED),
            ([pause(1, "EEA", on=2)], day(20), Reason.PAUSED, Reason.DEFAULT_ON),
            (
                [pause(1, "GB", on=2), lift(2, on=2, effective_at=day(9))],
                day(9),
                Reason.PAUSED,
                Reason.DEFAULT_ON,
            ),
        ],
    )
    def test_no_answer_is_kept_beyond_the_moment_that_ends_it(
        self, controls: list[Control], boundary: Micros, before: Reason, after: Reason
    ) -> None:
        """A notice ends, a pause begins, a country leaves its group: at that microsecond, not at
        the restart.
        """
        snapshot = new_snapshot(*controls)

        for _ in range(2):
            assert reason(snapshot, place="GB", at=Micros(boundary - 1)) is before
            assert reason(snapshot, place="GB", at=boundary) is after

    def test_a_control_of_the_same_instant_as_another_is_heard(self) -> None:
        """No time passes between the two, so nothing but the controls themselves tells them
        apart.
        """
        snapshot = new_snapshot()
        assert reason(snapshot, place="US") is Reason.DEFAULT_ON

        snapshot.apply_control(pause(1, "US", on=0))

        assert reason(snapshot, place="US") is Reason.PAUSED

    def test_no_answer_is_kept_beyond_when_a_control_became_known(self) -> None:
        """What was not known yet decided nothing then."""
        snapshot = new_snapshot(pause(1, "US", on=9, effective_at=day(2)))

        for _ in range(2):
            assert reason(snapshot, place="US", known_at=Micros(day(9) - 1)) is Reason.DEFAULT_ON
            assert reason(snapshot, place="US", known_at=day(9)) is Reason.PAUSED

    def test_a_hold_and_its_release_are_heard(self) -> None:
        """A message that cannot be read may have been an opt-out."""
        snapshot = new_snapshot()
        put(snapshot, record_of("member-1", HOME))
        assert reason(snapshot) is Reason.DEFAULT_ON

        put(snapshot, record_of("member-1", HOME, unreadable(2, on=2)))
        assert reason(snapshot) is Reason.QUARANTINED

        put(snapshot, record_of("member-1", HOME, unreadable(2, on=2), released(3, on=3)))
        assert reason(snapshot) is Reason.DEFAULT_ON

    def test_members_are_held_from_the_moment_their_partition_is_tainted_until_it_is_not(
        self,
    ) -> None:
        """Whose opt-out it was that could not be read, nobody knows."""
        snapshot = new_snapshot()
        put(snapshot, record_of("member-1", HOME))
        home = partition_of(b"member-1", PARTITIONS)
        assert reason(snapshot) is Reason.DEFAULT_ON

        snapshot.apply_frontier(Frontier(home, "life", day(5), 0, 0, 0, True))
        assert reason(snapshot) is Reason.QUARANTINED

        snapshot.apply_frontier(Frontier(home, "life", day(6), 0, 0, 0, False))
        assert reason(snapshot) is Reason.DEFAULT_ON

    def test_a_damaged_message_holds_a_member_who_was_remembered(self) -> None:
        """It may have been the opt-out."""
        snapshot = new_snapshot()
        put(snapshot, record_of("member-1", HOME))
        assert reason(snapshot) is Reason.DEFAULT_ON

        snapshot.apply_records(partition_of(b"member-1", PARTITIONS), [b"member-1"], [b"damaged"])

        assert reason(snapshot) is Reason.QUARANTINED

    def test_bytes_that_rotted_before_they_were_looked_at_hold_their_member(self) -> None:
        """What is read side by side is checked as what is read alone."""
        snapshot = new_snapshot()
        put(snapshot, *(record_of(member, HOME) for member in MEMBERS))
        raw = snapshot.records[b"member-1"]
        snapshot.records.apply([b"member-1"], [raw[:20] + bytes((raw[20] ^ 1,)) + raw[21:]])

        assert reason(snapshot) is Reason.QUARANTINED
        assert reason(snapshot, "member-2") is Reason.DEFAULT_ON


class _Slow(RecordIndex):
    """Records that change just after it was found where they are."""

    def __init__(self, records: RecordIndex, snapshot: Snapshot, *changes: Record) -> None:
        super().__init__()
        self.apply(list(records), [records[key] for key in records])
        self._snapshot = snapshot
        self._to_come = changes

    def find(self, keys: Keys) -> list[FoundRecords]:
        found, changes, self._to_come = super().find(keys), self._to_come, ()
        put(self._snapshot, *changes)
        return found


class TestMeanwhile:
    @pytest.mark.parametrize("recent_max", [0, 2, 4096])
    def test_who_changes_while_they_are_looked_at_is_looked_at_again(
        self, monkeypatch: pytest.MonkeyPatch, recent_max: int
    ) -> None:
        """The old record is remembered after the new one was applied: for ever, unless it stands
        elsewhere.
        """
        monkeypatch.setattr(store, "RECENT_MAX", recent_max)
        snapshot = new_snapshot()
        put(snapshot, *(record_of(member, HOME) for member in MEMBERS))
        reason(snapshot, "somebody else")
        snapshot.records = _Slow(
            snapshot.records, snapshot, *(record_of(member, HOME, OUT) for member in MEMBERS[:3])
        )
        table = pa.table({"member_id": MEMBERS})
        first = reasons(table, snapshot, NOW, Columns())

        again = reasons(table, snapshot, NOW, Columns())

        assert first[0] is Reason.DEFAULT_ON
        assert again == [Reason.OPTED_OUT] * 3 + [Reason.DEFAULT_ON] * 9


class TestBounds:
    def test_purposes_beyond_those_that_are_remembered_are_answered_all_the_same(self) -> None:
        """Somebody may ask for a hundred purposes; memory must not grow by each."""
        purposes = [f"purpose-{number}" for number in range(20)]
        snapshot = new_snapshot(
            *(
                policy(number, terms("US", purpose=name), on=0)
                for number, name in enumerate(purposes, 1)
            )
        )
        put(
            snapshot,
            record_of("member-1", HOME, chose(Choice.OPT_OUT, 2, on=2, purpose="purpose-3")),
        )

        for _ in range(2):
            found = {purpose: reason(snapshot, purpose=purpose) for purpose in purposes}

            assert found.pop("purpose-3") is Reason.OPTED_OUT
            assert set(found.values()) == {Reason.DEFAULT_ON}
        assert len(snapshot._member_classes) == 8

    def test_answers_beyond_those_that_are_remembered_are_given_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Letting go of answers costs time, never an answer."""
        monkeypatch.setattr(member_classes, "_ANSWERS_MAX", 1)
        snapshot = new_snapshot(pause(1, "HK", on=2))
        rows: list[tuple[str | None, Row]] = [("a", Row(jurisdiction=place)) for place in PLACES]
        table = pa.table({"member_id": ["a"] * len(PLACES), "place": pa.array(PLACES, pa.string())})

        for place in PLACES:
            for _ in range(2):
                assert (
                    reason(snapshot, "a", place=place)
                    is alone([("a", Row(jurisdiction=place))], snapshot, NOW)[0]
                )
            assert (
                len(
                    snapshot.member_classes(PURPOSE, snapshot.boundaries.opt_ins_voided_at)
                    ._asked[2]
                    .given
                )
                <= 2
            )
        assert reasons(table, snapshot, NOW, Columns(jurisdiction="place")) == alone(
            rows, snapshot, NOW
        )

    def test_questions_may_be_more_than_a_number_of_32_bits_can_tell_apart(self) -> None:
        """Thousands of categories and cut-offs over the years, each of which some terms name."""
        many = 3000
        cut_offs = [Micros(day(0) + number) for number in range(many)]
        entries = [
            terms("US", categories=(f"c{number}",), collected_from=cut_off)
            for number, cut_off in enumerate(cut_offs)
        ]
        snapshot = new_snapshot(
            policy(901, *entries, terms("HK", collected_from=cut_offs[7], categories=("c5",)), on=1)
        )
        for number in range(200):
            snapshot.apply_control(lift(10_000 + number, on=number))
            opt_in = chose(Choice.OPT_IN, 5, on=number + 0.5, effective_at=day(1))
            put(snapshot, record_of(f"m{number}", opt_in))
        rows: list[tuple[str | None, Row]] = [
            (
                f"m{number % 200}",
                Row(
                    jurisdiction=PLACES[number % 9],
                    category=f"c{number}",
                    collected=cut_offs[number],
                ),
            )
            for number in range(0, many, 7)
        ]

        assert reasons(table_of(rows, Random(1)), snapshot, NOW) == alone(rows, snapshot, NOW)
        classes = len(
            snapshot.member_classes(PURPOSE, snapshot.boundaries.opt_ins_voided_at).states
        )
        assert classes * len(PLACES) * len(rows) * many > 1 << 31

    def test_only_questions_that_occur_are_judged_and_each_only_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A million rows of a thousand members ask few questions; asking each row's would take a
        minute.
        """
        judged: list[tuple[MemberState, Row | None]] = []

        def counting(own: MemberState, row: Row | None, *args: Any, **question: Any) -> Decision:
            judged.append((own, row))
            return decide_state(own, row, *args, **question)

        monkeypatch.setattr(filtering, "decide_state", counting)
        snapshot = new_snapshot(pause(1, "HK", on=2, categories=("posts",)))
        put(snapshot, *(record_of(member, HOME) for member in MEMBERS))
        rows = 5000
        table = pa.table(
            {
                "member_id": [MEMBERS[row % 12] for row in range(rows)],
                "place": [("HK", "US", f"no-code-{row}")[row % 3] for row in range(rows)],
                "category": [f"category-{row}" for row in range(rows)],
            }
        )

        for _ in range(2):
            reasons(table, snapshot, NOW, Columns(jurisdiction="place", category="category"))

        assert len(judged) == 3


class TestColumnTypes:
    def test_members_of_mixed_types_are_held_unless_they_are_texts(self) -> None:
        """A number is no pseudonym, whoever it was meant for."""
        kinds = pa.array([0, 1, 0], pa.int8())
        members = pa.UnionArray.from_sparse(kinds, [pa.array(["a", "b", "c"]), pa.array([1, 2, 3])])
        table = pa.table({"member_id": members, "place": ["US"] * 3})

        found = reasons(table, new_snapshot(), NOW, Columns(jurisdiction="place"))

        assert found == [Reason.DEFAULT_ON, Reason.QUARANTINED, Reason.DEFAULT_ON]

    @pytest.mark.parametrize("members", [[b"a"], [1.5], [["a"]], [date(2024, 1, 1)], [True]])
    def test_members_that_are_neither_texts_nor_integers_are_held(self, members: list[Any]) -> None:
        """A row that vanishes from a report is a row that nobody asks about."""
        table = pa.table({"member_id": pa.array(members), "place": ["US"]})

        assert reasons(table, new_snapshot(), NOW, Columns(jurisdiction="place")) == [
            Reason.QUARANTINED
        ]

    @pytest.mark.parametrize("kind", [pa.int16(), pa.int64(), pa.uint64(), None])
    def test_an_integer_stands_for_its_decimal_text(self, kind: pa.DataType | None) -> None:
        """A platform that numbers its members keeps them as numbers; the log has them as texts."""
        snapshot = new_snapshot()
        put(
            snapshot,
            record_of("4711", HOME, OUT),
            record_of("0", HOME),
            record_of("0042", HOME, OUT),
        )
        numbers = pa.array([4711, 0, None, 42, 4711], pa.int64())
        members = numbers.cast(kind) if kind else numbers.dictionary_encode()
        table = pa.table({"member_id": members, "place": ["US"] * 5})

        found = reasons(table, snapshot, NOW, Columns(jurisdiction="place"))

        assert found == [
            Reason.OPTED_OUT,
            Reason.DEFAULT_ON,
            Reason.QUARANTINED,
            Reason.DEFAULT_ON,
            Reason.OPTED_OUT,
        ]

    @pytest.mark.parametrize("number", [-5, 10**18 - 1, 10**18, (1 << 63) - 1, -(1 << 63)])
    def test_an_integer_beyond_what_is_found_quickly_is_found_as_its_text(
        self, number: int
    ) -> None:
        """A hash handed out as a number may be any of 64 bits."""
        snapshot = new_snapshot()
        put(snapshot, record_of(str(number), HOME, OUT))
        table = pa.table({"member_id": [number, 7]})

        assert reasons(table, snapshot, NOW, Columns())[0] is Reason.OPTED_OUT

    def test_categories_of_bytes_are_read_as_texts(self) -> None:
        """Some writers of Parquet leave out that a column is text; the pause on posts is on these
        posts too.
        """
        snapshot = new_snapshot(pause(1, "US", on=2, categories=("posts",)))
        table = pa.table(
            {"member_id": ["a", "a"], "place": [b"US", b"US"], "category": [b"posts", b"\xff"]}
        )

        found = reasons(table, snapshot, NOW, Columns(jurisdiction="place", category="category"))

        assert found == [Reason.PAUSED, Reason.DEFAULT_ON]

    @pytest.mark.parametrize("values", [[1, 2], [1.5, None], [["US"], None]])
    def test_jurisdictions_that_are_no_texts_are_unknown(self, values: list[Any]) -> None:
        """Where a row is from must never be guessed."""
        table = pa.table({"member_id": ["a", "a"], "place": values})

        assert (
            reasons(table, new_snapshot(), NOW, Columns(jurisdiction="place"))
            == [Reason.JURISDICTION_UNKNOWN] * 2
        )

    def test_a_categorical_may_hold_null_twice_over_and_more_than_its_rows(self) -> None:
        """A slice of a large data set keeps the whole of its dictionary."""
        members = pa.DictionaryArray.from_arrays(
            pa.array([0, 1, None, 0], pa.int8()), pa.array([None, "a"])
        )
        table = pa.table({"member_id": members, "place": ["US"] * 4})
        expected = [Reason.QUARANTINED, Reason.DEFAULT_ON, Reason.QUARANTINED, Reason.QUARANTINED]

        assert reasons(table, new_snapshot(), NOW, Columns(jurisdiction="place")) == expected
        assert (
            reasons(table[1:2], new_snapshot(), NOW, Columns(jurisdiction="place")) == expected[1:2]
        )

    def test_a_categorical_may_be_of_views(self) -> None:
        """Newer writers use another layout for texts."""
        texts = pa.array(["a", "no such id"]).cast(pa.string_view())
        table = pa.table(
            {
                "member_id": pa.DictionaryArray.from_arrays(pa.array([1, 0]), texts),
                "place": ["US"] * 2,
            }
        )

        found = reasons(table, new_snapshot(), NOW, Columns(jurisdiction="place"))

        assert found == [Reason.QUARANTINED, Reason.DEFAULT_ON]

    def test_what_was_collected_nobody_knows_when_is_inside_no_cut_off(self) -> None:
        """Not even in one that lies before every time that a computer counts from."""
        snapshot = new_snapshot(policy(901, terms("US", collected_from=Micros(-5)), on=1))
        table = pa.table(
            {"member_id": ["a"] * 3, "place": ["US"] * 3, "collected": pa.array([None, -6, -5])}
        )

        found = reasons(table, snapshot, NOW, Columns(jurisdiction="place", collected="collected"))

        assert found == [Reason.OUTSIDE_TERMS, Reason.OUTSIDE_TERMS, Reason.DEFAULT_ON]

    def test_a_table_without_rows_or_chunks_has_no_answers(self) -> None:
        """The last batch of a reader is often empty."""
        for empty in (
            pa.chunked_array([], pa.string()),
            pa.chunked_array([], pa.dictionary(pa.int32(), pa.string())),
        ):
            found = decide_table(
                pa.table({"m": empty}),
                new_snapshot(),
                columns=Columns(member="m"),
                is_fresh=True,
                **NOW,
            )

            assert found.reasons.dtype == np.int8
            assert found.counts() == {}
