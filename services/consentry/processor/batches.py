"""One partition's batch of messages in the processor, and its state between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consentry.domain.errors import Fenced, TableWentBack
from consentry.domain.values import Micros
from consentry.processor.ports import MemberChange, Refusal
from consentry.wire.event_batches import FastFact
from consentry.wire.headers import Headers

MILLI_MICROS: Final = 1000


class EventBatch(NamedTuple):
    """One batch of member events in the processor: messages of one partition, as columns.

    They are consecutive, and append times are in milliseconds. `headers` may be left out where no
    message has any.
    """

    partition: int
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    appended_ms: Sequence[int]
    headers: Sequence[Headers | None] = ()

    @property
    def end_offset(self) -> int:
        """The offset after the last message of this batch."""
        return self.offsets[-1] + 1

    def appended_at(self, index: int) -> Micros:
        """Return when the broker took the batch's message at this index, at the latest."""
        # The broker's time is in whole milliseconds: the event came at some moment of that one.
        return Micros(self.appended_ms[index] * MILLI_MICROS + MILLI_MICROS - 1)

    def refusal(self, index: int, error_class: str) -> Refusal:
        """Return the batch's message at this index in the form that goes to quarantine."""
        return Refusal(
            self.partition,
            self.offsets[index],
            self.keys[index],
            self.values[index],
            self.appended_at(index),
            error_class,
            self.headers[index] if self.headers else None,
        )


@dataclass(slots=True)
class OwnedPartition:
    """A partition that this processor owns: its epoch, and how far its table and its log are.

    The table holds all events below `next_offset`; the records of all events below
    `acknowledged_offset` are published and acknowledged.
    """

    partition: int
    epoch: int
    generation: str
    next_offset: int
    acknowledged_offset: int
    tainted: bool = False
    read_offset: int = 0
    """The end of the log that was last reached: everything below it was applied, or is no message.
    """


@dataclass(slots=True)
class BatchResult:
    """The result of one batch in the processor: its events by outcome, or the table's refusal.

    It also has the messages for quarantine. Every message with a readable key counts as applied,
    repeated or replayed. `clamped` counts those among them that claimed to be recorded later than
    the broker took them. `refused` is None where the table took the batch.
    """

    applied: int = 0
    repeated: int = 0
    replayed: int = 0
    clamped: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    refused: Fenced | TableWentBack | None = None


class PartitionBatch:
    """One partition's batch on its way through the processor's steps, and its state.

    `facts` has the fact of each message, None where not even the key was readable. `current` has
    each touched member's record as it is now, None for a member without one, and `changed` the
    records that this batch changed. `newest_ms` is the append time of each member's newest event.
    """

    def __init__(self, owned: OwnedPartition, events: EventBatch) -> None:
        self.owned = owned
        self.events = events
        self.end_offset = events.end_offset
        self.result = BatchResult()
        self.facts: list[FastFact | None] = []
        self.current: dict[bytes, bytes | None] = {}
        self.changed: dict[bytes, bytes] = {}
        self.newest_ms: dict[bytes, int] = {}
        self.changes: list[MemberChange] = []

    @property
    def is_refused(self) -> bool:
        """True if the table refused this batch, or one of its records was found damaged."""
        return self.result.refused is not None

    @property
    def members(self) -> list[bytes]:
        """The members whose events this batch of the processor holds, each once, in order.

        The order is that of appearance.
        """
        # One comprehension: it runs per event.
        members = {
            key: None
            for key, fact in zip(self.events.keys, self.facts, strict=True)
            if key and fact is not None
        }
        return list(members)


@dataclass(slots=True)
class BatchGroup:
    """Batches of several partitions that go through the processor's steps together.

    `seconds` has the duration of each step.
    """

    batches: list[PartitionBatch]
    seconds: dict[str, float]
