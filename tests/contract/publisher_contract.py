"""What every publisher promises.

Plug one in with a `published` fixture that tells what followers can read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.strategies import day

from consentry.processor.ports import Published, Publisher, Refusal


class Readable(NamedTuple):
    """What followers can read by now: records with their partition, and refused messages."""

    records: list[tuple[int, Published]]
    refusals: list[Refusal]


ONE = Published(b"member-1", b"record-1", 1_700_000_000_000)
TWO = Published(b"member-2", b"record-2", 1_700_000_000_001)
LATER = Published(b"member-1", b"record-1-later", 1_700_000_000_002)
REFUSED = Refusal(2, 17, b"member-1", b"\x00\xff raw", day(1), "avro")


class PublisherContract:
    """Every test takes `publisher` and `readable`, which reads what was published through it."""

    def test_what_was_settled_can_be_read_in_order(
        self, publisher: Publisher, readable: Callable[[], Readable]
    ) -> None:
        """Followers take the last record of a member: out of order, an older consent would
        stand.
        """
        publisher.publish(2, [ONE, TWO])
        publisher.publish(2, [LATER])
        publisher.settle()

        assert [record for partition, record in readable().records if partition == 2] == [
            ONE,
            TWO,
            LATER,
        ]

    def test_records_go_to_the_partition_they_were_published_for(
        self, publisher: Publisher, readable: Callable[[], Readable]
    ) -> None:
        """A record on another partition than its events has no order with the member's others."""
        publisher.publish(1, [ONE])
        publisher.publish(3, [TWO])
        publisher.settle()

        assert sorted(readable().records) == [(1, ONE), (3, TWO)]

    def test_a_refused_message_keeps_its_bytes(
        self, publisher: Publisher, readable: Callable[[], Readable]
    ) -> None:
        """The operator who releases the member has to see what was sent, not what we made of it."""
        without_key = REFUSED._replace(key=None, value=None, offset=18)

        publisher.quarantine([REFUSED, without_key])
        publisher.settle()

        assert readable().refusals == [REFUSED, without_key]

    def test_settling_nothing_is_no_work(
        self, publisher: Publisher, readable: Callable[[], Readable]
    ) -> None:
        """An idle worker settles every second."""
        publisher.settle()

        assert readable() == Readable([], [])
