"""Counting the members of a table for a dry run: everybody once, and nobody by a record that cannot
be trusted.
"""

from __future__ import annotations

import pytest
from tests.strategies import WORLD, day, folded, moved, new_catalog
from tests.table import store_partition

from consentry.domain.controls import Controls
from consentry.domain.errors import Unavailable
from consentry.domain.impact import Census
from consentry.domain.values import Micros
from consentry.table.census import count_members, count_table
from consentry.table.memory import InMemoryTable
from consentry.table.protocol import Meta
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4


def test_damaged_and_misplaced_members_are_quarantined_and_nobody_is_counted_twice() -> None:
    """Somebody with two histories would be counted as allowed by the one that lost the opt-out."""
    catalog, table = new_catalog(), InMemoryTable()
    frame = catalog.frame_of("ConsentRecord")
    names = {name: partition_of(name.encode(), PARTITIONS) for name in ("anna", "bo", "cy", "di")}
    for partition in range(PARTITIONS):
        epoch = table.claim(partition, min_epoch=1).epoch
        table.start_generation(partition, epoch=epoch, generation="g", next_offset=0, tainted=False)
        records = {}
        for name, home in names.items():
            record = folded(moved("HK", 1, on=1, member=name))
            assert record is not None
            raw = write_record(record, frame)
            if home == partition:
                records[name.encode()] = raw[:-1] + bytes([raw[-1] ^ 1]) if name == "bo" else raw
            elif name == "cy":
                records[name.encode()] = raw
        store_partition(table, partition, records, epoch=epoch, expected_offset=0, next_offset=1)
    controls = Controls(WORLD)
    census = Census(controls, purposes=("genai_training",), at=day(9), known_at=day(9))

    quarantined = count_table(table, PARTITIONS, [census])
    impact = census.compare(controls, controls, ("HK",))

    assert (quarantined, impact.members, impact.covered) == (2, 2, {"HK": 2})


class EmptyTable(InMemoryTable):
    """One partition without members; each look at it finds the next of some generations."""

    def __init__(self, *generations: str) -> None:
        super().__init__()
        self._generations = list(generations)

    def meta(self, partition: int) -> Meta:
        """See ConsentTable."""
        return Meta(1, 0, self._generations.pop(0), day(9), False)


def count(table: InMemoryTable, *, now: Micros) -> tuple[int, float]:
    """Count a table of one partition, which was proven fresh on day 9 and stays so for 10 s."""
    return count_members(table, 1, [], clock=lambda: now, staleness_seconds=10)


def test_the_age_of_the_table_is_reported() -> None:
    """Whoever reads the numbers has to know as of when they are."""
    table = EmptyTable("first", "first")

    assert count(table, now=Micros(day(9) + 2_000_000)) == (0, 2.0)


def test_a_stale_table_is_not_counted() -> None:
    """The desk would decide by members as they were yesterday."""
    with pytest.raises(Unavailable) as refusal:
        count(EmptyTable("first"), now=day(10))

    assert refusal.value.code == "table.stale"


def test_a_table_that_was_rebuilt_meanwhile_is_not_counted() -> None:
    """Half of the members would be missing from the numbers."""
    with pytest.raises(Unavailable) as refusal:
        count(EmptyTable("first", "second"), now=day(9))

    assert refusal.value.code == "table.rebuilt"
