"""Purge orders: what obliges subscribers to delete, by when, and under an identity that is opened
once.
"""

from __future__ import annotations

from dataclasses import replace

from tests.strategies import (
    MEMBER,
    PURPOSE,
    WORLD,
    chose,
    day,
    erased,
    folded,
    moved,
    pause,
    policy,
    terms,
)

from consentry.domain.controls import PURGE_WITHIN_DEFAULT, Controls, Reach, Scope
from consentry.domain.events import MemberEvent
from consentry.domain.orders import (
    PurgeOrder,
    PurgeReason,
    Receipt,
    Result,
    order_for_fact,
    order_for_pause,
    owed,
)
from consentry.domain.values import DAY_MICROS, Choice, Micros

WEEK = Micros(7 * DAY_MICROS)
HOME = moved("US", 1, on=1)
ASKING = Controls(WORLD).after(
    policy(
        1,
        terms("US", purge_on_opt_out=True, purge_within=WEEK),
        terms("*", purge_on_opt_out=False),
        on=0,
    )
)


def order_of(
    event: MemberEvent, controls: Controls = ASKING, *, before: tuple[MemberEvent, ...] = (HOME,)
) -> PurgeOrder | None:
    """The order that an event opens for a member with these earlier events."""
    return order_for_fact(MEMBER, event.fact(), folded(*before, event), controls)


class TestMembers:
    def test_an_erasure_opens_an_order_also_where_the_member_has_no_record(self) -> None:
        """A member whose record was lost is still owed what they asked for."""
        event = erased(2, on=3)

        order = order_for_fact(MEMBER, event.fact(), None, ASKING)

        assert order is not None
        assert order.because is PurgeReason.ERASURE
        assert order_for_fact(MEMBER, chose(Choice.OPT_OUT, 2, on=3).fact(), None, ASKING) is None

    def test_an_erasure_opens_an_order_due_in_the_shortest_time_of_the_members_terms(self) -> None:
        """The member is told a date; it has to be the strictest that was promised."""
        order = order_of(erased(2, on=3))

        assert order is not None
        assert (order.because, order.member, order.scope) == (PurgeReason.ERASURE, MEMBER, None)
        assert order.recorded_at == day(3)
        assert order.due_at == day(10)

    def test_without_terms_thirty_days_are_allowed(self) -> None:
        """A missing policy must not mean that nothing is ever due."""
        nowhere = order_of(erased(2, on=3), before=())
        elsewhere = order_of(erased(2, on=3), Controls(WORLD))

        assert nowhere is not None
        assert elsewhere is not None
        assert nowhere.due_at == elsewhere.due_at == day(3) + PURGE_WITHIN_DEFAULT

    def test_an_opt_out_opens_an_order_only_where_the_terms_ask_for_it(self) -> None:
        """Elsewhere an opt-out is for the future, and rows that were used lawfully stay."""
        asked = order_of(chose(Choice.OPT_OUT, 2, on=3))
        not_asked = order_of(chose(Choice.OPT_OUT, 2, on=3), before=(moved("HK", 1, on=1),))

        assert asked is not None
        assert asked.because is PurgeReason.OPT_OUT
        assert asked.scope is not None
        assert asked.scope.purposes == (PURPOSE,)
        assert not_asked is None

    def test_the_terms_of_where_the_member_lives_now_count(self) -> None:
        """Somebody who moved is owed what their new home promises."""
        order = order_of(
            chose(Choice.OPT_OUT, 3, on=3), before=(moved("HK", 1, on=1), moved("US", 2, on=2))
        )

        assert order is not None

    def test_a_move_that_has_not_taken_effect_changes_no_terms(self) -> None:
        """Somebody who says that they will move must not lose, until then, what their home
        promises.
        """
        announced = moved("HK", 2, on=2, effective_at=day(100))

        assert order_of(chose(Choice.OPT_OUT, 3, on=3), before=(HOME, announced)) is not None

    def test_nothing_that_follows_an_erasure_opens_an_order(self) -> None:
        """Subscribers would look for a member again whom they have purged."""
        gone = (HOME, erased(2, on=3))

        assert order_of(erased(3, on=4), before=gone) is None
        assert order_of(chose(Choice.OPT_OUT, 3, on=4), before=gone) is None

    def test_until_an_erasure_takes_effect_an_opt_out_opens_an_order(self) -> None:
        """The account is still open; what it says is heard."""
        scheduled = (HOME, replace(erased(2, on=3), effective_at=day(20)))

        assert order_of(chose(Choice.OPT_OUT, 3, on=4), before=scheduled) is not None
        assert order_of(chose(Choice.OPT_OUT, 3, on=20), before=scheduled) is None

    def test_what_followed_in_the_log_does_not_change_the_order(self) -> None:
        """After a crash the event is read again, and the record has come further: still the same
        order and date.
        """
        opt_out, erasure = (
            chose(Choice.OPT_OUT, 2, on=3),
            replace(erased(3, on=4), effective_at=day(20)),
        )
        later = folded(HOME, opt_out, erasure, moved("HK", 4, on=5))

        for event, before in ((opt_out, (HOME,)), (erasure, (HOME, opt_out))):
            first = order_of(event, before=before)
            assert first is not None
            assert order_for_fact(MEMBER, event.fact(), later, ASKING) == first

    def test_other_facts_oblige_to_nothing(self) -> None:
        """An order that nobody caused would delete data that may be kept."""
        assert order_of(chose(Choice.OPT_IN, 2, on=3)) is None
        assert order_of(moved("HK", 2, on=3)) is None

    def test_an_event_that_is_read_again_opens_the_same_order(self) -> None:
        """After a crash the worker reads events again; subscribers must not be asked twice."""
        first, again = (
            order_of(erased(2, on=3)),
            order_of(erased(2, on=3), before=(HOME, erased(2, on=3))),
        )

        assert first == again

    def test_two_events_open_two_orders(self) -> None:
        """One receipt must not settle what another member, or another opt-out, is owed."""
        ids = {order.order_id for number in (2, 3) if (order := order_of(erased(number, on=3)))}

        assert len(ids) == 2


class TestPauses:
    def test_a_pause_of_past_training_opens_one_order_for_its_whole_scope(self) -> None:
        """Removing a country from training sets is one duty, however many members live there."""
        imposed = pause(
            5,
            "US",
            on=3,
            name="us-2024",
            version=2,
            reach=Reach.PRIOR_AND_FUTURE,
            categories=("posts",),
        )

        order = order_for_pause(imposed, ASKING)

        assert order is not None
        assert (order.order_id, order.because, order.pause) == (
            "pause:us-2024:2",
            PurgeReason.PAUSE,
            "us-2024",
        )
        assert (order.member, order.scope) == (None, imposed.scope)
        assert order.due_at == day(3) + WEEK

    def test_a_group_is_due_in_the_shortest_time_of_its_countries(self) -> None:
        """One deadline for the group must keep the promise made to each country."""
        controls = ASKING.after(policy(2, terms("DE", purge_within=Micros(DAY_MICROS)), on=0))

        order = order_for_pause(pause(5, "EEA", on=3, reach=Reach.PRIOR_AND_FUTURE), controls)

        assert order is not None
        assert order.due_at == day(4)

    def test_a_part_of_a_country_keeps_its_shorter_promise(self) -> None:
        """A member in California may be promised five days; the country's pause must not make them
        thirty.
        """
        controls = ASKING.after(policy(2, terms("US-CA", purge_within=Micros(DAY_MICROS)), on=0))

        for scope in ("US", "*"):
            order = order_for_pause(pause(5, scope, on=3, reach=Reach.PRIOR_AND_FUTURE), controls)
            assert order is not None
            assert order.due_at == day(4)

    def test_a_pause_that_only_goes_forward_opens_none(self) -> None:
        """What was trained lawfully stays."""
        assert order_for_pause(pause(5, "US", on=3), ASKING) is None

    def test_a_reach_that_is_not_known_is_read_as_the_stricter_one(self) -> None:
        """A new word of a regulator's desk must not leave data where it should go."""
        assert order_for_pause(pause(5, "US", on=3, reach=Reach.UNKNOWN), ASKING) is not None


class TestReceipts:
    order = order_for_pause(pause(5, "US", on=3, reach=Reach.PRIOR_AND_FUTURE), ASKING)

    def receipt(self, subscriber: str, result: Result) -> dict[tuple[str, str], Receipt]:
        """A receipt for the data set `posts`, by its pair."""
        assert self.order is not None
        receipt = Receipt(
            order_id=self.order.order_id,
            subscriber=subscriber,
            dataset="posts",
            result=result,
            rows_removed=0,
            version_before="a",
            version_after="b",
            completed_at=day(4),
        )
        return {(subscriber, "posts"): receipt}

    def test_only_a_final_answer_ends_what_a_subscriber_owes(self) -> None:
        """A failed deletion that counted as done would be found by the regulator, not by us."""
        assert self.order is not None
        declared = [("ranker", "posts"), ("writer", "posts")]

        for result in Result:
            left = owed(self.order, self.receipt("ranker", result), declared)
            assert left == (tuple(declared) if result is Result.FAILED else (("writer", "posts"),))

    def test_the_answer_of_somebody_undeclared_settles_nothing(self) -> None:
        """A misspelt subscriber must not answer for the real one."""
        assert self.order is not None
        receipts = self.receipt("rankre", Result.DELETED)

        assert owed(self.order, receipts, [("ranker", "posts")]) == (("ranker", "posts"),)


class TestIdentity:
    """What a receipt refers to, months later and perhaps to another version of Consentry."""

    def test_an_order_is_named_by_its_cause_the_event_and_the_member(self) -> None:
        """Under another name the receipts of the old version would settle nothing."""
        asked, gone = order_of(chose(Choice.OPT_OUT, 2, on=3)), order_of(erased(2, on=3))

        assert asked is not None
        assert gone is not None
        assert asked.order_id == "opt_out:0000000000000002:member-1"
        assert gone.order_id == "erasure:0000000000000002:member-1"

    def test_an_opt_outs_order_is_for_its_purpose_wherever_the_member_lived(self) -> None:
        """What was collected before a move is the member's too."""
        order = order_of(chose(Choice.OPT_OUT, 2, on=3))

        assert order is not None
        assert order.scope == Scope(jurisdictions=(), purposes=(PURPOSE,), categories=None)
        assert (order.recorded_at, order.due_at, order.pause) == (day(3), day(10), None)

    def test_a_pauses_order_begins_when_it_was_recorded(self) -> None:
        """From then the subscribers have their days, also when the authority's date was earlier."""
        imposed = pause(5, "US", on=3, reach=Reach.PRIOR_AND_FUTURE, effective_at=day(1))

        order = order_for_pause(imposed, ASKING)

        assert order is not None
        assert (order.recorded_at, order.due_at) == (day(3), day(10))


class TestDueDates:
    """The one number that a member and a regulator are told."""

    def test_a_move_that_takes_effect_in_the_instant_of_the_event_counts(self) -> None:
        """The member is owed what their home promises from its first instant on."""
        here = (moved("HK", 1, on=1), moved("US", 2, on=2, effective_at=day(3)))

        assert order_of(chose(Choice.OPT_OUT, 3, on=3), before=here) is not None
        assert order_of(chose(Choice.OPT_OUT, 3, on=2.9), before=here) is None

    def test_a_pause_is_due_by_the_terms_of_its_own_purposes(self) -> None:
        """A stricter promise about another use is not this regulator's."""
        quick = policy(2, terms("US", purpose="ads", purge_within=Micros(DAY_MICROS)), on=0)
        imposed = pause(5, "US", on=3, reach=Reach.PRIOR_AND_FUTURE)
        everything = replace(imposed, scope=replace(imposed.scope, purposes=None))

        for one, due in ((imposed, day(10)), (everything, day(4))):
            order = order_for_pause(one, ASKING.after(quick))
            assert order is not None
            assert order.due_at == due

    def test_the_terms_in_force_when_the_cause_was_recorded_count(self) -> None:
        """What is promised later, or was not yet known, cannot have been the promise."""
        quick = terms("US", purge_on_opt_out=True, purge_within=Micros(DAY_MICROS))
        causes = (erased(2, on=3), chose(Choice.OPT_OUT, 2, on=3))

        for published, due in (
            (policy(2, quick, on=3), day(4)),
            (policy(2, quick, on=3.1, effective=1), day(10)),
        ):
            for cause in causes:
                order = order_of(cause, ASKING.after(published))
                assert order is not None
                assert order.due_at == due
            of_pause = order_for_pause(
                pause(5, "US", on=3, reach=Reach.PRIOR_AND_FUTURE), ASKING.after(published)
            )
            assert of_pause is not None
            assert of_pause.due_at == due
