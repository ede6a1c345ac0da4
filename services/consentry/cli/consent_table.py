"""The consent table, opened for a command as the settings say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from consentry.cli.connections import count_partitions
from consentry.domain.records import Record
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.table import lookup
from consentry.table.redis_table import RedisTable


@contextmanager
def open_table(settings: Settings, partitions: int) -> Iterator[RedisTable]:
    """Open the consent table for a command, as the settings say, and close it afterwards."""
    table = RedisTable(
        settings.redis_url.get_secret_value(),
        namespace=settings.namespace,
        partitions=partitions,
        members=settings.table_members,
    )
    try:
        yield table
    finally:
        table.close()


def read_member(settings: Settings, member: str) -> Record | None:
    """Return a member's record from the table of a command's settings; None without one.

    Raises Refused, and Unavailable where the table cannot be trusted.
    """
    partitions = count_partitions(settings)
    with open_table(settings, partitions) as table:
        return lookup.read_member(
            table,
            member,
            partitions=partitions,
            now=system_clock(),
            staleness_seconds=settings.staleness_seconds,
        )
