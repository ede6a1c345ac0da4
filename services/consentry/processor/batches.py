"""One partition's batch of messages, and its state on the way through the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from consentry.domain.errors import Fenced, TableWentBack
from consentry.processor.ports import MemberChange, Refusal
from consentry.wire.event_batches import FastFact
from consentry.wire.headers import Headers


class EventBatch(NamedTuple):
    """Consecutive messages of one partition, column by column; append times in milliseconds.

    `headers` may be left out where no message has any.
    """

    partition: int
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    appended_ms: Sequence[int]
    headers: Sequence[Headers | None] = ()


@dataclass(slots=True)
class OwnedPartition:
    """What a worker knows of a partition it owns: its epoch, and how far the table and the log have
    come.
    """

    partition: int
    epoch: int
    generation: str
    next_offset: int
    acknowledged_offset: int
    tainted: bool = False
    read_offset: int = 0
    """The end that was last read up to; everything below it was applied, or is no message."""


@dataclass(slots=True)
class BatchResult:
    """What became of a batch: events by outcome, what goes to quarantine, the table's refusal if
    any.

    `clamped` events, told to be recorded later than the broker took them, are counted among the
    others too.
    """

    applied: int = 0
    repeated: int = 0
    replayed: int = 0
    clamped: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    refused: Fenced | TableWentBack | None = None


class PartitionBatch:
    """The state of one partition's batch on its way."""

    def __init__(self, owned: OwnedPartition, batch: EventBatch) -> None:
        self.owned = owned
        self.batch = batch
        self.end = batch.offsets[-1] + 1
        self.outcome = BatchResult()
        self.facts: list[FastFact | None] = []
        self.current: dict[bytes, bytes | None] = {}
        self.changed: dict[bytes, bytes] = {}
        self.newest_ms: dict[bytes, int] = {}
        self.changes: list[MemberChange] = []


@dataclass(slots=True)
class BatchGroup:
    """Batches that went through the steps together, and how long each step took, in seconds."""

    works: list[PartitionBatch]
    seconds: dict[str, float]
