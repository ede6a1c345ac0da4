"""One batch of one partition: strict decode, fold, store in one atomic step, publish. The order is the guarantee.

Stored → published → committed (docs/decisions/0002). A batch that was interrupted anywhere is simply given again:
what the table holds already is not folded again, but its members' records are published again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from consentry.domain.errors import TableWentBack, UndecodableEvent
from consentry.domain.events import EventUnreadable, MemberEvent
from consentry.domain.records import fold_fact
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId, Micros
from consentry.ops.failpoints import Failpoint
from consentry.processor.ports import MemberChange, Obligations, Published, Publisher, Refusal
from consentry.table.protocol import ConsentTable
from consentry.wire.catalog import Catalog
from consentry.wire.columns import EventColumns, FastFact
from consentry.wire.events import admit, read_event
from consentry.wire.partitions import partition_of, partitions_of
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


class Batch(NamedTuple):
    """Consecutive messages of one partition, column by column; append times in milliseconds."""

    partition: int
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    appended_ms: Sequence[int]


@dataclass(slots=True)
class Owned:
    """What a worker knows of a partition it owns: its epoch, and how far the table and the log have come."""

    partition: int
    epoch: int
    generation: str
    next_offset: int
    acknowledged_offset: int
    tainted: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of a batch: events by outcome, refusals by class, and seconds by step."""

    applied: int = 0
    repeated: int = 0
    replayed: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class _Work:
    """The state of one batch while it is folded."""

    def __init__(self, loaded: dict[bytes, bytes | None]) -> None:
        self.current = loaded
        self.changed: dict[bytes, bytes] = {}
        self.newest_ms: dict[bytes, int] = {}
        self.changes: list[MemberChange] = []


class Materialiser:
    """Turns batches into the table's content and what is published; owns no connection and no clock of its own."""

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

    def apply(self, owned: Owned, batch: Batch) -> Outcome:
        """Take one batch all the way to acknowledged records; afterwards its offsets may be committed.

        Moves `owned.next_offset` and `owned.acknowledged_offset`. Raises Fenced, TableWentBack (rewind or rebuild),
        Unavailable (give the same batch again). Whatever it raises, nothing is lost and nothing is applied twice.
        """
        outcome = Outcome()
        clock = _Steps(outcome.seconds)
        facts = self._decode(owned, batch, outcome)
        self._failpoint("after_decode")
        clock.step("decode")
        work = self._load(owned, batch, facts)
        self._failpoint("after_load")
        clock.step("load")
        self._fold(owned, batch, facts, work, outcome)
        self._failpoint("after_fold")
        clock.step("fold")
        end = batch.offsets[-1] + 1
        if end > owned.next_offset:
            self._table.store(
                owned.partition,
                work.changed,
                epoch=owned.epoch,
                expected_offset=owned.next_offset,
                next_offset=end,
                tainted=owned.tainted,
            )
            owned.next_offset = end
        self._failpoint("after_store")
        clock.step("store")
        self._publish(owned, work, outcome)
        owned.acknowledged_offset = max(owned.acknowledged_offset, end)
        self._failpoint("after_publish")
        clock.step("publish")
        return outcome

    def _decode(self, owned: Owned, batch: Batch, outcome: Outcome) -> list[FastFact | None]:
        """The fact of each message; a hold in place of an unreadable one; None where not even the key is readable."""
        facts = self._columns.read(batch.values, batch.keys)
        readable = [key if key and fact is not None else b"" for key, fact in zip(batch.keys, facts, strict=True)]
        homes = partitions_of(readable, self._partitions).tolist()
        for place, fact in enumerate(facts):
            if (
                fact is None
                or homes[place] != owned.partition
                or fact.recorded_at >= (batch.appended_ms[place] + 1) * MILLI_MICROS
            ):
                facts[place] = self._decode_strictly(owned, batch, place, outcome)
        return facts

    def _decode_strictly(self, owned: Owned, batch: Batch, place: int, outcome: Outcome) -> FastFact | None:
        key, value, offset = batch.keys[place], batch.values[place], batch.offsets[place]
        # The broker's time is in whole milliseconds: the event was taken at any moment of that one.
        appended_at = Micros(batch.appended_ms[place] * MILLI_MICROS + MILLI_MICROS - 1)
        try:
            fact = admit(self._event(owned, key, value), appended_at).fact()
        except UndecodableEvent as error:
            refusal = Refusal(owned.partition, offset, key, value, appended_at, error.error_class)
            outcome.refusals.append(refusal)
            if key is None or not _is_member_id(key):
                owned.tainted = True
                return None
            event_id = hashlib.blake2b(f"{owned.partition}:{offset}".encode(), digest_size=16).digest()
            member = MemberId(key.decode("ascii"))
            fact = EventUnreadable(event_id=event_id, member=member, recorded_at=appended_at).fact()
        return FastFact(fact_body(fact), fact.tag, int(fact.kind), fact.recorded_at)

    def _event(self, owned: Owned, key: bytes | None, value: bytes | None) -> MemberEvent:
        if key is None or not _is_member_id(key):
            raise UndecodableEvent("key", "The record key is not a member id.")
        if partition_of(key, self._partitions) != owned.partition:
            raise UndecodableEvent("wrong_partition", "The producer's partitioner is not murmur2.")
        return read_event(value, key, self._catalog)

    def _load(self, owned: Owned, batch: Batch, facts: Sequence[FastFact | None]) -> _Work:
        members = list({key: None for key, fact in zip(batch.keys, facts, strict=True) if key and fact is not None})
        return _Work(dict(zip(members, self._table.load(owned.partition, members), strict=True)))

    def _fold(
        self, owned: Owned, batch: Batch, facts: Sequence[FastFact | None], work: _Work, outcome: Outcome
    ) -> None:
        current, changed, newest_ms = work.current, work.changed, work.newest_ms
        record_frame, wants = self._frame, self._obligations.wants
        first_new = owned.next_offset
        for offset, key, fact, appended_ms in zip(batch.offsets, batch.keys, facts, batch.appended_ms, strict=True):
            if fact is None or key is None:
                continue
            newest_ms[key] = appended_ms
            if offset < first_new:
                outcome.replayed += 1
            else:
                before = current[key]
                after = self._after(key, before, fact, record_frame)
                if after is before:
                    outcome.repeated += 1
                else:
                    current[key] = changed[key] = after
                    outcome.applied += 1
            if wants(fact.kind):
                work.changes.append(self._change(key, fact, current[key]))

    def _after(self, key: bytes, before: bytes | None, fact: FastFact, record_frame: bytes) -> bytes:
        """The member's record bytes after one fact; the very same object if nothing changed."""
        if before is None:
            return first_record(key, fact.body, record_frame)
        try:
            after = appended(before, key, fact.body, fact.tag)
            if after is None:
                record = read_record(before, key)
                folded = fold_fact(record, record.member, body_fact(fact.body))
                after = before if folded is record else write_record(folded, record_frame)
        except DamagedRecord as error:
            # The table's bytes are not what was stored. What followers hold is better: take that back.
            raise TableWentBack(str(error), code="table.damaged", fix="nothing: the partition is rebuilt") from error
        return after

    def _change(self, key: bytes, fact: FastFact, raw: bytes | None) -> MemberChange:
        if raw is None:
            raise TableWentBack(
                "The table lost a record that it had stored.", code="table.damaged", fix="nothing: it is rebuilt"
            )
        record = read_record(raw, key)
        return MemberChange(record.member, body_fact(fact.body), record)

    def _publish(self, owned: Owned, work: _Work, outcome: Outcome) -> None:
        """Publish what the table now says of every touched member, whether this batch changed it or not."""
        current = work.current
        touched = [
            Published(member, raw, appended_ms)
            for member, appended_ms in work.newest_ms.items()
            if (raw := current[member]) is not None
        ]
        self._publisher.publish(owned.partition, touched)
        if outcome.refusals:
            self._publisher.quarantine(outcome.refusals)
        self._failpoint("before_settle")
        self._publisher.settle()
        if work.changes:
            self._obligations.open_for(work.changes)


def _is_member_id(key: bytes) -> bool:
    try:
        return MEMBER_ID_PATTERN.fullmatch(key.decode("ascii")) is not None
    except UnicodeDecodeError:
        return False


class _Steps:
    """Notes how long each step took, in seconds."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._since = perf_counter()

    def step(self, name: str) -> None:
        now = perf_counter()
        self._seconds[name] = now - self._since
        self._since = now
