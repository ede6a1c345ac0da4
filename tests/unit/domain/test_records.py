"""Folding: what a member's record says after any log, however often its parts come again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from consentry.domain.decisions import Standing, decide, standing
from consentry.domain.events import FactKind, MemberEvent
from consentry.domain.records import FACTS_MAX, Record, fold
from consentry.domain.values import Choice, Micros, Reason

OPEN = Controls(WORLD).after(policy(1, terms("*"), on=0))


def stands(record: Record | None, *, at: Micros = day(400), known_at: Micros = day(400)) -> Standing:
    """What the record says for the one purpose."""
    return standing(record, purpose=PURPOSE, at=at, known_at=known_at)


def unbounded(history: Sequence[MemberEvent]) -> Record:
    """The record that never forgets: every fact in log order up to an erasure."""
    record = Record(member=MEMBER)
    for event in history:
        said = [known for known in record.facts if known.kind is FactKind.ERASED]
        if any(erasure.effective_at <= max(event.recorded_at, erasure.recorded_at) for erasure in said):
            continue
        version = record.version + 1
        record = Record(member=MEMBER, version=version, facts=(*record.facts, event.fact()._replace(version=version)))
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
        """Brokers and retries give events again; a member whose opt-out then moved would be trained on."""
        again = data.draw(repeated(history))

        assert folded(*again) == folded(*history)

    @given(histories(), st.integers(1, 3))
    def test_a_whole_log_read_again_changes_nothing(self, history: list[MemberEvent], times: int) -> None:
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
        """A gateway stamps each attempt and a fast clock is clamped to another moment: the member said it only once."""
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
        """An account that closes in two weeks belongs to a person who may still opt out, and is then obeyed."""
        home, scheduled = moved("US", 1, on=1), replace(erased(2, on=2), effective_at=day(16))
        record = folded(home, scheduled, chose(Choice.OPT_OUT, 3, on=9), chose(Choice.OPT_IN, 4, on=16, observed=9))

        assert record is not None
        assert stands(record, at=day(9)).choice is not None
        assert stands(record, at=day(9)).erasure is None
        assert stands(record, at=day(16)).erasure is not None
        assert [fact.kind for fact in record.facts if fact.name == PURPOSE] == [FactKind.OPTED_OUT]

    @pytest.mark.parametrize("dates", [(16, 9), (9, 16)])
    def test_of_two_erasures_the_earlier_one_latches(self, dates: tuple[float, float]) -> None:
        """A later date given by mistake must not keep an erased account open for new facts."""
        both = [replace(erased(place, on=1), effective_at=day(date)) for place, date in enumerate(dates, start=1)]

        record = folded(*both, chose(Choice.OPT_IN, 3, on=10))

        assert record is not None
        assert [fact.kind for fact in record.facts] == [FactKind.ERASED] * 2
        assert record.erasure is not None
        assert record.erasure.effective_at == day(9)

    def test_an_event_id_with_other_content_holds_the_member(self) -> None:
        """Somebody forges, or a producer is broken: either way what the member said is not known."""
        record = folded(chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 1, on=2, observed=1))

        assert stands(record).hold is not None
        assert stands(record).choice is not None
        assert record == folded(
            chose(Choice.OPT_OUT, 1, on=1),
            chose(Choice.OPT_IN, 1, on=2, observed=1),
            chose(Choice.OPT_IN, 1, on=2, observed=1),
        )

    def test_a_hold_ends_when_an_operator_releases_the_member(self) -> None:
        """Without an end, one unreadable message would exclude a member who opted in for ever."""
        held = folded(unreadable(1, on=1))
        free = folded(unreadable(1, on=1), released(2, on=2))

        assert stands(held).hold is not None
        assert stands(free).hold is None


class TestChoices:
    def test_an_opt_in_never_cancels_an_opt_out_it_had_not_seen(self) -> None:
        """Two devices at once: the one that did not know of the opt-out must not undo it."""
        for observed in (None, 0):
            record = folded(chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 2, on=2, observed=observed))

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
                moved("US", 1, on=1), chose(Choice.OPT_OUT, 2, on=2), chose(Choice.OPT_IN, 3, on=3, observed=observed)
            )
            choice = stands(record).choice
            assert choice is not None
            assert choice.kind is FactKind.OPTED_OUT

        seen = folded(moved("US", 1, on=1), chose(Choice.OPT_OUT, 2, on=2), chose(Choice.OPT_IN, 3, on=3, observed=2))
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
        if question["at"] >= record.folded_effective_at and question["known_at"] >= record.folded_recorded_at:
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
            *(chose(Choice.OPT_OUT, number + 1, on=number, purpose=name) for number, name in enumerate(purposes))
        )

        choices = [standing(record, purpose=name, at=day(400), known_at=day(400)).choice for name in purposes]

        assert [choice.kind for choice in choices if choice] == [FactKind.OPTED_OUT] * len(purposes)

    def test_a_late_relocation_is_never_lost(self) -> None:
        """A bulk import stamps years of history with one moment: the move to a paused country must not get lost."""
        record = full_record(moved("US", 1, on=0))

        after = fold(record, moved("HK", 300, on=1))

        decision = decide(after, None, OPEN, purpose=PURPOSE, at=day(400), known_at=day(400))
        assert (decision.allowed, decision.reason) == (False, Reason.HELD)

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
