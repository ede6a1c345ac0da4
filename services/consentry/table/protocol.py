"""The consent table as its callers see it: how records are read and written by partition.

It is a view that can be rebuilt from the log, never the record of truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from consentry.domain.errors import Fenced, TableWentBack
from consentry.domain.values import Micros


class PartitionClaim(NamedTuple):
    """The new owner's epoch and the state of a partition of the consent table that it claimed.

    `next_offset` and `generation` are None where the table holds nothing yet.
    """

    epoch: int
    next_offset: int | None
    generation: str | None
    tainted: bool


class Meta(NamedTuple):
    """The state of one partition of the consent table; None where that holds nothing."""

    epoch: int | None
    next_offset: int | None
    generation: str | None
    frontier_at: Micros | None
    tainted: bool


class Reading(NamedTuple):
    """The state of a consent table's partition and a member's record in it, as of one moment.

    `record` is None where this partition has no record of the member.
    """

    meta: Meta
    record: bytes | None


class Write(NamedTuple):
    """The records and the log position to store in one partition of the consent table.

    An offset is None while the partition is being rebuilt: it has no position yet. `tainted` sets
    the taint; False leaves an earlier taint as it is.
    """

    partition: int
    records: Mapping[bytes, bytes]
    epoch: int
    expected_offset: int | None
    next_offset: int | None
    tainted: bool = False


class ConsentTable(Protocol):
    """The consent table: each member's record as bytes; a partition has one writer at a time.

    Every call may raise Unavailable: nothing is known then, and the call may be repeated. Writing
    calls raise Fenced where another owner has claimed the partition since, and TableWentBack where
    the table holds another position than expected. A write is one atomic step.
    """

    def check(self) -> None:
        """Raise UnsafeSetting, naming it, if the table's server could lose a record."""
        ...

    def claim(self, partition: int, *, min_epoch: int) -> PartitionClaim:
        """Become the owner, that is the only writer, of a partition of the consent table.

        The new epoch is above all earlier ones and at least `min_epoch`.
        """
        ...

    def start_generation(
        self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool
    ) -> None:
        """Declare a partition of the consent table newly built, up to a log position."""
        ...

    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """Read the state of these table partitions and a member's record in each.

        All of it takes one round trip. Each reading is of one moment. For readers that do not own
        the table: a missing record means something only beside the state of that very moment,
        because the table may be cleared and laid out anew at any time.
        """
        ...

    def load(self, members: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """Load these members' records, listed by partition of the table, in one round trip.

        The records of a partition come in the order of its members; None for a member without one.
        """
        ...

    def store(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        """Store records and log position of each table partition together, in one round trip.

        Each write is atomic by itself. Returns the refusal of each write, or None where it was
        stored. A taint stays until the next life of the partition.
        """
        ...

    def heartbeat(
        self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros
    ) -> None:
        """Note a table partition's frontier; notice a lost or taken table while it is idle."""
        ...

    def clear(self, partition: int, *, epoch: int) -> None:
        """Drop all records that a partition of the consent table holds, before a rebuild."""
        ...

    def meta(self, partition: int) -> Meta:
        """Return the state of a partition of the consent table."""
        ...

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield (member, record bytes) for each member once in a partition of the table."""
        ...
