"""The consent table, one partition at a time, for tests that need no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consentry.table.protocol import ConsentTable, Write


def load_partition(
    table: ConsentTable, partition: int, members: Sequence[bytes]
) -> list[bytes | None]:
    """Load the records of these members from one partition, in their order."""
    return table.load({partition: members})[partition]


def store_partition(
    table: ConsentTable,
    partition: int,
    records: Mapping[bytes, bytes],
    *,
    epoch: int,
    expected_offset: int | None,
    next_offset: int | None,
    tainted: bool = False,
) -> None:
    """Store one write; its refusal is raised."""
    write = Write(partition, records, epoch, expected_offset, next_offset, tainted)
    [refusal] = table.store([write])
    if refusal is not None:
        raise refusal
