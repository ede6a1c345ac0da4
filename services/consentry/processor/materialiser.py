"""Batches of some partitions: strict decode, fold, store in one atomic step, publish.

The order is the guarantee.

Stored → published → committed (docs/decisions/0002). A batch that was interrupted anywhere is
simply given again: what the table holds already is not folded again, but its members' records are
published again.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from consentry.domain.errors import TableWentBack, UndecodableEvent
from consentry.domain.events import EventUnreadable, FactKind, MemberEvent, event_tag
from consentry.domain.records import fold_fact, reused_event_id
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId, Micros
from consentry.ops.failpoints import Failpoint
from consentry.processor.batches import (
    BatchGroup,
    BatchResult,
    EventBatch,
    OwnedPartition,
    PartitionBatch,
)
from consentry.processor.ports import MemberChange, Obligations, Published, Publisher, Refusal
from consentry.table.protocol import ConsentTable, Write
from consentry.wire.catalog import Catalog
from consentry.wire.event_batches import EventColumns, FastFact
from consentry.wire.events import admit, read_event
from consentry.wire.headers import HEADERS_MAX, are_refused
from consentry.wire.partitions import partition_of, partitions_of
from consentry.wire.quarantine import unreadable_event_id
from consentry.wire.records import (
    DamagedRecord,
    appended,
    body_fact,
    fact_body,
    first_record,
    read_record,
    write_record,
)

MILLI_MICROS = 1000
_NEVER = (1 << 63) - 1
"""Later than any append time: what has no fact is doubtful."""


class Materialiser:
    """Turns batches into the table's content and what is published; owns no connection and no clock
    of its own.
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
        self._catalog = catalog
        self._columns = EventColumns(catalog)
        self._partitions = partitions
        self._frame = catalog.frame_of("ConsentRecord")
        self._failpoint = failpoint

    def apply(self, owned: OwnedPartition, batch: EventBatch) -> BatchResult:
        """`apply_all` for one partition; its refusal is raised."""
        [outcome] = self.apply_all([(owned, batch)])
        if outcome.refused is not None:
            raise outcome.refused
        return outcome

    def apply_all(self, batches: Sequence[tuple[OwnedPartition, EventBatch]]) -> list[BatchResult]:
        """Take batches of different partitions all the way: `store`, `publish`, `settle`.

        Afterwards the offsets of each may be committed, unless its outcome is `refused` (Fenced, or
        TableWentBack: rewind or rebuild). Raises Unavailable: give the same batches again. Whatever
        it raises, nothing is lost and nothing is applied twice.
        """
        round_ = self.store(batches)
        self.publish(round_)
        return self.settle(round_)

    def store(self, batches: Sequence[tuple[OwnedPartition, EventBatch]]) -> BatchGroup:
        """Decode, fold and store batches of different partitions, in one round trip a step.

        Moves `next_offset` of each that was not refused. Raises Unavailable: `catch_up`, then give
        them again.
        """
        works = [PartitionBatch(owned, batch) for owned, batch in batches]
        clock = _Steps()
        self._decode(works)
        self._failpoint("after_decode")
        clock.step("decode")
        self._load(works)
        self._failpoint("after_load")
        clock.step("load")
        for work in works:
            self._fold(work)
        self._failpoint("after_fold")
        clock.step("fold")
        self._store(works)
        self._failpoint("after_store")
        clock.step("store")
        return BatchGroup(works, clock.seconds)

    def catch_up(self, batches: Sequence[tuple[OwnedPartition, EventBatch]]) -> None:
        """After a store whose answer was lost: ask the table whether it holds the batches already.

        Folding them again from the stored records could drop what a bounded record no longer tells
        apart; taking them as stored publishes exactly what the table holds. Raises Unavailable.
        """
        for owned, batch in batches:
            meta, end = self._table.meta(owned.partition), batch.offsets[-1] + 1
            if meta.epoch == owned.epoch and meta.next_offset == end:
                owned.next_offset = end

    def publish(self, round_: BatchGroup) -> None:
        """Queue what the table now says of every touched member, whether this round changed it or
        not.
        """
        for work in round_.works:
            if work.outcome.refused is None:
                current = work.current
                touched = [
                    Published(member, raw, appended_ms)
                    for member, appended_ms in work.newest_ms.items()
                    if (raw := current[member]) is not None
                ]
                self._publisher.publish(work.owned.partition, touched)
                if work.outcome.refusals:
                    self._publisher.quarantine(work.outcome.refusals)

    def publish_now(self, partition: int, records: Sequence[Published]) -> None:
        """Publish records of a partition that belong to no batch, and wait for the
        acknowledgements.

        No round may be on its way. Raises Unavailable.
        """
        self._publisher.publish(partition, records)
        self._publisher.settle()

    def settle(self, round_: BatchGroup) -> list[BatchResult]:
        """Wait until all that was queued is acknowledged, open purge orders, and move
        `acknowledged_offset` of each.

        Raises Unavailable: `publish` the round again, then settle it again.
        """
        started = perf_counter()
        self._failpoint("before_settle")
        self._publisher.settle()
        changes = [
            change
            for work in round_.works
            if work.outcome.refused is None
            for change in work.changes
        ]
        if changes:
            self._obligations.open_for(changes)
        for work in round_.works:
            if work.outcome.refused is None:
                work.owned.acknowledged_offset = max(work.owned.acknowledged_offset, work.end)
        round_.seconds["settle"] = perf_counter() - started
        self._failpoint("after_publish")
        return [work.outcome for work in round_.works]

    def _decode(self, works: Sequence[PartitionBatch]) -> None:
        """The fact of each message; a hold in place of an unreadable one;

        None where not even the key is readable.
        """
        values = [value for work in works for value in work.batch.values]
        keys = [key for work in works for key in work.batch.keys]
        facts = self._columns.read(values, keys)
        readable = [
            key if key and fact is not None else b"" for key, fact in zip(keys, facts, strict=True)
        ]
        homes = partitions_of(readable, self._partitions)
        latest = (
            np.array([ms for work in works for ms in work.batch.appended_ms], dtype=np.int64) + 1
        ) * MILLI_MICROS
        recorded = np.array(
            [_NEVER if fact is None else fact.recorded_at for fact in facts], dtype=np.int64
        )
        start = 0
        for work in works:
            end = start + len(work.batch.offsets)
            work.facts = facts[start:end]
            doubtful = (homes[start:end] != work.owned.partition) | (
                recorded[start:end] >= latest[start:end]
            )
            for place, headers in enumerate(work.batch.headers):
                if headers is not None and are_refused(headers):
                    doubtful[place] = True
            for place in np.flatnonzero(doubtful).tolist():
                work.facts[place] = self._decode_strictly(
                    work.owned, work.batch, place, work.outcome
                )
            start = end

    def _decode_strictly(
        self, owned: OwnedPartition, batch: EventBatch, place: int, outcome: BatchResult
    ) -> FastFact | None:
        key, offset = batch.keys[place], batch.offsets[place]
        appended_at = _appended_at(batch, place)
        try:
            event = self._event(owned, batch, place)
            admitted = admit(event, appended_at)
            outcome.clamped += admitted is not event
            fact = admitted.fact()
        except UndecodableEvent as error:
            outcome.refusals.append(_refusal(batch, place, error.error_class))
            if key is None or not _is_member_id(key):
                owned.tainted = True
                return None
            event_id = unreadable_event_id(owned.partition, offset)
            member = MemberId(key.decode("ascii"))
            fact = EventUnreadable(event_id=event_id, member=member, recorded_at=appended_at).fact()
        return FastFact(fact_body(fact), fact.tag, int(fact.kind), fact.recorded_at)

    def _event(self, owned: OwnedPartition, batch: EventBatch, place: int) -> MemberEvent:
        key = batch.keys[place]
        if key is None or not _is_member_id(key):
            raise UndecodableEvent("key", "The record key is not a member id.")
        if partition_of(key, self._partitions) != owned.partition:
            raise UndecodableEvent("wrong_partition", "The producer's partitioner is not murmur2.")
        if batch.headers and are_refused(batch.headers[place]):
            raise UndecodableEvent(
                "headers", f"The message has more than {HEADERS_MAX} headers, or unreadable ones."
            )
        return read_event(batch.values[place], key, self._catalog)

    def _load(self, works: Sequence[PartitionBatch]) -> None:
        wanted = {
            work.owned.partition: list(
                {
                    key: None
                    for key, fact in zip(work.batch.keys, work.facts, strict=True)
                    if key and fact is not None
                }
            )
            for work in works
        }
        loaded = self._table.load_all(wanted)
        for work in works:
            partition = work.owned.partition
            work.current = dict(zip(wanted[partition], loaded[partition], strict=True))

    def _fold(self, work: PartitionBatch) -> None:
        try:
            self._fold_events(work)
        except TableWentBack as refusal:
            work.outcome.refused = refusal

    def _fold_events(self, work: PartitionBatch) -> None:
        current, changed, newest_ms, batch, outcome = (
            work.current,
            work.changed,
            work.newest_ms,
            work.batch,
            work.outcome,
        )
        record_frame, first_new, after_fact = self._frame, work.owned.next_offset, self._after
        # The controls in force are looked at once a batch: within its few milliseconds either
        # answer is right.
        wanted = {int(kind) for kind in FactKind if self._obligations.wants(kind)}
        conflicts: list[tuple[int, str]] = []
        replayed = repeated = applied = 0
        for place, offset, key, fact, appended_ms in zip(
            range(len(batch.offsets)),
            batch.offsets,
            batch.keys,
            work.facts,
            batch.appended_ms,
            strict=True,
        ):
            if fact is None or key is None:
                continue
            newest_ms[key] = appended_ms
            if offset < first_new:
                replayed += 1
                conflicts += _conflict(place, key, fact, current[key])
            else:
                before = current[key]
                after = after_fact(key, before, fact, record_frame, place, conflicts)
                if after is before:
                    repeated += 1
                else:
                    current[key] = changed[key] = after
                    applied += 1
            if fact.kind in wanted:
                work.changes.append(self._change(key, fact, current[key]))
        outcome.replayed, outcome.repeated, outcome.applied = replayed, repeated, applied
        outcome.refusals += [
            _refusal(batch, place, error_class) for place, error_class in conflicts
        ]

    def _store(self, works: Sequence[PartitionBatch]) -> None:
        # A batch that only repeats writes nothing, and still asks: a table that was wiped has
        # nothing to publish again.
        new = [work for work in works if work.outcome.refused is None]
        if not new:
            return
        writes = [
            Write(
                work.owned.partition,
                work.changed,
                work.owned.epoch,
                work.owned.next_offset,
                max(work.end, work.owned.next_offset),
                work.owned.tainted,
            )
            for work in new
        ]
        for work, refusal in zip(new, self._table.store_all(writes), strict=True):
            work.outcome.refused = refusal
            if refusal is None:
                work.owned.next_offset = max(work.end, work.owned.next_offset)

    def _after(
        self,
        key: bytes,
        before: bytes | None,
        fact: FastFact,
        record_frame: bytes,
        place: int,
        conflicts: list[tuple[int, str]],
    ) -> bytes:
        """The member's record bytes after one fact; the very same object if nothing changed.

        What the record could not take in, so that its member is quarantined, is added to
        `conflicts` by its place.
        """
        if before is None:
            return first_record(key, fact.body, record_frame)
        try:
            after = appended(before, key, fact.body, fact.tag)
            if after is None:
                record = read_record(before, key)
                folded = fold_fact(record, record.member, body_fact(fact.body))
                after = before if folded is record else write_record(folded, record_frame)
                conflicts += _conflict(place, key, fact, after)
        except DamagedRecord as error:
            # The table's bytes are not what was stored. What followers hold is better: take that
            # back.
            raise TableWentBack(
                str(error), code="table.damaged", fix="nothing: the partition is rebuilt"
            ) from error
        return after

    def _change(self, key: bytes, fact: FastFact, raw: bytes | None) -> MemberChange:
        if raw is None:
            raise TableWentBack(
                "The table lost a record that it had stored.",
                code="table.damaged",
                fix="nothing: it is rebuilt",
            )
        try:
            record = read_record(raw, key)
        except DamagedRecord as error:
            raise TableWentBack(
                str(error), code="table.damaged", fix="nothing: the partition is rebuilt"
            ) from error
        return MemberChange(record.member, body_fact(fact.body), record)


def _appended_at(batch: EventBatch, place: int) -> Micros:
    # The broker's time is in whole milliseconds: the event was taken at any moment of that one.
    return Micros(batch.appended_ms[place] * MILLI_MICROS + MILLI_MICROS - 1)


def _refusal(batch: EventBatch, place: int, error_class: str) -> Refusal:
    return Refusal(
        batch.partition,
        batch.offsets[place],
        batch.keys[place],
        batch.values[place],
        _appended_at(batch, place),
        error_class,
        batch.headers[place] if batch.headers else None,
    )


def _conflict(place: int, key: bytes, fact: FastFact, raw: bytes | None) -> list[tuple[int, str]]:
    """Place and error class of a well-formed event that made its record a quarantine; nothing for
    any other.

    Asked of the record that the event was folded into, also when that was earlier: so a batch that
    comes again after a crash says the same, and a message that should go to quarantine is never
    forgotten.
    """
    hold = event_tag(reused_event_id(MemberId(key.decode("ascii")), body_fact(fact.body)).event_id)
    if raw is None or hold not in raw:
        return []
    return [(place, "event_id_reused" if fact.tag in raw else "beyond_history")]


def _is_member_id(key: bytes) -> bool:
    try:
        return MEMBER_ID_PATTERN.fullmatch(key.decode("ascii")) is not None
    except UnicodeDecodeError:
        return False


class _Steps:
    """Notes how long each step took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = perf_counter()

    def step(self, name: str) -> None:
        now = perf_counter()
        self.seconds[name] = now - self._since
        self._since = now
