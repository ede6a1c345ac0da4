"""Scenarios by the rules alone: what a timeline comes to, and what is told of an expectation that
does not hold.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.strategies import (
    MEMBER,
    PURPOSE,
    WORLD,
    chose,
    day,
    erased,
    lift,
    moved,
    pause,
    policy,
    terms,
)

from consentry.domain.controls import Control, Reach, Scope
from consentry.domain.decisions import Decision, Row
from consentry.domain.events import FactKind, MemberEvent
from consentry.domain.explain import sentences
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.scenarios import (
    Expectation,
    ExpectedOrder,
    Failure,
    Scenario,
    TimelineEntry,
    answers,
    failed_answers,
    failed_orders,
    history,
    open_orders,
    run,
)
from consentry.domain.values import DAY_MICROS, Choice, MemberId, Micros, Reason

WEEK = Micros(7 * DAY_MICROS)
OTHER = MemberId("member-2")
ALLOWED = Decision(True, Reason.DEFAULT_ON)
PAUSED = Decision(False, Reason.PAUSED)


def story(
    *entries: MemberEvent | Control | TimelineEntry,
    expect: tuple[Expectation, ...] = (),
    expect_orders: tuple[ExpectedOrder, ...] | None = None,
) -> Scenario:
    """A scenario of these entries; an event alone has seen nothing that is told."""
    timeline = tuple(
        one if isinstance(one, TimelineEntry) else TimelineEntry(one) for one in entries
    )
    return Scenario(name="story", timeline=timeline, expect=expect, expect_orders=expect_orders)


def asked(allowed: bool, reason: Reason, **more: Any) -> Expectation:
    """An expectation of day 10, unless told otherwise."""
    fields: dict[str, Any] = {
        "member": MEMBER,
        "purpose": PURPOSE,
        "at": day(10),
        "known_at": day(10),
        "row": None,
    }
    return Expectation(**(fields | more), allowed=allowed, reason=reason)


def order(because: PurgeReason = PurgeReason.ERASURE, **more: Any) -> PurgeOrder:
    """An open order, due on day 9, unless told otherwise."""
    fields: dict[str, Any] = {
        "order_id": "order",
        "because": because,
        "recorded_at": day(2),
        "due_at": day(9),
    }
    return PurgeOrder(**(fields | more))


def pause_order(*jurisdictions: str, **more: Any) -> PurgeOrder:
    """The open order of a pause."""
    return order(
        PurgeReason.PAUSE, pause="pause-1", scope=Scope(jurisdictions=jurisdictions), **more
    )


OPENS = policy(1, terms("*", purge_on_opt_out=True, purge_within=WEEK), on=0)
HOME = moved("US", 2, on=1)


class TestHistory:
    def test_an_observed_entry_is_the_version_that_the_member_had_there(self) -> None:
        """A scenario counts lines, a record counts the member's events: mixed up, an opt-in cancels
        what it never saw.

        Every entry of another kind or member is one line more and no version more.
        """
        others = (moved("HK", 3, on=2, member=OTHER), chose(Choice.OPT_OUT, 4, on=2, member=OTHER))
        entries = (OPENS, HOME, *others, chose(Choice.OPT_OUT, 5, on=3))
        opt_ins = [
            history(
                story(*entries, TimelineEntry(chose(Choice.OPT_IN, 6, on=4), line)), WORLD
            ).events[-1]
            for line in (1, 2, 3, 4, 5)
        ]

        assert [opt_in.fact().observed_version for opt_in in opt_ins] == [0, 1, 1, 1, 2]

    def test_an_opt_in_that_saw_the_opt_out_cancels_it_and_one_that_saw_the_line_before_does_not(
        self,
    ) -> None:
        """The stories that a privacy officer reads have to say what the product does."""
        expect = (asked(True, Reason.OPTED_IN),)
        entries = (OPENS, HOME, chose(Choice.OPT_OUT, 3, on=2))

        assert (
            run(
                story(*entries, TimelineEntry(chose(Choice.OPT_IN, 4, on=3), 3), expect=expect),
                WORLD,
            )
            == ()
        )
        assert (
            len(
                run(
                    story(*entries, TimelineEntry(chose(Choice.OPT_IN, 4, on=3), 2), expect=expect),
                    WORLD,
                )
            )
            == 1
        )

    def test_a_choice_without_observed_entry_has_seen_nothing(self) -> None:
        """Zero would be a version that somebody saw; nothing said is less than that."""
        found = history(story(HOME, chose(Choice.OPT_IN, 3, on=2)), WORLD)

        assert [event.fact().observed_version for event in found.events] == [None, None]

    def test_each_member_has_a_record_of_their_own_and_controls_are_in_nobodys(self) -> None:
        """One member's opt-out in another's record wrongs both."""
        found = history(
            story(OPENS, HOME, chose(Choice.OPT_OUT, 3, on=2, member=OTHER), lift(4, on=3)), WORLD
        )

        assert {
            member: [fact.kind for fact in record.facts] for member, record in found.records.items()
        } == {
            MEMBER: [FactKind.RELOCATED_ADULT],
            OTHER: [FactKind.OPTED_OUT],
        }
        assert found.controls.log == (OPENS, lift(4, on=3))
        assert found.events == (HOME, chose(Choice.OPT_OUT, 3, on=2, member=OTHER))

    def test_orders_are_those_of_members_and_of_pauses_and_of_nothing_else(self) -> None:
        """An order that the story leaves out is a deletion that nobody expects."""
        imposed = pause(5, "HK", on=4, reach=Reach.PRIOR_AND_FUTURE)
        scenario = story(
            OPENS,
            HOME,
            chose(Choice.OPT_OUT, 3, on=2),
            erased(4, on=3),
            imposed,
            pause(6, "US", on=5),
        )

        assert [
            (one.because, one.member, one.pause, one.due_at) for one in open_orders(scenario, WORLD)
        ] == [
            (PurgeReason.OPT_OUT, MEMBER, None, day(9)),
            (PurgeReason.ERASURE, MEMBER, None, day(10)),
            (PurgeReason.PAUSE, None, "pause-1", day(11)),
        ]

    def test_a_timeline_ends_when_its_last_entry_was_recorded(self) -> None:
        """A question without a date is about then; asked of another day it gets another answer."""
        assert story(HOME, erased(3, on=2), OPENS, lift(4, on=7)).end == day(7)
        assert story().end == 0


class TestAnswers:
    def test_each_question_is_answered_from_its_own_member_purpose_row_and_times(self) -> None:
        """An answer to another question than the one that was asked proves nothing."""
        scenario = story(
            OPENS,
            HOME,
            pause(3, "HK", on=5, effective_at=day(3)),
            chose(Choice.OPT_OUT, 4, on=8, effective_at=day(6)),
            expect=(
                asked(False, Reason.OPTED_OUT),
                asked(True, Reason.DEFAULT_ON, at=day(5)),
                asked(True, Reason.DEFAULT_ON, known_at=day(7)),
                asked(False, Reason.NO_TERMS, purpose="ads", at=day(5)),
                asked(False, Reason.JURISDICTION_UNKNOWN, member=OTHER),
                asked(False, Reason.PAUSED, member=OTHER, row=Row(jurisdiction="HK")),
            ),
        )

        assert [(one.allowed, one.reason) for one in answers(scenario, WORLD)] == [
            (one.allowed, one.reason) for one in scenario.expect
        ]
        assert run(scenario, WORLD) == ()


class TestFailedAnswers:
    def test_the_place_both_answers_and_the_reason_are_told(self) -> None:
        """Somebody has to find the line, and to see who is wrong: the file or the rules."""
        decided = answers(
            story(OPENS, HOME, pause(3, "US", on=4), expect=(asked(True, Reason.DEFAULT_ON),)),
            WORLD,
        )
        expect = (asked(False, Reason.PAUSED), asked(True, Reason.DEFAULT_ON))

        [failure] = failed_answers(story(expect=expect), (*decided, *decided))

        assert failure == Failure(
            where="expect[1]",
            question=f"{MEMBER}, {PURPOSE}, at 11 Jan 2024",
            expected="allowed, DEFAULT_ON",
            got="excluded, PAUSED",
            because=sentences(decided[0]),
        )
        assert failure.because != ()

    @pytest.mark.parametrize(
        "got", [ALLOWED, Decision(False, Reason.OPTED_IN), Decision(True, Reason.OPTED_IN)]
    )
    def test_an_answer_that_differs_in_either_half_fails(self, got: Decision) -> None:
        """The right answer for the wrong reason is told to a member, and is then wrong."""
        expected = asked(False, Reason.DEFAULT_ON)

        assert [
            one.got.split(", ") for one in failed_answers(story(expect=(expected,)), [got])
        ] == [["allowed" if got.allowed else "excluded", got.reason]]

    def test_a_question_that_was_not_asked_does_not_fail_and_hides_no_other(self) -> None:
        """The trainer cannot be asked about the past; what it was asked still has to hold."""
        expect = (asked(True, Reason.DEFAULT_ON), asked(True, Reason.DEFAULT_ON))

        assert [one.where for one in failed_answers(story(expect=expect), [None, PAUSED])] == [
            "expect[1]"
        ]

    @pytest.mark.parametrize("decisions", [[ALLOWED], [ALLOWED] * 3], ids=["too few", "too many"])
    def test_as_many_answers_as_questions_are_needed(self, decisions: list[Decision]) -> None:
        """An answer that got lost on the way must not read as one that held."""
        expect = (asked(True, Reason.DEFAULT_ON), asked(True, Reason.DEFAULT_ON))

        with pytest.raises(ValueError, match="zip"):
            list(failed_answers(story(expect=expect), decisions))

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({}, "at 11 Jan 2024"),
            ({"known_at": day(12)}, "at 11 Jan 2024, known 13 Jan 2024"),
            ({"row": Row()}, "row ?/?, at 11 Jan 2024"),
            ({"row": Row(jurisdiction="HK")}, "row HK/?, at 11 Jan 2024"),
            (
                {"row": Row(category="posts", collected=day(2))},
                "row ?/posts of 3 Jan 2024, at 11 Jan 2024",
            ),
        ],
    )
    def test_the_question_is_told_in_full(self, more: dict[str, Any], said: str) -> None:
        """Two questions of one member differ in just what is left out."""
        expect = (asked(True, Reason.DEFAULT_ON, **more),)

        assert [one.question for one in failed_answers(story(expect=expect), [PAUSED])] == [
            f"{MEMBER}, {PURPOSE}, {said}"
        ]


ERASURE = ExpectedOrder(because=PurgeReason.ERASURE, member=MEMBER, due_at=day(9))
PAUSE = ExpectedOrder(
    because=PurgeReason.PAUSE, pause="pause-1", jurisdictions=frozenset({"US", "HK"}), due_at=day(9)
)


def differing(wanted: tuple[ExpectedOrder, ...] | None, *orders: PurgeOrder) -> list[Failure]:
    """What is told of these open orders."""
    return list(failed_orders(story(expect_orders=wanted), orders))


class TestFailedOrders:
    def test_orders_that_nobody_looks_at_do_not_fail(self) -> None:
        """Left out is not the same as none."""
        assert differing(None, order(member=MEMBER)) == []
        assert differing((), order(member=MEMBER)) != []

    def test_those_that_are_expected_hold_in_any_order(self) -> None:
        """The log's order is no promise to whoever writes the list."""
        assert differing((PAUSE, ERASURE), order(member=MEMBER), pause_order("HK", "US")) == []

    @pytest.mark.parametrize(
        "other",
        [
            order(PurgeReason.OPT_OUT, member=MEMBER),
            order(member=OTHER),
            order(member=MEMBER, due_at=day(10)),
            order(pause="pause-1"),
        ],
        ids=["cause", "member", "date", "pause"],
    )
    def test_an_order_that_differs_in_anything_is_another(self, other: PurgeOrder) -> None:
        """One day late, or of another member, is a broken promise."""
        assert [one.where for one in differing((ERASURE,), other)] == ["expect_orders[0]"]

    @pytest.mark.parametrize(
        "other",
        [
            pause_order("US"),
            pause_order("US", "HK", "DE"),
            pause_order("US", "HK", due_at=day(8)),
            order(PurgeReason.PAUSE, pause="pause-2", scope=Scope(jurisdictions=("US", "HK"))),
        ],
        ids=["one too few", "one too many", "date", "pause"],
    )
    def test_an_order_of_a_pause_has_all_its_jurisdictions_and_no_other(
        self, other: PurgeOrder
    ) -> None:
        """A country that the order forgot keeps its data."""
        assert [one.where for one in differing((PAUSE,), other)] == ["expect_orders[0]"]

    def test_what_is_not_told_of_an_order_may_be_anything(self) -> None:
        """A story about something else need not reckon the day."""
        vague = ExpectedOrder(because=PurgeReason.PAUSE, pause="pause-1")
        of_member = ExpectedOrder(because=PurgeReason.OPT_OUT, member=MEMBER)
        scope = Scope(jurisdictions=("US",), purposes=(PURPOSE,))

        assert differing((vague,), pause_order("DE", due_at=day(1))) == []
        assert (
            differing(
                (of_member,), order(PurgeReason.OPT_OUT, member=MEMBER, scope=scope, due_at=day(1))
            )
            == []
        )

    def test_one_order_fits_one_line(self) -> None:
        """Two orders of a member are two duties."""
        assert differing((ERASURE, ERASURE), order(member=MEMBER)) == [
            Failure(
                where="expect_orders[1]",
                question="open orders",
                expected=f"ERASURE of {MEMBER}, due 10 Jan 2024",
                got="no other order is open",
            )
        ]

    def test_a_missing_order_is_told_beside_those_that_are_open_instead(self) -> None:
        """Mostly it is one of them, with another date."""
        late = ExpectedOrder(because=PurgeReason.ERASURE, member=MEMBER, due_at=day(10))
        opened = f"ERASURE of {MEMBER}, due 10 Jan 2024; PAUSE of pause-1 in HK, due 10 Jan 2024"
        expected = (
            "PAUSE of pause-1 in HK, US, due 10 Jan 2024",
            f"ERASURE of {MEMBER}, due 11 Jan 2024",
        )

        assert differing((PAUSE, late), order(member=MEMBER), pause_order("HK")) == [
            Failure(
                where=f"expect_orders[{place}]", question="open orders", expected=one, got=opened
            )
            for place, one in enumerate(expected)
        ]

    def test_an_order_that_nobody_expects_is_told_once(self) -> None:
        """It deletes data that may be kept."""
        assert differing((ERASURE,), order(member=MEMBER), order(member=OTHER, due_at=day(10))) == [
            Failure(
                where="expect_orders",
                question="open orders",
                expected="no other order",
                got=f"ERASURE of {OTHER}, due 11 Jan 2024",
            )
        ]

    def test_an_order_whose_date_is_not_expected_is_told_without_one(self) -> None:
        """No date is better than a wrong one."""
        missing = ExpectedOrder(because=PurgeReason.OPT_OUT, member=MEMBER)

        assert [one.expected for one in differing((missing,))] == [f"OPT_OUT of {MEMBER}"]
