"""Reading the consent table only where it can be trusted: built, fresh, and untainted."""

from __future__ import annotations

from collections.abc import Mapping

from consentry.domain.errors import Unavailable
from consentry.domain.records import Record
from consentry.domain.values import Micros
from consentry.table.protocol import ConsentTable, Meta, Reading
from consentry.wire.partitions import partition_of
from consentry.wire.records import read_record


def read_member(
    table: ConsentTable, member: str, *, partitions: int, now: Micros, staleness_seconds: float
) -> Record | None:
    """Return a member's record from the consent table if that can be trusted; None without one.

    `now` is microseconds since 1970-01-01 UTC. Raises Unavailable where the member's partition
    cannot be trusted, or where events of the member also came on another partition.
    """
    key = member.encode()
    home = partition_of(key, partitions)
    # Position and record come in one step: of a table that is emptied in between, the record alone
    # would say that nothing is known of the member.
    readings = table.read(key, range(partitions))
    check_meta(readings[home].meta, home, now=now, staleness_seconds=staleness_seconds)
    return record_in(readings, key, home=home)


def record_in(readings: Mapping[int, Reading], member: bytes, *, home: int) -> Record | None:
    """Return a member's record from what each partition of the consent table holds of them.

    `home` is the member's partition. Raises Unavailable where the member's events have no order,
    DamagedRecord for a broken record.
    """
    for partition, reading in readings.items():
        if partition != home and reading.record:
            raise Unavailable(
                "Events of this member also came on a foreign partition, so they have no order: "
                "the member is quarantined.",
                code="member.misplaced",
                fix="give the producer the murmur2 partitioner",
            )
    raw = readings[home].record
    return None if raw is None else read_record(raw, member)


def check_partition(
    table: ConsentTable, partition: int, *, now: Micros, staleness_seconds: float
) -> tuple[str, float]:
    """Return generation and age in seconds of a consent table's partition, if it is trusted.

    Raises Unavailable where the partition is not built, too old, or tainted.
    """
    meta = table.meta(partition)
    return check_meta(meta, partition, now=now, staleness_seconds=staleness_seconds)


def check_meta(
    meta: Meta, partition: int, *, now: Micros, staleness_seconds: float
) -> tuple[str, float]:
    """Return generation and age that the state of a consent table's partition gives, if trusted.

    The age is in seconds. Raises as check_partition.
    """
    if meta.generation is None or meta.frontier_at is None:
        raise Unavailable(
            f"Partition {partition} of the table is not built.",
            code="table.not_built",
            fix="start the processor; it builds what is missing, then ask again",
        )
    age = (now - meta.frontier_at) / 1e6
    if age > staleness_seconds:
        raise Unavailable(
            f"Partition {partition} of the table is {age:.0f} s old; the bound is "
            f"{staleness_seconds:g} s.",
            code="table.stale",
            fix="check that the processor runs and is ready (/readyz), then ask again",
        )
    if meta.tainted:
        raise Unavailable(
            f"Partition {partition} is tainted: one of its events has no readable key, so it "
            "gives no answer.",
            code="table.tainted",
            fix="see deploy/runbooks/ConsentryPartitionTainted.md",
        )
    return meta.generation, age
