"""A member is looked up only in a table that can be trusted: unknown must never read as nobody."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.strategies import day, folded, moved, new_catalog

from consentry.domain.errors import Unavailable
from consentry.domain.records import Record
from consentry.table.lookup import check_meta, read_member
from consentry.table.memory import InMemoryTable
from consentry.table.protocol import Meta, Reading
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4
HOME = partition_of(b"anna", PARTITIONS)
FRESH = Meta(epoch=1, next_offset=7, generation="g", frontier_at=day(9), tainted=False)


class Table(InMemoryTable):
    """A table whose partitions are all fresh, with some records of one member."""

    def __init__(self, records: dict[int, bytes]) -> None:
        super().__init__()
        self._found = records

    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """See ConsentTable."""
        return {number: Reading(FRESH, self._found.get(number)) for number in partitions}


def look_up(records: dict[int, bytes]) -> Record | None:
    """Look Anna up on day 9."""
    return read_member(
        Table(records), "anna", partitions=PARTITIONS, now=day(9), staleness_seconds=10
    )


def anna() -> bytes:
    """Anna's record, as the table keeps it."""
    record = folded(moved("HK", 1, on=1, member="anna"))
    assert record is not None
    return write_record(record, new_catalog().frame_of("ConsentRecord"))


def test_the_record_is_that_of_the_members_own_partition() -> None:
    """What the processor folded is what is explained."""
    record = look_up({HOME: anna()})

    assert record is not None
    assert record.version == 1


def test_a_member_without_a_record_has_none() -> None:
    """Nothing is known of them, which is an answer of its own."""
    assert look_up({}) is None


def test_a_member_with_events_on_two_partitions_gets_no_answer() -> None:
    """Their events have no order: an opt-out may be on the other one."""
    with pytest.raises(Unavailable) as refusal:
        look_up({HOME: anna(), (HOME + 1) % PARTITIONS: anna()})

    assert refusal.value.code == "member.misplaced"


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        (FRESH._replace(generation=None), "table.not_built"),
        (FRESH._replace(frontier_at=None), "table.not_built"),
        (FRESH._replace(frontier_at=day(8)), "table.stale"),
        (FRESH._replace(tainted=True), "table.tainted"),
    ],
)
def test_a_partition_that_cannot_be_trusted_gives_no_answer(meta: Meta, code: str) -> None:
    """A table that lags would say "allowed" of somebody who opted out a minute ago."""
    with pytest.raises(Unavailable) as refusal:
        check_meta(meta, 3, now=day(9), staleness_seconds=10)

    assert refusal.value.code == code
    assert "Partition 3" in str(refusal.value)


def test_a_partition_that_is_fresh_tells_its_generation_and_age() -> None:
    """A dry run reports both."""
    assert check_meta(FRESH, 0, now=day(9), staleness_seconds=10) == ("g", 0.0)
