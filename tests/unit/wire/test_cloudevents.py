"""The headers of an event: what CloudEvents asks for, and nothing about the member."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from tests.strategies import day, identity, member_events_on_the_wire

from consentry.domain.events import MemberErased, SentEvent
from consentry.domain.values import MemberId
from consentry.wire.cloudevents import event_headers

EVENT = MemberErased(
    event_id=identity(1),
    member=MemberId("m:42"),
    effective_at=day(1),
    recorded_at=day(1),
    source="settings-web",
)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_an_event_has_the_attributes_that_cloud_events_asks_for() -> None:
    """A router that cannot read them drops the event, or shows it as something else."""
    assert event_headers(EVENT) == [
        ("content-type", b"application/avro"),
        ("ce_specversion", b"1.0"),
        ("ce_type", b"consentry.MemberErased"),
        ("ce_source", b"/settings-web"),
        ("ce_id", str(uuid.UUID(bytes=EVENT.event_id)).encode()),
    ]


@given(event=member_events_on_the_wire())
def test_the_id_is_the_events_and_the_source_a_reference_without_spaces(event: SentEvent) -> None:
    """Tools tell repetitions by the id; a source that is no URI reference makes the whole event
    invalid.
    """
    headers = dict(event_headers(event))
    assert headers["ce_id"].decode() == str(uuid.UUID(bytes=event.event_id))
    assert headers["ce_source"].isascii()
    assert not set(headers["ce_source"]) & set(b' "<>\\^`{|}')


def test_no_header_tells_who_the_member_is() -> None:
    """Consoles and logs show headers to people who may not know who chose what."""
    other = replace(EVENT, member=MemberId("somebody-else"))
    assert event_headers(EVENT) == event_headers(other)


@pytest.mark.parametrize(
    "trace", [None, "", "x", TRACE[:-1], TRACE.upper(), TRACE + "\n", "00-" + "0" * 32 + TRACE[35:]]
)
def test_what_is_no_trace_is_left_out(trace: str | None) -> None:
    """A malformed trace would break the trace of whoever reads it."""
    assert "traceparent" not in dict(event_headers(EVENT, traceparent=trace))
    assert dict(event_headers(EVENT, traceparent=TRACE))["traceparent"] == TRACE.encode()
