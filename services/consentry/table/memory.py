"""The consent table in this process, under the same contract as the real one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from consentry.domain.errors import Fenced, TableWentBack
from consentry.domain.values import Micros
from consentry.table.protocol import Meta, PartitionClaim, Reading, Write
from consentry.table.refusals import refuse


@dataclass
class _Partition:
    epoch: int | None = None
    next_offset: int | None = None
    generation: str | None = None
    frontier_at: Micros | None = None
    tainted: bool = False
    records: dict[bytes, bytes] = field(default_factory=dict)


class InMemoryTable:
    """See ConsentTable. Nothing is kept when the process ends."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def check(self) -> None:
        """A dictionary has no unsafe settings."""

    def claim(self, partition: int, *, floor: int) -> PartitionClaim:
        """See ConsentTable."""
        held = self._partitions.setdefault(partition, _Partition())
        held.epoch = max((held.epoch or 0) + 1, floor)
        return PartitionClaim(held.epoch, held.next_offset, held.generation, held.tainted)

    def begin(
        self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool
    ) -> None:
        """See ConsentTable."""
        held = self._owned(partition, epoch)
        held.generation, held.next_offset, held.tainted = generation, next_offset, tainted

    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """See ConsentTable."""
        return {
            partition: Reading(self.meta(partition), self.load(partition, [member])[0])
            for partition in partitions
        }

    def load_all(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """See ConsentTable."""
        return {partition: self.load(partition, members) for partition, members in wanted.items()}

    def store_all(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        """See ConsentTable."""
        refusals: list[Fenced | TableWentBack | None] = []
        for partition, records, epoch, expected_offset, next_offset, tainted in writes:
            try:
                self.store(
                    partition,
                    records,
                    epoch=epoch,
                    expected_offset=expected_offset,
                    next_offset=next_offset,
                    tainted=tainted,
                )
                refusals.append(None)
            except (Fenced, TableWentBack) as refusal:
                refusals.append(refusal)
        return refusals

    def load(self, partition: int, members: Sequence[bytes]) -> list[bytes | None]:
        """See ConsentTable."""
        records = self._partitions.get(partition, _Partition()).records
        return [records.get(member) for member in members]

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
        """See ConsentTable."""
        held = self._owned(partition, epoch)
        _at(held, partition, expected_offset)
        held.records.update(records)
        held.next_offset = next_offset
        held.tainted = held.tainted or tainted

    def beat(
        self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros
    ) -> None:
        """See ConsentTable."""
        held = self._owned(partition, epoch)
        _at(held, partition, expected_offset)
        held.frontier_at = frontier_at

    def empty(self, partition: int, *, epoch: int) -> None:
        """See ConsentTable."""
        held = self._owned(partition, epoch)
        held.records.clear()
        held.generation = held.next_offset = held.frontier_at = None

    def meta(self, partition: int) -> Meta:
        """See ConsentTable."""
        held = self._partitions.get(partition, _Partition())
        return Meta(held.epoch, held.next_offset, held.generation, held.frontier_at, held.tainted)

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """See ConsentTable."""
        yield from list(self._partitions.get(partition, _Partition()).records.items())

    def wipe(self) -> None:
        """Lose everything, as a server whose volume is gone."""
        self._partitions.clear()

    def _owned(self, partition: int, epoch: int) -> _Partition:
        held = self._partitions.setdefault(partition, _Partition())
        if held.epoch != epoch:
            raise refuse(
                "EPOCH", partition, epoch=epoch, held_epoch=held.epoch, held_offset=held.next_offset
            )
        return held


def _at(held: _Partition, partition: int, expected_offset: int | None) -> None:
    if held.next_offset != expected_offset:
        raise refuse(
            "OFFSET",
            partition,
            epoch=held.epoch or 0,
            held_epoch=held.epoch,
            held_offset=held.next_offset,
        )
