"""Folding: what a member's record says after any log, however often its parts come again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
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
    erased,
    folded,
    histories,
    moved,
    policy,
    random_event,
    released,
    repeated,
    terms,
    unreadable,
)

from consentry.domain.controls import Controls
from consentry.domain.decisions import MemberState, decide, member_state
from consentry.domain.events import FactKind, MemberEvent, SentEvent, event_tag
from consentry.domain.records import FACTS_MAX, Record, fold, reused_event_id
from consentry.domain.values import Choice, Micros, Reason
from consentry.wire.events import admit

OPEN = Controls(WORLD).after(policy(1, terms("*"), on=0))


def stands(
    record: Record | None, *, at: Micros = day(400), known_at: Micros = day(400)
) -> MemberState:
    """What the record says for the one purpose."""
    return member_state(record, purpose=PURPOSE, at=at, known_at=known_at)


def unbounded(history: Sequence[MemberEvent]) -> Record:
    """The record that never forgets: every fact in log order up to an erasure."""
    record = Record(member=MEMBER)
    for event in history:
        said = [known for known in record.facts if known.kind is FactKind.ERASED]
        if any(
            erasure.effective_at <= max(event.recorded_at, erasure.recorded_at) for erasure in said
        ):
            continue
        version = record.version + 1
        record = Record(
            member=MEMBER,
            version=version,
            facts=(*record.facts, event.fact()._replace(version=version)),
        )
    return record


@st.composite
def long_histories(draw: st.DrawFn) -> list[MemberEvent]:
    """More events than a record keeps, recorded in log order as one gateway does."""
    random = Random(draw(st.integers(0, 2**32)))
    count = FACTS_MAX + random.randrange(1, 60)
    return [random_event(random, number, recorded_at=day(number)) for number in range(1, count + 1)]


class TestDuplication:
    @given(st.data(), histories())
    def test_any_duplication_of_a_history_folds_to_the_same_record(
        self, data: st.DataObject, history: list[MemberEvent]
    ) -> None:
        """Brokers and retries give events again; a member whose opt-out then moved would be trained
        on.
        """
        again = data.draw(repeated(history))

        assert folded(*again) == folded(*history)

    @given(histories(), st.integers(1, 3))
    def test_a_whole_log_read_again_changes_nothing(
        self, history: list[MemberEvent], times: int
    ) -> None:
        """After a rebuild the worker reads on from an older place than the records came from."""
        assert folded(*(history * times), *history) == folded(*history)

    @given(histories(), st.integers(0, 12))
    def test_folding_on_from_a_stored_record_equals_folding_all_at_once(
        self, history: list[MemberEvent], cut: int
    ) -> None:
        """A worker that takes a partition over has only the record, never the log behind it."""
        before = folded(*history[:cut])
        after = before
        for event in history[cut:]:
            after = fold(after, event)

        assert after == folded(*history)

    def test_a_retry_that_was_stamped_anew_does_not_hold_the_member(self) -> None:
        """A gateway stamps each attempt and a fast clock is clamped to another moment: the member
        said it only once.
        """
        first = chose(Choice.OPT_OUT, 1, on=1)
        retry = chose(Choice.OPT_OUT, 1, on=1.5, effective_at=day(1))

        record = folded(first, retry)

        assert record == folded(first)


class TestLatches:
    @given(histories(), histories())
    def test_nothing_that_comes_after_an_erasure_changes_the_record(
        self, before: list[MemberEvent], after: list[MemberEvent]
    ) -> None:
        """An erased member must not come back because an old client opted them in."""
        gone = folded(*before, erased(1000, on=5))

        again = gone
        for event in after:
            again = fold(again, event)

        assert again == gone

    def test_what_is_said_before_an_erasure_takes_effect_counts_until_then(self) -> None:
        """An account that closes in two weeks belongs to a person who may still opt out, and is
        then obeyed.
        """
        home, scheduled = moved("US", 1, on=1), replace(erased(2, on=2), effective_at=day(16))
        record = folded(
            home,
            scheduled,
            chose(Choice.OPT_OUT, 3, on=9),
            chose(Choice.OPT_IN, 4, on=16, observed=9),
        )

        assert record is not None
        assert stands(record, at=day(9)).choice is not None
        assert stands(record, at=day(9)).erasure is None
        assert stands(record, at=day(16)).erasure is not None
        assert [fact.kind for fact in record.facts if fact.name == PURPOSE] == [FactKind.OPTED_OUT]

    @pytest.mark.parametrize("dates", [(16, 9), (9, 16)])
    def test_of_two_erasures_the_earlier_one_latches(self, dates: tuple[float, float]) -> None:
        """A later date given by mistake must not keep an erased account open for new facts."""
        both = [
            replace(erased(place, on=1), effective_at=day(date))
            for place, date in enumerate(dates, start=1)
        ]

        record = folded(*both, chose(Choice.OPT_IN, 3, on=10))

        assert record is not None
        assert [fact.kind for fact in record.facts] == [FactKind.ERASED] * 2
        assert record.erasure is not None
        assert record.erasure.effective_at == day(9)

    def test_an_event_id_with_other_content_holds_the_member(self) -> None:
        """Somebody forges, or a producer is broken: either way what the member said is not
        known.
        """
        record = folded(chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 1, on=2, observed=1))

        assert stands(record).quarantine is not None
        assert stands(record).choice is not None
        assert record == folded(
            chose(Choice.OPT_OUT, 1, on=1),
            chose(Choice.OPT_IN, 1, on=2, observed=1),
            chose(Choice.OPT_IN, 1, on=2, observed=1),
        )

    @pytest.mark.parametrize(
        "event",
        [
            chose(Choice.OPT_OUT, 1, on=5),
            chose(Choice.UNKNOWN, 1, on=5),
            chose(Choice.OPT_IN, 1, on=5, observed=0),
            chose(Choice.OPT_OUT, 1, on=5, effective_at=day(9)),
            chose(Choice.OPT_OUT, 1, on=5, effective_at=day(2)),
            moved("DE", 1, on=5),
            erased(1, on=5),
        ],
    )
    def test_the_same_bytes_appended_twice_never_hold(self, event: SentEvent) -> None:
        """A sender whose clock is ahead retries: holding the member for that, nobody could release
        them all.
        """
        moments = [day(5) - 900_000 + step for step in (0, 400_000, 800_000, 1_200_000)]
        for first, again in product(moments, repeat=2):
            once = fold(None, admit(event, Micros(first)))

            assert fold(once, admit(event, Micros(again))) == once

    def test_another_effective_time_that_no_clamping_explains_holds_the_member(self) -> None:
        """A forged repetition must not pass for a retry: it is said by somebody who must not say
        anything.
        """
        first = chose(Choice.OPT_OUT, 1, on=5, effective_at=day(3))
        for other in (
            chose(Choice.OPT_OUT, 1, on=6, effective_at=day(2)),
            chose(Choice.OPT_OUT, 1, on=6, effective_at=day(4)),
            chose(Choice.OPT_OUT, 1, on=5, effective_at=day(7)),
        ):
            assert stands(folded(first, other)).quarantine is not None
        opt_in = chose(Choice.OPT_IN, 1, on=5, observed=0)
        assert (
            stands(
                folded(opt_in, replace(opt_in, effective_at=day(7), recorded_at=day(8)))
            ).quarantine
            is not None
        )

    def test_a_hold_ends_when_an_operator_releases_the_member(self) -> None:
        """Without an end, one unreadable message would exclude a member who opted in for ever."""
        held = folded(unreadable(1, on=1))
        free = folded(unreadable(1, on=1), released(2, on=2))

        assert stands(held).quarantine is not None
        assert stands(free).quarantine is None


class TestChoices:
    def test_an_opt_in_never_cancels_an_opt_out_it_had_not_seen(self) -> None:
        """Two devices at once: the one that did not know of the opt-out must not undo it."""
        for observed in (None, 0):
            record = folded(
                chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 2, on=2, observed=observed)
            )

            assert (choice := stands(record).choice) is not None
            assert choice.kind is FactKind.OPTED_OUT

    def test_an_opt_in_cancels_the_opt_out_that_the_person_had_seen(self) -> None:
        """Members may change their minds, and are then to be believed."""
        record = folded(chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 2, on=2, observed=1))

        assert (choice := stands(record).choice) is not None
        assert choice.kind is FactKind.OPTED_IN

    def test_a_second_opt_out_has_to_be_seen_as_well(self) -> None:
        """Having seen the first of two refusals is not having seen the one that stands."""
        record = folded(
            chose(Choice.OPT_OUT, 1, on=1),
            chose(Choice.OPT_OUT, 2, on=2),
            chose(Choice.OPT_IN, 3, on=3, observed=1),
        )

        assert (choice := stands(record).choice) is not None
        assert choice.kind is FactKind.OPTED_OUT

    def test_an_unknown_choice_takes_back_an_opt_in_and_never_an_opt_out(self) -> None:
        """Not knowing is never a yes, and never undoes a no."""
        taken_back = folded(chose(Choice.OPT_IN, 1, on=1), chose(Choice.UNKNOWN, 2, on=2))
        kept = folded(chose(Choice.OPT_OUT, 1, on=1), chose(Choice.UNKNOWN, 2, on=2))

        assert stands(taken_back).choice is None
        assert (choice := stands(kept).choice) is not None
        assert choice.kind is FactKind.OPTED_OUT

    def test_the_order_of_the_log_decides_and_not_a_clock(self) -> None:
        """A producer's clock that runs ahead must not make its event the last word."""
        record = folded(chose(Choice.OPT_IN, 1, on=9), chose(Choice.OPT_OUT, 2, on=1))

        assert (choice := stands(record).choice) is not None
        assert choice.kind is FactKind.OPTED_OUT


class TestWhatNobodyCanHaveSeen:
    def test_a_version_that_does_not_exist_yet_was_seen_by_nobody(self) -> None:
        """A broken producer that sends a huge number would cancel every opt-out it meets."""
        for observed in (3, 4, 99, 1 << 40):
            record = folded(
                moved("US", 1, on=1),
                chose(Choice.OPT_OUT, 2, on=2),
                chose(Choice.OPT_IN, 3, on=3, observed=observed),
            )
            choice = stands(record).choice
            assert choice is not None
            assert choice.kind is FactKind.OPTED_OUT

        seen = folded(
            moved("US", 1, on=1),
            chose(Choice.OPT_OUT, 2, on=2),
            chose(Choice.OPT_IN, 3, on=3, observed=2),
        )
        choice = stands(seen).choice
        assert choice is not None
        assert choice.kind is FactKind.OPTED_IN


class TestBound:
    @given(long_histories())
    def test_a_record_keeps_at_most_64_facts(self, history: list[MemberEvent]) -> None:
        """Somebody who toggles all day must not make a record that no server takes."""
        record = folded(*history)

        assert record is not None
        assert len(record.facts) <= FACTS_MAX
        assert record.version == unbounded(history).version

    @given(long_histories(), st.integers(0, 40), st.integers(0, 200))
    def test_a_folded_record_answers_like_one_that_never_forgets_or_says_that_it_cannot(
        self, history: list[MemberEvent], at: int, known_at: int
    ) -> None:
        """An answer about the past that is silently wrong is worse for a regulator than none."""
        record, reference = folded(*history), unbounded(history)
        assert record is not None
        question = {"at": day(at), "known_at": day(known_at)}

        answer = decide(record, None, OPEN, purpose=PURPOSE, **question)

        expected = decide(reference, None, OPEN, purpose=PURPOSE, **question)
        if (
            question["at"] >= record.folded_effective_at
            and question["known_at"] >= record.folded_recorded_at
        ):
            assert answer == expected
        else:
            assert (answer.allowed, answer.reason) == (False, Reason.HISTORY_FOLDED)

    @given(long_histories())
    def test_the_present_is_never_folded_away(self, history: list[MemberEvent]) -> None:
        """The one question that training asks must always be answered."""
        record, reference = folded(*history), unbounded(history)

        assert stands(record) == stands(reference)

    @given(st.data(), long_histories())
    def test_duplicates_of_what_was_folded_away_never_widen_use(
        self, data: st.DataObject, history: list[MemberEvent]
    ) -> None:
        """An opt-in from years ago that a broken producer sends once more must not count again."""
        record = folded(*history)
        after = record
        for event in data.draw(st.lists(st.sampled_from(history), max_size=10)):
            after = fold(after, event)

        question = {"purpose": PURPOSE, "at": day(400), "known_at": day(400)}
        before_allows = decide(record, None, OPEN, **question).allowed  # type: ignore[arg-type]
        after_allows = decide(after, None, OPEN, **question).allowed  # type: ignore[arg-type]
        assert before_allows or not after_allows

    def test_more_standing_choices_than_the_bound_are_all_kept(self) -> None:
        """No bound is worth forgetting an opt-out."""
        purposes = [f"purpose-{number}" for number in range(FACTS_MAX + 6)]
        record = folded(
            *(
                chose(Choice.OPT_OUT, number + 1, on=number, purpose=name)
                for number, name in enumerate(purposes)
            )
        )

        choices = [
            member_state(record, purpose=name, at=day(400), known_at=day(400)).choice
            for name in purposes
        ]

        assert [choice.kind for choice in choices if choice] == [FactKind.OPTED_OUT] * len(purposes)

    def test_a_late_relocation_is_never_lost(self) -> None:
        """A bulk import stamps years of history with one moment: the move to a paused country must
        not get lost.
        """
        record = full_record(moved("US", 1, on=0))

        after = fold(record, moved("HK", 300, on=1))

        decision = decide(after, None, OPEN, purpose=PURPOSE, at=day(400), known_at=day(400))
        assert (decision.allowed, decision.reason) == (False, Reason.QUARANTINED)

    def test_a_late_unknown_choice_still_takes_an_opt_in_back(self) -> None:
        """It only ever excludes, so no bound may drop it."""
        record = full_record(chose(Choice.OPT_IN, 1, on=0))
        opted_in = fold(record, chose(Choice.OPT_IN, 300, on=2, observed=1000))

        after = fold(opted_in, chose(Choice.UNKNOWN, 301, on=1))

        assert stands(opted_in).choice is not None
        assert stands(after).choice is None

    def test_a_late_opt_in_is_not_let_in(self) -> None:
        """It may be one that was cancelled long ago and is only delivered again."""
        record = full_record(chose(Choice.OPT_IN, 1, on=0))

        after = fold(record, chose(Choice.OPT_IN, 1, on=0))

        assert after == record


def full_record(*events: MemberEvent) -> Record:
    """The record after these events and more than it can keep, all recorded on day 1."""
    record = folded(*events, *(chose(Choice.UNKNOWN, number, on=1) for number in range(100, 180)))
    assert record is not None
    assert record.folded_recorded_at == day(1)
    return record


def aged(*events: MemberEvent) -> Record:
    """The record after these events and so many later ones that all of these are in the folded
    part.
    """
    record = folded(
        *events,
        *(chose(Choice.UNKNOWN, 900 + number, on=300, purpose="filler") for number in range(80)),
    )
    assert record is not None
    assert record.folded_recorded_at >= day(300)
    return record


def kept(record: Record) -> list[tuple[FactKind, int]]:
    """What a record keeps beside the fillers: kinds and versions, in its order."""
    return [(fact.kind, fact.version) for fact in record.facts if fact.name != "filler"]


class TestFoldedAway:
    """Of what is folded away only what still stands is kept: one fact too few forgets a no, one too
    many a change.
    """

    @pytest.mark.parametrize(
        ("events", "expected"),
        [
            ([moved("US", 1, on=1), moved("HK", 2, on=2)], [(FactKind.RELOCATED_ADULT, 2)]),
            (
                [chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 2, on=2)],
                [(FactKind.OPTED_OUT, 1)],
            ),
            (
                [chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 2, on=2, observed=1)],
                [(FactKind.OPTED_IN, 2)],
            ),
            (
                [chose(Choice.OPT_OUT, 1, on=1), chose(Choice.UNKNOWN, 2, on=2)],
                [(FactKind.OPTED_OUT, 1)],
            ),
            ([chose(Choice.OPT_IN, 1, on=1), chose(Choice.UNKNOWN, 2, on=2)], []),
            ([unreadable(1, on=1), released(2, on=2)], []),
            ([released(1, on=1), unreadable(2, on=2)], [(FactKind.QUARANTINED, 2)]),
            ([unreadable(1, on=1), released(2, on=2, observed=1)], []),
            (
                [unreadable(1, on=1), unreadable(2, on=2), released(3, on=3, observed=1)],
                [(FactKind.QUARANTINED, 2)],
            ),
            ([unreadable(1, on=1), released(2, on=2, observed=2)], [(FactKind.QUARANTINED, 1)]),
            ([unreadable(1, on=1), unreadable(2, on=2)], [(FactKind.QUARANTINED, 2)]),
        ],
        ids=[
            "moved again",
            "opted in unseen",
            "opted in seen",
            "opt-out, then unknown",
            "opt-in, then unknown",
            "released",
            "held after a release",
            "released, as it was seen",
            "held again after the operator had looked",
            "released by a claim to have seen what was not there yet",
            "held twice",
        ],
    )
    def test_what_stands_is_kept_and_nothing_else(
        self, events: list[MemberEvent], expected: list[tuple[FactKind, int]]
    ) -> None:
        """Somebody whom we have known for years must get the answer of somebody new who said the
        same.
        """
        record = aged(*events)

        assert kept(record) == expected
        assert stands(record) == stands(folded(*events))

    def test_each_purpose_keeps_its_own_choice(self) -> None:
        """An opt-out of one use must not take the place of the opt-out of another."""
        record = aged(
            chose(Choice.OPT_IN, 1, on=1, purpose="ads"),
            chose(Choice.OPT_OUT, 2, on=2),
            chose(Choice.OPT_IN, 3, on=3, purpose="ads"),
        )

        assert kept(record) == [(FactKind.OPTED_OUT, 2), (FactKind.OPTED_IN, 3)]

    def test_what_is_kept_stays_in_the_order_of_the_log(self) -> None:
        """Later events fold on from it, and only the log's order says which word was the last."""
        record = aged(chose(Choice.OPT_IN, 1, on=1), unreadable(2, on=2), moved("US", 3, on=3))

        assert kept(record) == [
            (FactKind.OPTED_IN, 1),
            (FactKind.QUARANTINED, 2),
            (FactKind.RELOCATED_ADULT, 3),
        ]

    def test_an_erasure_dated_ahead_is_kept_behind_all_else_and_no_release_ends_it(self) -> None:
        """An account that closes in two years closes, however much is said until then."""
        late, early = (
            replace(erased(one, on=2), effective_at=day(date)) for one, date in ((2, 900), (3, 800))
        )
        home = moved("US", 1, on=1)

        record = aged(home, late, early, unreadable(4, on=4), released(5, on=5))

        assert kept(record) == [
            (FactKind.RELOCATED_ADULT, 1),
            (FactKind.ERASED, 2),
            (FactKind.ERASED, 3),
        ]
        assert record.facts[-1].kind is FactKind.ERASED
        assert record.erasure == record.facts[-1]
        assert stands(record, at=day(900)).erasure == record.erasure

    def test_the_horizon_never_goes_back(self) -> None:
        """A question that was refused yesterday because its facts are gone would be answered,
        wrongly, today.
        """
        ahead = chose(Choice.OPT_OUT, 1, on=350, effective_at=day(390))

        record = aged(ahead, chose(Choice.OPT_OUT, 2, on=1))

        assert record.folded_effective_at == day(390)
        assert folded_on(record).folded_effective_at == day(390)
        assert folded_on(record).folded_recorded_at == record.folded_recorded_at

    def test_as_few_facts_are_folded_as_it_takes(self) -> None:
        """Each one more puts the horizon forward, and an auditor is refused an answer that was
        still there.
        """
        fillers = [
            chose(Choice.UNKNOWN, 900 + number, on=number, purpose="filler")
            for number in range(10, 73)
        ]
        record = folded(moved("US", 1, on=1), moved("HK", 2, on=2), *fillers)

        assert record is not None
        assert len(record.facts) == FACTS_MAX
        assert kept(record) == [(FactKind.RELOCATED_ADULT, 2)]
        assert (record.folded_effective_at, record.folded_recorded_at) == (day(2), day(2))

    def test_a_record_is_folded_up_to_its_last_fact_if_need_be(self) -> None:
        """A record that may outgrow its bound where it could be folded is one that no server takes
        at last.
        """
        choices = [
            chose(Choice.OPT_OUT, number, on=number, purpose=f"purpose-{number}")
            for number in range(FACTS_MAX)
        ]
        again = chose(Choice.OPT_OUT, FACTS_MAX, on=FACTS_MAX, purpose="purpose-0")
        one_more = chose(Choice.OPT_OUT, FACTS_MAX, on=FACTS_MAX, purpose="purpose-64")

        record, over = folded(*choices, again), folded(*choices, one_more)

        assert record is not None
        assert over is not None
        assert [fact.version for fact in record.facts] == [*range(2, FACTS_MAX + 2)]
        assert record.folded_recorded_at == day(FACTS_MAX)
        assert [fact.version for fact in over.facts] == [*range(1, FACTS_MAX + 2)]
        assert (over.folded_effective_at, over.folded_recorded_at) == (0, 0)

    def test_of_two_erasures_of_one_day_the_later_in_the_log_stays_behind(self) -> None:
        """Both close the account on that day; every worker has to keep the two in the same
        order.
        """
        both = [replace(erased(number, on=2), effective_at=day(9)) for number in (1, 2)]

        record = folded(*both, unreadable(3, on=3))

        assert record is not None
        assert [fact.version for fact in record.facts] == [1, 3, 2]

    def test_it_stays_the_members_own_record(self) -> None:
        """A record under no name is nobody's, and its member's opt-out is gone."""
        forged = folded(chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 1, on=2))

        assert forged is not None
        assert aged(chose(Choice.OPT_OUT, 1, on=1)).member == forged.member == MEMBER

    def test_a_late_relocation_holds_the_member_and_takes_nothing_away(self) -> None:
        """What the member said before must not be the price of a move that came too late."""
        record, late = full_record(chose(Choice.OPT_OUT, 1, on=0)), moved("HK", 300, on=1)

        after = fold(record, late)

        assert after == fold(record, reused_event_id(MEMBER, late.fact()))
        assert after.member == MEMBER
        assert (choice := stands(after).choice) is not None
        assert choice.kind is FactKind.OPTED_OUT

    def test_a_reused_event_id_is_one_offence_whatever_version_it_would_have_made(self) -> None:
        """A forger who repeats the forgery must not thereby add a fact each time."""
        fact = chose(Choice.OPT_OUT, 1, on=1).fact()

        assert reused_event_id(MEMBER, fact) == reused_event_id(MEMBER, fact._replace(version=7))
        assert reused_event_id(MEMBER, fact) != reused_event_id(MEMBER, fact._replace(name="ads"))


def folded_on(record: Record) -> Record:
    """The record after as many events again as it keeps, all of an earlier day than any before."""
    for number in range(FACTS_MAX):
        record = fold(record, unreadable(5000 + number, on=-number))
    return record


def test_every_byte_of_an_event_id_makes_another_tag() -> None:
    """Of two events with one tag and other content the second is taken for a forgery, and the
    member is quarantined.
    """
    tags = {
        event_tag(bytes(16)),
        *(event_tag(bytes(place) + b"\1" + bytes(15 - place)) for place in range(8)),
    }

    assert len(tags) == 9
    assert tags == {
        event_tag(bytes(16)),
        *(event_tag(bytes(place) + b"\1" + bytes(15 - place)) for place in range(8, 16)),
    }
    assert event_tag(bytes(range(16))) == bytes([8] * 8)
