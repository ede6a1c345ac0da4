"""Records read side by side: only what is certain to be read as it would be alone, and then with
the same outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import pytest
from tests.strategies import PURPOSE, chose, day, erased, folded, moved, released, unreadable

from consentry.domain.events import Fact, FactKind, MemberEvent
from consentry.domain.records import Record
from consentry.domain.values import AgeBand, Choice, MemberId, Micros
from consentry.trainer.deciding.fact_columns import FactColumns
from consentry.wire.frames import frame
from consentry.wire.freshness import FOREVER
from consentry.wire.records import write_record

MEMBER = b"member-1"
HOME = moved("US", 1, on=1)
OUT = chose(Choice.OPT_OUT, 2, on=2)
IN = chose(Choice.OPT_IN, 3, on=3, observed=2)


def record_of(*events: MemberEvent) -> Record:
    """The member's record after these events."""
    record = folded(*events)
    assert record is not None
    return record


def with_fact(fact: Fact) -> Record:
    """A record that ends in this fact."""
    return replace(record_of(HOME), facts=(HOME.fact(), fact))


def is_plain(raw: bytes, member: bytes = MEMBER) -> bool:
    """Whether the record is read side by side."""
    return bool(FactColumns([member], [raw], PURPOSE).is_plain[0])


def signature(
    *events: MemberEvent, opt_ins_voided_at: Sequence[Micros] = (), at: Micros = FOREVER
) -> bytes:
    """What stands for the standing of a member after these events."""
    raws = [write_record(record_of(HOME), frame(1)), write_record(record_of(*events), frame(1))]
    (_, found) = FactColumns([MEMBER, MEMBER], raws, PURPOSE).signatures(
        at, FOREVER, opt_ins_voided_at
    )
    assert found is not None
    return found


RELOCATED, CHOSE = (event.fact() for event in (HOME, IN))
ODD = {
    "no fact at all": Record(member=MemberId("member-1"), version=1),
    "a version of two bytes": with_fact(CHOSE._replace(version=64)),
    "a negative version": with_fact(CHOSE._replace(version=-1)),
    "an observed version of two bytes": with_fact(CHOSE._replace(observed_version=64)),
    "a negative observed version": with_fact(CHOSE._replace(observed_version=-1)),
    "a purpose whose length takes two bytes": with_fact(CHOSE._replace(name="p" * 64)),
    "an effective time of seven bytes": with_fact(
        CHOSE._replace(effective_at=Micros((1 << 48) - 1))
    ),
    "an effective time of nine bytes": with_fact(CHOSE._replace(effective_at=Micros(1 << 55))),
    "an effective time before 1970": with_fact(CHOSE._replace(effective_at=Micros(-1 << 50))),
    "a recorded time of seven bytes": with_fact(CHOSE._replace(recorded_at=Micros((1 << 48) - 1))),
    "a recorded time of nine bytes": with_fact(CHOSE._replace(recorded_at=Micros(1 << 55))),
    "a recorded time before 1970": with_fact(CHOSE._replace(recorded_at=Micros(-1 << 50))),
    "a jurisdiction of eight letters": with_fact(RELOCATED._replace(name="XX-ABCDE")),
    "a jurisdiction that is not ASCII": with_fact(RELOCATED._replace(name="Éire")),
    "a purpose that is not ASCII behind its eighth letter": with_fact(
        CHOSE._replace(name="purpose-é")
    ),
    "an effective horizon of one byte": replace(record_of(HOME), folded_effective_at=Micros(5)),
    "a recorded horizon of one byte": replace(record_of(HOME), folded_recorded_at=Micros(5)),
    "horizons": replace(record_of(HOME), folded_effective_at=day(1), folded_recorded_at=day(1)),
    "more facts than a byte can count": replace(record_of(HOME), facts=(RELOCATED,) * 64),
}


class TestWhatIsLeftToTheStrictReader:
    @pytest.mark.parametrize("record", ODD.values(), ids=ODD.keys())
    def test_what_no_ordinary_record_has(self, record: Record) -> None:
        """Read as if it were ordinary, it could say the opposite of what it says."""
        assert not is_plain(write_record(record, frame(1)))

    @pytest.mark.parametrize("place", range(0, 60, 7))
    def test_any_bit_that_flipped(self, place: int) -> None:
        """A record is believed by its checksum, however many are looked at."""
        raw = write_record(record_of(HOME, OUT), frame(1))
        assert is_plain(raw)

        assert not is_plain(raw[:place] + bytes((raw[place] ^ 4,)) + raw[place + 1 :])

    def test_a_record_of_somebody_else(self) -> None:
        """The checksum is over the member too: what was stored under the wrong name speaks for
        nobody.
        """
        assert not is_plain(write_record(record_of(HOME), frame(1)), b"member-2")

    @pytest.mark.parametrize("cut", [0, 3, 19])
    def test_bytes_that_are_too_few(self, cut: int) -> None:
        """There is nothing behind the last record of a batch."""
        assert not is_plain(write_record(record_of(HOME), frame(1))[:cut])

    @pytest.mark.parametrize("more", [b"\x00", b"\x00" * 3, b"\x02\x00\x00"])
    def test_bytes_behind_the_content(self, more: bytes) -> None:
        """Two writers that disagree on what a record is must not be believed both."""
        content = write_record(record_of(HOME), frame(1))[:-4] + more

        assert not is_plain(content + crc32(content, crc32(MEMBER)).to_bytes(4, "big"))

    @pytest.mark.parametrize("count", [2, 63])
    def test_more_facts_than_there_are(self, count: int) -> None:
        """Whoever counts on must not read what somebody else's record says, nor beyond the last
        one.
        """
        raw = bytearray(write_record(record_of(HOME), frame(1)))
        raw[13] = count << 1
        content = bytes(raw[:-4])

        assert not is_plain(content + crc32(content, crc32(MEMBER)).to_bytes(4, "big"))

    @pytest.mark.parametrize(("kind", "branch"), [(20, 0), (1, 0), (6, 1), (6, 4)])
    def test_a_kind_or_branch_that_does_not_exist(self, kind: int, branch: int) -> None:
        """A newer writer's word is not guessed at."""
        raw = bytearray(write_record(record_of(HOME), frame(1)))
        raw[15], raw[40] = kind, branch
        content = bytes(raw[:-4])

        assert not is_plain(content + crc32(content, crc32(MEMBER)).to_bytes(4, "big"))

    def test_everything_else_is_read_side_by_side(self) -> None:
        """If ordinary records were left to the strict reader too, a table of a million members
        would take a minute.
        """
        events: list[MemberEvent] = [
            HOME,
            OUT,
            IN,
            chose(Choice.UNKNOWN, 4, on=4),
            unreadable(5, on=5),
            released(6, on=6),
        ]
        events += [moved("GB-SCT", number, on=7) for number in range(7, 50)]
        for length in range(1, len(events) + 1):
            assert is_plain(write_record(record_of(*events[:length]), frame(1)))
        assert is_plain(write_record(record_of(HOME, erased(2, on=2)), frame(1)))

    def test_a_question_of_before_1970_is_left_to_the_rules(self) -> None:
        """No record knows of that time."""
        facts = FactColumns([MEMBER], [write_record(record_of(HOME), frame(1))], PURPOSE)

        assert (
            facts.signatures(Micros(-1), FOREVER, ())
            == facts.signatures(FOREVER, Micros(-1), ())
            == [None]
        )


def recorded(event: MemberEvent, on: float) -> MemberEvent:
    """The same event, recorded on another day."""
    return replace(event, event_id=bytes(15) + b"\xff", recorded_at=day(on))


UNSURE = chose(Choice.UNKNOWN, 4, on=4)
UNSEEN = chose(Choice.OPT_IN, 3, on=3)
STALE = chose(Choice.OPT_IN, 3, on=3, observed=1)


class TestSignatures:
    @pytest.mark.parametrize(
        ("events", "same"),
        [
            ([HOME, OUT], [HOME, OUT, OUT]),
            ([HOME, OUT], [HOME, OUT, UNSEEN]),
            ([HOME, OUT], [HOME, OUT, STALE]),
            ([HOME, OUT], [HOME, OUT, UNSURE]),
            ([HOME, IN], [HOME, OUT, IN]),
            ([HOME, IN], [HOME, UNSEEN]),
            ([HOME], [HOME, UNSURE]),
            ([HOME], [HOME, IN, UNSURE]),
            ([HOME], [moved("HK", 9, on=0), HOME]),
            ([HOME], [HOME, chose(Choice.OPT_OUT, 2, on=2, purpose="ads")]),
            ([HOME], [HOME, chose(Choice.OPT_OUT, 2, on=2, purpose=PURPOSE[:-1] + "x")]),
            ([HOME], [HOME, chose(Choice.OPT_OUT, 2, on=2, purpose=PURPOSE + "x")]),
            ([HOME], [HOME, unreadable(2, on=2), released(3, on=3)]),
            ([HOME], [HOME, unreadable(2, on=2), released(3, on=3, observed=2)]),
            (
                [HOME, unreadable(2, on=2)],
                [HOME, unreadable(2, on=2), released(3, on=3, observed=1)],
            ),
            (
                [HOME, unreadable(2, on=2)],
                [HOME, unreadable(2, on=2), released(3, on=3, observed=3)],
            ),
            (
                [HOME, unreadable(2, on=2)],
                [HOME, unreadable(2, on=2), unreadable(3, on=3), released(4, on=4, observed=2)],
            ),
            ([HOME, unreadable(2, on=2)], [unreadable(2, on=2), OUT]),
            ([erased(2, on=2)], [HOME, OUT, unreadable(3, on=2), erased(4, on=4)]),
        ],
    )
    def test_members_whose_answers_are_the_same_share_one(
        self, events: list[MemberEvent], same: list[MemberEvent]
    ) -> None:
        """Each class more is a question more for each kind of row."""
        assert signature(*events) == signature(*same)

    def test_an_opt_in_that_saw_nothing_never_takes_over(self) -> None:
        """Not even from an opt-out whose version is the lowest that can be written."""
        facts = (OUT.fact(), UNSEEN.fact())
        raws = [
            write_record(replace(record_of(OUT), facts=facts[:size]), frame(1)) for size in (1, 2)
        ]

        alone, followed = FactColumns([MEMBER, MEMBER], raws, PURPOSE).signatures(
            FOREVER, FOREVER, ()
        )

        assert alone == followed

    def test_members_whose_answers_may_differ_never_share_one(self) -> None:
        """One member's choice, age or home would speak for another."""
        homes = ["US", "US-CA", "HK", "", "US\x00"]
        found = [
            signature(OUT),
            signature(IN),
            signature(chose(Choice.OPT_OUT, 2, on=2, purpose="ads")),
            *(signature(moved(home, 1, on=1, age_band=age)) for home in homes for age in AgeBand),
            *(signature(HOME, choice) for choice in (OUT, IN)),
            signature(HOME, unreadable(2, on=2)),
            signature(HOME, erased(2, on=2)),
        ]

        assert len(set(found)) == len(found)

    def test_opt_ins_between_the_same_lifts_are_alike_and_others_are_not(self) -> None:
        """A lift parts those who opted in before it, or with it, from those who did later."""
        lifts = (day(5), day(9))
        days = [3, 5, 5.1, 9, 9.1]

        found = [signature(HOME, recorded(IN, on), opt_ins_voided_at=lifts) for on in days]

        assert [found.index(one) for one in found] == [0, 0, 2, 2, 4]
        assert (
            len({signature(HOME, recorded(OUT, on), opt_ins_voided_at=lifts) for on in days}) == 1
        )
        assert len({signature(HOME, recorded(IN, on), opt_ins_voided_at=()) for on in days}) == 1

    @pytest.mark.parametrize("purpose", ["", PURPOSE[:8], PURPOSE[:-1], PURPOSE + "\x00", "p" * 14])
    def test_a_purpose_is_the_one_asked_about_only_where_all_of_it_is(self, purpose: str) -> None:
        """Neither its beginning nor one of the same length."""
        raw = write_record(record_of(chose(Choice.OPT_OUT, 2, on=2, purpose=purpose)), frame(1))

        assert FactColumns([MEMBER], [raw], PURPOSE).signatures(FOREVER, FOREVER, ()) != [
            signature(OUT)
        ]
        assert FactColumns([MEMBER], [raw], purpose).signatures(FOREVER, FOREVER, ()) == [
            signature(OUT)
        ]

    def test_an_opt_in_that_is_over_parts_nobody(self) -> None:
        """When it was recorded matters no more."""
        again = recorded(OUT, 7)

        assert signature(HOME, IN, again, opt_ins_voided_at=[day(2)]) == signature(
            HOME, again, opt_ins_voided_at=[day(2)]
        )

    def test_only_facts_that_count_are_taken_in(self) -> None:
        """A fact dated ahead says nothing yet, to the microsecond."""
        assert signature(HOME, OUT, at=Micros(day(2) - 1)) == signature(HOME)
        assert signature(HOME, OUT, at=day(2)) == signature(HOME, OUT)

    def test_the_latest_times_are_told_in_microseconds(self) -> None:
        """From then on a standing may be remembered."""
        late = chose(Choice.OPT_OUT, 2, on=2, effective_at=day(8))
        raws = [write_record(record_of(HOME, late, moved("HK", 3, on=5)), frame(1))]

        effective, recorded_at = FactColumns([MEMBER], raws, PURPOSE).latest()

        assert (effective.tolist(), recorded_at.tolist()) == ([day(8)], [day(5)])

    def test_every_kind_of_fact_is_known(self) -> None:
        """A kind that is added has to be given its meaning here too."""
        assert {kind.name for kind in FactKind} == {
            *(
                "ERASED",
                "QUARANTINED",
                "RELEASED",
                "UNKNOWN",
                "OPTED_OUT",
                "OPTED_IN",
                "CHOICE_UNKNOWN",
            ),
            *("RELOCATED_MINOR", "RELOCATED_ADULT", "RELOCATED_AGE_UNKNOWN"),
        }
