"""Counting all members of the consent table, each with and without a control, for a dry run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from consentry.domain.errors import Unavailable
from consentry.domain.impact import Census
from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.table.lookup import check_partition
from consentry.table.protocol import ConsentTable
from consentry.wire.partitions import partition_of, partitions_of
from consentry.wire.records import DamagedRecord, read_record

_CHUNK_ROWS: Final = 2000


class TableCount(NamedTuple):
    """The number of quarantined members in the consent table, and its age in seconds.

    The quarantined ones are counted by no census.
    """

    quarantined: int
    age_seconds: float


def count_members(
    table: ConsentTable,
    partitions: int,
    censuses: Sequence[Census],
    *,
    clock: Clock,
    staleness_seconds: float,
) -> TableCount:
    """Give every member of the consent table to the censuses, if the table can be trusted.

    A member whose record cannot be read or trusted counts as quarantined instead. Raises
    Unavailable, naming the partition, where the table is stale, tainted or not built, or was
    rebuilt while it was read.
    """
    generations: list[str] = []
    ages: list[float] = []
    for partition in range(partitions):
        generation, age = _check(table, partition, clock(), staleness_seconds)
        generations.append(generation)
        ages.append(age)
    quarantined = count_table(table, partitions, censuses)
    for partition, generation in enumerate(generations):
        generation_now, _ = _check(table, partition, clock(), staleness_seconds)
        if generation_now != generation:
            raise Unavailable(
                f"Partition {partition} of the table was rebuilt while it was read.",
                code="table.rebuilt",
                fix="run the command again",
            )
    return TableCount(quarantined, max(ages))


def _check(
    table: ConsentTable, partition: int, now: Micros, staleness_seconds: float
) -> tuple[str, float]:
    return check_partition(table, partition, now=now, staleness_seconds=staleness_seconds)


def count_table(table: ConsentTable, partitions: int, censuses: Sequence[Census]) -> int:
    """Give every member of the consent table to the censuses; return how many are not counted.

    Those are quarantined instead, as their records cannot be read or trusted.
    """
    damaged: set[bytes] = set()
    misplaced: set[bytes] = set()
    for partition in range(partitions):
        for chunk in _chunks(table.scan(partition)):
            _count_chunk(chunk, partition, partitions, censuses, damaged, misplaced)
    _uncount(table, partitions, misplaced - damaged, censuses)
    return len(damaged | misplaced)


def _chunks(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _count_chunk(
    chunk: Sequence[tuple[bytes, bytes]],
    partition: int,
    partitions: int,
    censuses: Sequence[Census],
    damaged: set[bytes],
    misplaced: set[bytes],
) -> None:
    """Count the members of a chunk; note the keys of damaged and of misplaced records."""
    homes = partitions_of([key for key, _ in chunk], partitions).tolist()
    for (key, raw), home in zip(chunk, homes, strict=True):
        if home != partition:
            misplaced.add(key)
            continue
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            damaged.add(key)
            continue
        for census in censuses:
            census.add(record)


def _uncount(
    table: ConsentTable, partitions: int, misplaced: set[bytes], censuses: Sequence[Census]
) -> None:
    """Take members with events on a foreign partition out of the censuses again.

    They are quarantined, but were counted on their own partition.
    """
    for key in misplaced:
        home = partition_of(key, partitions)
        [raw] = table.load({home: [key]})[home]
        if raw is None:
            continue
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            continue
        for census in censuses:
            census.add(record, -1)
