"""Writing events quickly: the same bytes as the strict way, and nothing that would hold its
member.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import (
    MEMBER,
    PURPOSE,
    day,
    identity,
    instants,
    member_events_on_the_wire,
    member_ids,
    new_catalog,
)

from consentry.domain.errors import InvalidInput
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import Choice, MemberId, Micros
from consentry.wire.event_writer import _PARTS_MAX, EventWriter
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN, read_event, write_event

CATALOG = new_catalog()
WARM = EventWriter(CATALOG)
"""Shared by all examples, so that most of them meet forms and instants that it remembers."""

GOOD = ConsentChanged(
    event_id=identity(1),
    member=MEMBER,
    purpose=PURPOSE,
    choice=Choice.OPT_OUT,
    effective_at=day(1),
    recorded_at=day(2),
    source="settings-web",
)


@given(event=member_events_on_the_wire())
def test_every_valid_event_is_written_to_the_bytes_of_the_strict_way(event: SentEvent) -> None:
    """A producer whose bytes differ in one bit has its member held, and their choice lost."""
    expected = write_event(event, CATALOG)
    fresh = EventWriter(CATALOG)
    assert [fresh.write(event), fresh.write(event), WARM.write(event), WARM.write(event)] == [
        expected
    ] * 4


@given(
    event=member_events_on_the_wire(),
    member=member_ids,
    event_id=st.binary(min_size=16, max_size=16),
    effective_at=instants,
    recorded_at=instants,
    observed=st.none() | st.integers(0, (1 << 63) - 1),
    evidence=st.none() | st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=120),
)
def test_a_remembered_form_never_leaks_from_one_member_to_another(
    event: SentEvent, observed: int | None, evidence: str | None, **other: Any
) -> None:
    """What is remembered of one event must hold nothing that is its own: another member's id, time
    or evidence.
    """
    writer = EventWriter(CATALOG)
    writer.write(event)
    if isinstance(event, ConsentChanged):
        other |= {"observed_version": observed, "evidence": evidence}
    second = replace(event, **other)
    assert writer.write(second) == write_event(second, CATALOG)
    assert writer.write(event) == write_event(event, CATALOG)


@given(
    event=member_events_on_the_wire(),
    member=member_ids | st.sampled_from(["", "m 1", "m.1", "m" * 65]),
    event_id=st.binary(min_size=16, max_size=16) | st.sampled_from([b"", b"x" * 15]),
    effective_at=instants | st.sampled_from([0, -1, INSTANT_MAX]),
    recorded_at=instants | st.sampled_from([0, INSTANT_MIN - 1]),
)
def test_a_template_writes_what_the_strict_way_writes_and_nothing_else(
    event: SentEvent, **other: Any
) -> None:
    """It is handed what lines of a file say, and is the last to look at it."""
    template = WARM.template(event, WARM.write(event))
    try:
        expected = EventWriter(CATALOG).write(replace(event, **other))
    except InvalidInput:
        expected = None

    member = other["member"].encode()
    assert (
        template(other["event_id"], member, other["effective_at"], other["recorded_at"]) == expected
    )


@pytest.mark.parametrize(
    "instant", [INSTANT_MIN, INSTANT_MIN + 1, INSTANT_MAX - 1, (1 << 54) - 1, 1 << 50]
)
def test_the_ends_of_the_time_that_a_reader_takes_are_written(instant: int) -> None:
    """An off-by-one here is a choice that nobody reads."""
    event = replace(GOOD, effective_at=Micros(instant), recorded_at=Micros(INSTANT_MAX - 1))
    for writer in (EventWriter(CATALOG), WARM):
        assert writer.write(event) == write_event(event, CATALOG)


@pytest.mark.parametrize("kind", [MemberErased, MemberRelocated])
def test_the_longest_and_the_shortest_member_id_are_written(kind: Any) -> None:
    """A length of 64 takes two bytes, one of 63 takes one: a wrong one makes the event
    unreadable.
    """
    extra = {"jurisdiction": "HK"} if kind is MemberRelocated else {}
    for length in (1, 63, 64):
        event = kind(
            event_id=identity(2),
            member=MemberId("m" * length),
            effective_at=day(1),
            recorded_at=day(1),
            **extra,
        )
        assert WARM.write(event) == WARM.write(event) == write_event(event, CATALOG)
        assert read_event(WARM.write(event), event.member.encode(), CATALOG) == event


UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "a member id that is a path": ({"member": "../etc"}, "member_id"),
    "a member id with an umlaut": ({"member": "mü"}, "member_id"),
    "no member": ({"member": ""}, "member_id"),
    "a member id of 65 characters": ({"member": "m" * 65}, "member_id"),
    "a time before 1979": ({"effective_at": INSTANT_MIN - 1}, "time_window"),
    "seconds instead of microseconds": ({"recorded_at": 1_750_000_000}, "time_window"),
    "a time after 3111": ({"recorded_at": INSTANT_MAX}, "time_window"),
    "a negative observed version": ({"observed_version": -1}, "observed_version"),
    "an observed version of 2^63": ({"observed_version": 1 << 63}, "avro"),
    "an event id of 15 bytes": ({"event_id": b"1" * 15}, "avro"),
    "a purpose in capitals": ({"purpose": "GenAI"}, "purpose"),
    "a basis that does not exist": ({"legal_basis": "WHIM"}, "avro"),
    "a line break in the source": ({"source": "a\nb"}, "text"),
    "a long notice": ({"notice_version": "x" * 513}, "text"),
    "evidence with a NUL": ({"evidence": "\0"}, "text"),
    "evidence of 513 bytes": ({"evidence": "x" * 513}, "text"),
    "a member id that is a number": ({"member": 42}, "avro"),
    "a member id with half a character": ({"member": "m\ud800"}, "avro"),
    "no time": ({"effective_at": None}, "avro"),
    "an event id as text": ({"event_id": "0123456789abcdef"}, "avro"),
    "a purpose that is a list": ({"purpose": ["a"]}, "avro"),
    "evidence that is half a character": ({"evidence": "\ud800"}, "avro"),
}


@pytest.mark.parametrize("warm", [False, True], ids=["first", "remembered"])
@pytest.mark.parametrize(("changed", "word"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_no_reader_takes_is_refused_before_it_is_sent(
    changed: dict[str, Any], word: str, warm: bool
) -> None:
    """Sent all the same it would hold the member until an operator comes, and their choice would
    not count.
    """
    writer = EventWriter(CATALOG)
    if warm:
        writer.write(GOOD)
    with pytest.raises(InvalidInput) as refusal:
        writer.write(replace(GOOD, **changed))
    assert refusal.value.code == f"event.{word}"
    assert writer.write(GOOD) == write_event(GOOD, CATALOG)


def test_a_place_that_does_not_exist_is_refused() -> None:
    """A member of jurisdiction EEA or Atlantis would be held: a member lives in one place."""
    for place in ("EEA", "Atlantis", "*"):
        with pytest.raises(InvalidInput) as refusal:
            WARM.write(
                MemberRelocated(
                    event_id=identity(3),
                    member=MEMBER,
                    jurisdiction=place,
                    effective_at=day(1),
                    recorded_at=day(1),
                )
            )
        assert refusal.value.code == "event.jurisdiction"


def test_no_refusal_names_the_member() -> None:
    """Whoever logs errors would log pseudonyms."""
    with pytest.raises(InvalidInput) as refusal:
        WARM.write(replace(GOOD, observed_version=-1))
    assert str(MEMBER) not in str(refusal.value)


def test_what_is_remembered_has_a_limit() -> None:
    """A service whose source or notice differs from event to event would grow until it is
    killed.
    """
    writer = EventWriter(CATALOG)
    for number in range(_PARTS_MAX + 10):
        event = replace(GOOD, notice_version=str(number))
        writer.write(event)
    assert len(writer._parts) <= _PARTS_MAX
    assert writer.write(GOOD) == write_event(GOOD, CATALOG)
