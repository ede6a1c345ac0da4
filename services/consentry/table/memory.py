"""The consent table in this process's memory, under the same contract as the one in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from consentry.domain.errors import Fenced, TableWentBack
from consentry.domain.values import Micros
from consentry.table.protocol import Meta, PartitionClaim, Reading, Write
from consentry.table.refusals import refusal_of


@dataclass
class _Partition:
    epoch: int | None = None
    next_offset: int | None = None
    generation: str | None = None
    frontier_at: Micros | None = None
    tainted: bool = False
    records: dict[bytes, bytes] = field(default_factory=dict)


class InMemoryTable:
    """A consent table in memory instead of Redis; it is lost when the process ends.

    See ConsentTable.
    """

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def check(self) -> None:
        """Do nothing: a consent table in memory has no unsafe settings."""

    def claim(self, partition: int, *, min_epoch: int) -> PartitionClaim:
        """See ConsentTable."""
        state = self._partitions.setdefault(partition, _Partition())
        next_epoch = (state.epoch or 0) + 1
        state.epoch = max(next_epoch, min_epoch)
        return PartitionClaim(state.epoch, state.next_offset, state.generation, state.tainted)

    def start_generation(
        self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool
    ) -> None:
        """See ConsentTable."""
        state = self._owned_by(partition, epoch)
        state.generation = generation
        state.next_offset = next_offset
        state.tainted = tainted

    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """See ConsentTable."""
        readings: dict[int, Reading] = {}
        for partition in partitions:
            record = self._state(partition).records.get(member)
            readings[partition] = Reading(self.meta(partition), record)
        return readings

    def load(self, members: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """See ConsentTable."""
        loaded: dict[int, list[bytes | None]] = {}
        for partition, wanted in members.items():
            records = self._state(partition).records
            loaded[partition] = [records.get(member) for member in wanted]
        return loaded

    def store(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        """See ConsentTable."""
        refusals: list[Fenced | TableWentBack | None] = []
        for write in writes:
            try:
                self._store(write)
            except (Fenced, TableWentBack) as refusal:
                refusals.append(refusal)
            else:
                refusals.append(None)
        return refusals

    def _store(self, write: Write) -> None:
        state = self._owned_by(write.partition, write.epoch)
        _require_offset(state, write.partition, write.expected_offset)
        state.records.update(write.records)
        state.next_offset = write.next_offset
        state.tainted = state.tainted or write.tainted

    def heartbeat(
        self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros
    ) -> None:
        """See ConsentTable."""
        state = self._owned_by(partition, epoch)
        _require_offset(state, partition, expected_offset)
        state.frontier_at = frontier_at

    def clear(self, partition: int, *, epoch: int) -> None:
        """See ConsentTable."""
        state = self._owned_by(partition, epoch)
        state.records.clear()
        state.generation = None
        state.next_offset = None
        state.frontier_at = None

    def meta(self, partition: int) -> Meta:
        """See ConsentTable."""
        state = self._state(partition)
        return Meta(
            state.epoch, state.next_offset, state.generation, state.frontier_at, state.tainted
        )

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """See ConsentTable."""
        yield from list(self._state(partition).records.items())

    def wipe(self) -> None:
        """Lose the whole consent table, as a Redis server does whose volume is gone."""
        self._partitions.clear()

    def _state(self, partition: int) -> _Partition:
        """Return the partition, or an empty one that is not kept."""
        return self._partitions.get(partition, _Partition())

    def _owned_by(self, partition: int, epoch: int) -> _Partition:
        """Return the partition. Raises Fenced or TableWentBack unless this epoch owns it."""
        state = self._partitions.setdefault(partition, _Partition())
        if state.epoch != epoch:
            raise refusal_of(
                "EPOCH",
                partition,
                epoch=epoch,
                held_epoch=state.epoch,
                held_offset=state.next_offset,
            )
        return state


def _require_offset(state: _Partition, partition: int, expected_offset: int | None) -> None:
    if state.next_offset != expected_offset:
        raise refusal_of(
            "OFFSET",
            partition,
            epoch=state.epoch or 0,
            held_epoch=state.epoch,
            held_offset=state.next_offset,
        )
