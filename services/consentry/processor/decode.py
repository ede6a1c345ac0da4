"""The processor's decode step: from the bytes of a batch of messages to facts about members.

Whole columns are checked at once; a message that does not pass these checks is decoded strictly,
by itself. A message that cannot be read goes to quarantine, and its member is quarantined too: what
it said, an opt-out perhaps, is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import EventUnreadable, Fact, MemberEvent
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId
from consentry.processor.batches import MILLI_MICROS, PartitionBatch
from consentry.wire.catalog import Catalog
from consentry.wire.event_batches import EventColumns, FastFact
from consentry.wire.events import admit, read_event
from consentry.wire.headers import HEADERS_MAX, are_refused
from consentry.wire.partitions import partition_of, partitions_of
from consentry.wire.quarantine import unreadable_event_id
from consentry.wire.records import fact_body

_NEVER: Final = (1 << 63) - 1
"""Later than any append time, so that a message without a fact is doubtful."""


class BatchDecoder:
    """The processor's decode step: turns the bytes of event batches into facts.

    It decodes messages of `partitions` partitions by the schemas of `catalog`.
    """

    def __init__(self, catalog: Catalog, partitions: int) -> None:
        self._catalog = catalog
        self._columns = EventColumns(catalog)
        self._partitions = partitions

    def decode(self, batches: Sequence[PartitionBatch]) -> None:
        """Set the facts of each of the processor's batches; note messages for quarantine.

        A message that cannot be read becomes a quarantine of its member, and None where not even
        the key is readable; its partition is then tainted.
        """
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        appended_ms: list[int] = []
        for batch in batches:
            keys.extend(batch.events.keys)
            values.extend(batch.events.values)
            appended_ms.extend(batch.events.appended_ms)
        facts = self._columns.read(values, keys)
        home_partitions = self._home_partitions(keys, facts)
        are_late = _are_recorded_late(facts, appended_ms)
        start = 0
        for batch in batches:
            end = start + len(batch.events.offsets)
            batch.facts = facts[start:end]
            are_foreign = home_partitions[start:end] != batch.owned.partition
            are_doubtful = are_foreign | are_late[start:end]
            for index, headers in enumerate(batch.events.headers):
                if headers is not None and are_refused(headers):
                    are_doubtful[index] = True
            for index in np.flatnonzero(are_doubtful).tolist():
                batch.facts[index] = self._decode_strictly(batch, index)
            start = end

    def _home_partitions(
        self, keys: Sequence[bytes | None], facts: Sequence[FastFact | None]
    ) -> npt.NDArray[np.int64]:
        """Return the partition that each key belongs to; of no use where there is no fact."""
        # One comprehension over the whole batch: it runs per event.
        readable = [
            key if key and fact is not None else b"" for key, fact in zip(keys, facts, strict=True)
        ]
        return partitions_of(readable, self._partitions)

    def _decode_strictly(self, batch: PartitionBatch, index: int) -> FastFact | None:
        events = batch.events
        key = events.keys[index]
        appended_at = events.appended_at(index)
        fact: Fact
        try:
            event = self._read_event(batch, index)
            admitted = admit(event, appended_at)
            if admitted is not event:
                batch.result.clamped += 1
            fact = admitted.fact()
        except UndecodableEvent as error:
            batch.result.refusals.append(events.refusal(index, error.error_class))
            if key is None or not _is_member_id(key):
                batch.owned.tainted = True
                return None
            unreadable = EventUnreadable(
                event_id=unreadable_event_id(batch.owned.partition, events.offsets[index]),
                member=MemberId(key.decode("ascii")),
                recorded_at=appended_at,
            )
            fact = unreadable.fact()
        return FastFact(fact_body(fact), fact.tag, int(fact.kind), fact.recorded_at)

    def _read_event(self, batch: PartitionBatch, index: int) -> MemberEvent:
        events = batch.events
        key = events.keys[index]
        if key is None or not _is_member_id(key):
            raise UndecodableEvent("key", "The message's key is not a member id.")
        if partition_of(key, self._partitions) != batch.owned.partition:
            raise UndecodableEvent("wrong_partition", "The producer's partitioner is not murmur2.")
        if events.headers and are_refused(events.headers[index]):
            raise UndecodableEvent(
                "headers", f"The message has more than {HEADERS_MAX} headers, or unreadable ones."
            )
        return read_event(events.values[index], key, self._catalog)


def _are_recorded_late(
    facts: Sequence[FastFact | None], appended_ms: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Return for each message True if its fact was recorded after the broker took the message.

    True also for a message without a fact.
    """
    # One comprehension over the whole batch: it runs per event.
    recorded_at = [_NEVER if fact is None else fact.recorded_at for fact in facts]
    taken_before = (np.array(appended_ms, dtype=np.int64) + 1) * MILLI_MICROS
    late: npt.NDArray[np.bool_] = np.array(recorded_at, dtype=np.int64) >= taken_before
    return late


def _is_member_id(key: bytes) -> bool:
    try:
        return MEMBER_ID_PATTERN.fullmatch(key.decode("ascii")) is not None
    except UnicodeDecodeError:
        return False
