"""The consent table, in the words of those who use it: a rebuildable view, never the record of
truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from consentry.domain.errors import Fenced, TableWentBack
from consentry.domain.values import Micros


class PartitionClaim(NamedTuple):
    """What a new owner of a partition gets: its epoch, and what the table holds (None: nothing
    yet).
    """

    epoch: int
    next_offset: int | None
    generation: str | None
    tainted: bool


class Meta(NamedTuple):
    """What the table says of a partition without being claimed; None where it holds nothing."""

    epoch: int | None
    next_offset: int | None
    generation: str | None
    frontier_at: Micros | None
    tainted: bool


class Reading(NamedTuple):
    """What a partition of the table says of itself and of one member, as of one moment;

    None: it has no record.
    """

    meta: Meta
    record: bytes | None


class Write(NamedTuple):
    """Records and position to store for one partition;

    None: a table that is being rebuilt has no position yet.
    """

    partition: int
    records: Mapping[bytes, bytes]
    epoch: int
    expected_offset: int | None
    next_offset: int | None
    tainted: bool = False


class ConsentTable(Protocol):
    """Member id → record bytes, per partition, written by one owner at a time.

    Every call may raise Unavailable: nothing is known then, and the call may be repeated. Writing
    calls raise Fenced where another owner has claimed the partition since, and TableWentBack where
    the table holds another position than expected. A write is one atomic step.
    """

    def check(self) -> None:
        """Raise UnsafeSetting, naming the setting, if the server could lose or forget a record."""
        ...

    def claim(self, partition: int, *, floor: int) -> PartitionClaim:
        """Become the partition's owner: the epoch is above all earlier ones and at least
        `floor`.
        """
        ...

    def begin(
        self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool
    ) -> None:
        """Start a life of the partition's table at a position."""
        ...

    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """What each of these partitions says of itself and of the member, each as of one moment, in
        one round trip.

        For whoever does not own the table: that a record is missing means something only beside the
        meta of that very moment, as the table may be emptied and laid out anew at any time.
        """
        ...

    def load_all(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """`load` for several partitions in one round trip."""
        ...

    def store_all(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        """`store` for several partitions in one round trip; each is atomic, and each has its
        refusal or None.
        """
        ...

    def load(self, partition: int, members: Sequence[bytes]) -> list[bytes | None]:
        """The record bytes of each member, in order; None for a member without one."""
        ...

    def store(
        self,
        partition: int,
        records: Mapping[bytes, bytes],
        *,
        epoch: int,
        expected_offset: int | None,
        next_offset: int | None,
        tainted: bool = False,
    ) -> None:
        """Write records and position together; a taint stays until the next life.

        None: a table that is being rebuilt has no position yet.
        """
        ...

    def beat(
        self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros
    ) -> None:
        """Note the frontier, and notice a lost or taken table on an idle partition."""
        ...

    def empty(self, partition: int, *, epoch: int) -> None:
        """Drop everything the partition holds, before a rebuild."""
        ...

    def meta(self, partition: int) -> Meta:
        """What the table says of a partition."""
        ...

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Every (member, record bytes) of a partition, each member once."""
        ...
