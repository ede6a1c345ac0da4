"""The columns for people: what a record says, and never less than what excludes its member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import (
    MEMBER,
    chose,
    day,
    erased,
    folded,
    histories,
    moved,
    new_catalog,
    released,
    unreadable,
)

from consentry.bundles.public_columns import PublicRow, public_row
from consentry.domain.decisions import member_state
from consentry.domain.events import FactKind, MemberEvent
from consentry.domain.values import AgeBand, Choice, Micros
from consentry.wire.records import write_record

PURPOSES = ("ads", "genai_training")
FRAME = new_catalog().frame_of("ConsentRecord")


def of(*events: MemberEvent, is_quarantined: bool = False) -> PublicRow:
    """What the record after these events says."""
    record = folded(*events)
    assert record is not None
    return public_row(
        MEMBER.encode(), write_record(record, FRAME), PURPOSES, is_quarantined=is_quarantined
    )


def test_a_record_says_where_the_member_lives_and_what_they_chose() -> None:
    """An analyst counts opt-outs by country with one line of SQL."""
    events = (
        moved("HK", 1, on=1),
        chose(Choice.OPT_OUT, 2, on=2),
        chose(Choice.OPT_IN, 3, on=2, purpose="ads"),
    )
    assert of(*events) == PublicRow(
        "HK", AgeBand.ADULT.value, False, False, ("OPT_IN", "OPT_OUT"), (False, True)
    )


def test_an_erasure_and_a_hold_exclude_from_every_purpose() -> None:
    """Nobody has to know the rules to leave them out."""
    assert of(erased(1, on=1)).own_exclusions == (True, True)
    assert of(erased(1, on=1)).is_erased
    assert of(unreadable(1, on=1)).own_exclusions == (True, True)
    assert of(unreadable(1, on=1)).is_quarantined
    assert of(unreadable(1, on=1), released(2, on=2)).own_exclusions == (False, False)


def test_a_member_held_from_outside_is_excluded_whatever_the_record_says() -> None:
    """Bytes that could not be believed, or a partition with an event that nobody could read."""
    found = of(chose(Choice.OPT_IN, 1, on=1), is_quarantined=True)
    assert found.is_quarantined
    assert found.own_exclusions == (True, True)
    assert public_row(b"m:1", None, PURPOSES, is_quarantined=True).own_exclusions == (True, True)


def test_bytes_that_are_no_record_hold_their_member() -> None:
    """A flipped bit must not look like somebody who said nothing."""
    assert public_row(b"m:1", b"nonsense", PURPOSES, is_quarantined=False).own_exclusions == (
        True,
        True,
    )


def test_an_opt_out_dated_ahead_excludes_at_once_and_an_opt_in_dated_ahead_does_not_include_yet() -> (
    None
):
    """Who reads a set has no clock of ours: between two bundles nobody may slip out of it."""
    ahead = chose(Choice.OPT_OUT, 1, on=1, effective_at=day(90))
    assert of(ahead).own_exclusions == (False, True)
    back = chose(Choice.OPT_IN, 2, on=2, observed=1, effective_at=day(90))
    assert of(chose(Choice.OPT_OUT, 1, on=1), back).own_exclusions == (False, True)
    assert of(
        chose(Choice.OPT_OUT, 1, on=1), chose(Choice.OPT_IN, 2, on=2, observed=1)
    ).own_exclusions == (
        False,
        False,
    )


def test_a_member_whose_folded_facts_reach_ahead_is_excluded() -> None:
    """Until that time nobody can say what they chose: the answer is HISTORY_FOLDED, which does not
    allow.
    """
    record = folded(moved("US", 1, on=1))
    assert record is not None
    raw = write_record(
        replace(record, folded_effective_at=day(50), folded_recorded_at=day(1)), FRAME
    )
    assert public_row(MEMBER.encode(), raw, PURPOSES, is_quarantined=False).own_exclusions == (
        True,
        True,
    )


@given(histories(), st.lists(st.integers(0, 400), min_size=1, max_size=5))
def test_whoever_is_excluded_by_their_own_facts_later_is_in_the_column_already(
    history: Sequence[MemberEvent], days: list[int]
) -> None:
    """The set may say too many, for a while; it never says too few."""
    record = folded(*history)
    assert record is not None
    found = public_row(MEMBER.encode(), write_record(record, FRAME), PURPOSES, is_quarantined=False)
    changed_at = max(fact.recorded_at for fact in record.facts)
    for purpose, excluded in zip(PURPOSES, found.own_exclusions, strict=True):
        for at in (changed_at, *(Micros(changed_at + number * 86_400_000_000) for number in days)):
            own = member_state(record, purpose=purpose, at=at, known_at=Micros(1 << 62))
            opted_out = own.choice is not None and own.choice.kind is not FactKind.OPTED_IN
            if own.erasure or own.quarantine or own.is_folded or opted_out:
                assert excluded
