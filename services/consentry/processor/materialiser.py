"""The processor's steps: from a batch of messages to the table, and out to the followers.

The steps are decode, load, fold, store, publish and settle, and their order is the guarantee:
stored → published → committed (docs/decisions/0002). A batch that was interrupted anywhere is
simply given again: what the table holds already is not folded again, but its members' records are
published again.

One batch as an example. The log of a partition goes on with four messages:

    offset  key  message
    7       ann  opts out; ann has no record yet
    8       bob  moves to Hong Kong; bob has a record of version 4
    9       ann  the same event as at offset 7, sent twice
    10      bob  bytes that cannot be read

- decode: three facts, and at offset 10 the fact that bob is quarantined, in place of an event.
- load: ann → None, bob → the bytes of version 4, in one round trip for all partitions.
- fold: ann gets version 1, which offset 9 leaves as it is; bob gets version 5, then version 6.
- store: ann's version 1, bob's version 6 and the next offset 11 go into the table in one atomic
  step, if the table still holds this worker's epoch and the next offset 7.
- publish: both records are queued for `records`, and the message at offset 10 for `quarantine`.
- settle: every replica has acknowledged them, so offset 11 may be committed.

If the worker dies after the store step, its successor reads on from offset 7 and finds the next
offset 11 in the table. All four events then count as replayed: none is folded, both records are
published again, and followers ignore what they have by its version.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from consentry.ops.failpoints import Failpoint
from consentry.processor.batches import (
    BatchGroup,
    BatchResult,
    EventBatch,
    OwnedPartition,
    PartitionBatch,
)
from consentry.processor.decode import BatchDecoder
from consentry.processor.fold import BatchFolder
from consentry.processor.ports import MemberChange, Obligations, Published, Publisher
from consentry.table.protocol import ConsentTable, Write
from consentry.wire.catalog import Catalog


class Materialiser:
    """The processor's steps: takes batches of events to the table and on to the records topic.

    The batches are of different partitions. It has no connection and no clock. For each group call
    `store`, then `publish`, then `settle`; the offsets of its batches may be committed afterwards.
    Whatever is raised in between, nothing is lost and nothing is applied twice.
    """

    def __init__(
        self,
        *,
        table: ConsentTable,
        publisher: Publisher,
        obligations: Obligations,
        catalog: Catalog,
        partitions: int,
        failpoint: Failpoint = lambda _name: None,
    ) -> None:
        self._table = table
        self._publisher = publisher
        self._obligations = obligations
        self._decoder = BatchDecoder(catalog, partitions)
        self._folder = BatchFolder(catalog.frame_of("ConsentRecord"), obligations)
        self._failpoint = failpoint

    def store(self, batches: Sequence[tuple[OwnedPartition, EventBatch]]) -> BatchGroup:
        """Decode, fold and store the processor's batches, in one round trip a step.

        The batches are of different partitions. Moves `next_offset` of each partition whose batch
        was stored. A batch that the table refused has its refusal (Fenced, or TableWentBack: rewind
        or rebuild) as `result.refused`. Raises Unavailable: call `catch_up`, then give the same
        batches again.
        """
        group = [PartitionBatch(owned, events) for owned, events in batches]
        times = _StepTimes()
        self._decoder.decode(group)
        self._failpoint("after_decode")
        times.note("decode")
        self._load(group)
        self._failpoint("after_load")
        times.note("load")
        for batch in group:
            self._folder.fold(batch)
        self._failpoint("after_fold")
        times.note("fold")
        self._store(group)
        self._failpoint("after_store")
        times.note("store")
        return BatchGroup(group, times.seconds)

    def catch_up(self, batches: Sequence[tuple[OwnedPartition, EventBatch]]) -> None:
        """Ask the table if it holds these batches already, after a store whose answer was lost.

        Folding them again onto the stored records could drop a fact that a bounded record cannot
        tell apart any more. Taken as stored, the table's content is published as it is. Raises
        Unavailable.
        """
        for owned, events in batches:
            meta = self._table.meta(owned.partition)
            if meta.epoch == owned.epoch and meta.next_offset == events.end_offset:
                owned.next_offset = events.end_offset

    def publish(self, group: BatchGroup) -> None:
        """Queue the record of every member in the batches, whether it was changed or not."""
        for batch in group.batches:
            if batch.is_refused:
                continue
            current = batch.current
            records: list[Published] = []
            for member, appended_ms in batch.newest_ms.items():
                record = current[member]
                if record is not None:
                    records.append(Published(member, record, appended_ms))
            self._publisher.publish(batch.owned.partition, records)
            if batch.result.refusals:
                self._publisher.quarantine(batch.result.refusals)

    def publish_now(self, partition: int, records: Sequence[Published]) -> None:
        """Publish records that belong to no batch of the processor, and await acknowledgement.

        No group may be between `publish` and `settle`. Raises Unavailable.
        """
        self._publisher.publish(partition, records)
        self._publisher.settle()

    def settle(self, group: BatchGroup) -> list[BatchResult]:
        """Wait until all that the batches queued is acknowledged, then open purge orders.

        Moves `acknowledged_offset` of each partition whose batch was stored. Raises Unavailable:
        `publish` the group again, then settle it again.
        """
        started = perf_counter()
        self._failpoint("before_settle")
        self._publisher.settle()
        stored = [batch for batch in group.batches if not batch.is_refused]
        changes: list[MemberChange] = []
        for batch in stored:
            changes.extend(batch.changes)
        if changes:
            self._obligations.open_for(changes)
        for batch in stored:
            owned = batch.owned
            owned.acknowledged_offset = max(owned.acknowledged_offset, batch.end_offset)
        group.seconds["settle"] = perf_counter() - started
        self._failpoint("after_publish")
        return [batch.result for batch in group.batches]

    def _load(self, batches: Sequence[PartitionBatch]) -> None:
        """Load the current records of all members of these batches."""
        members = {batch.owned.partition: batch.members for batch in batches}
        records = self._table.load(members)
        for batch in batches:
            partition = batch.owned.partition
            batch.current = dict(zip(members[partition], records[partition], strict=True))

    def _store(self, batches: Sequence[PartitionBatch]) -> None:
        """Write changed records and positions; each partition in one atomic step.

        A batch that changes nothing is written too: a table that was wiped has nothing to publish
        again, and only the write notices that.
        """
        sound = [batch for batch in batches if not batch.is_refused]
        if not sound:
            return
        writes: list[Write] = []
        for batch in sound:
            owned = batch.owned
            next_offset = max(batch.end_offset, owned.next_offset)
            writes.append(
                Write(
                    owned.partition,
                    batch.changed,
                    epoch=owned.epoch,
                    expected_offset=owned.next_offset,
                    next_offset=next_offset,
                    tainted=owned.tainted,
                )
            )
        refusals = self._table.store(writes)
        for batch, write, refusal in zip(sound, writes, refusals, strict=True):
            batch.result.refused = refusal
            if refusal is None and write.next_offset is not None:
                batch.owned.next_offset = write.next_offset


class _StepTimes:
    """Notes the duration of each step, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = perf_counter()

    def note(self, step: str) -> None:
        """Note the time since the step before as the duration of this one."""
        now = perf_counter()
        self.seconds[step] = now - self._since
        self._since = now
