"""Avro's numbers by hand are what fastavro writes, and the examples in docstrings are real bytes."""

from __future__ import annotations

import io
import re
from types import ModuleType

import fastavro
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.strategies import new_catalog

from consentry.domain.events import ConsentChanged
from consentry.domain.values import Choice, MemberId, Micros
from consentry.wire import event_batches, records
from consentry.wire.avro_bytes import (
    LONGS,
    InstantWriter,
    are_instants,
    instants_at,
    long_bytes,
    read_instant,
    read_long,
    read_varint,
    varint_bytes,
)
from consentry.wire.event_writer import EventWriter
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.records import fact_body, first_record

LONG = st.integers(-(1 << 63), (1 << 63) - 1)
INSTANT = st.integers(INSTANT_MIN, INSTANT_MAX - 1)
ANNA_OPTS_OUT = ConsentChanged(
    event_id=bytes(range(1, 17)),
    member=MemberId("anna"),
    purpose="ai",
    choice=Choice.OPT_OUT,
    effective_at=Micros(1_726_617_600_000_000),
    recorded_at=Micros(1_726_617_600_250_000),
    notice_version="n1",
    source="app",
)


def by_fastavro(value: int) -> bytes:
    """The bytes of an Avro long as fastavro has them."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, {"type": "long"}, value)
    return buffer.getvalue()


@given(LONG)
@example(150)
@example(-1)
def test_a_long_is_written_and_read_as_fastavro_does(value: int) -> None:
    """Other bytes would be refused by every other reader, and their members quarantined."""
    raw = by_fastavro(value)

    assert long_bytes(value) == raw
    assert read_long(raw + b"\x00", 0) == (value, len(raw))
    assert read_instant(raw + bytes(8), 0) == (value, len(raw))


@given(st.integers(0, (1 << 64) - 1))
def test_a_varint_is_read_as_it_was_written(number: int) -> None:
    """A token that came out as another number would demand too much or too little."""
    raw = varint_bytes(number)

    assert read_varint(raw + b"\x00", 0) == (number, len(raw))


def test_a_varint_that_does_not_end_is_refused() -> None:
    """Read on and on, one message would take all memory."""
    with pytest.raises(IndexError):
        read_varint(b"\x80" * 11, 0)
    with pytest.raises(IndexError):
        read_varint(b"\x80", 0)


@given(INSTANT, INSTANT)
def test_instants_are_written_and_read_side_by_side_as_one_by_one(first: int, second: int) -> None:
    """An instant that a batch read otherwise would move an opt-out in time."""
    writer = InstantWriter()
    raw = writer.write(first) + writer.write(second)
    table = np.frombuffer(raw, dtype=np.uint8).reshape(1, 16)

    assert raw == by_fastavro(first) + by_fastavro(second)
    assert instants_at(table, 0).tolist() == [first]
    assert instants_at(table, 8).tolist() == [second]
    assert are_instants(table, 0).tolist() == are_instants(table, 8).tolist() == [True]


@pytest.mark.parametrize("value", [INSTANT_MIN - 1, INSTANT_MAX, -INSTANT_MIN])
def test_a_time_outside_the_range_is_no_instant(value: int) -> None:
    """Taken for one, its bytes would be read shifted by one, and with them all that follows."""
    table = np.frombuffer((by_fastavro(value) + bytes(8))[:8], dtype=np.uint8).reshape(1, 8)

    assert are_instants(table, 0).tolist() == [False]


def test_the_short_longs_are_the_long_ones() -> None:
    """They are the lengths before a member id: a wrong one moves the id."""
    assert [long_bytes(value) for value in range(len(LONGS))] == LONGS


def documented_bytes(module: ModuleType) -> str:
    """The hexadecimal bytes of the example in a module's docstring, without its frame."""
    pairs: list[str] = []
    for line in (module.__doc__ or "").splitlines():
        example_line = re.match(r" {4,6}((?:[0-9a-f]{2} )+)(?: |$)", line + " ")
        if example_line is not None:
            pairs += example_line.group(1).split()
    return " ".join(pairs[FRAME_LENGTH:])


def test_the_example_of_a_record_is_what_is_written() -> None:
    """Whoever reads the bytes by the docstring would look in the wrong place."""
    raw = first_record(b"anna", fact_body(ANNA_OPTS_OUT.fact()), b"\x00\x00\x00\x00\x0c")

    assert documented_bytes(records) == raw[FRAME_LENGTH:].hex(" ")


def test_the_example_of_an_event_is_what_is_written() -> None:
    """Whoever reads the bytes by the docstring would look in the wrong place."""
    raw = EventWriter(new_catalog()).write(ANNA_OPTS_OUT)

    assert documented_bytes(event_batches) == raw[FRAME_LENGTH:].hex(" ")
