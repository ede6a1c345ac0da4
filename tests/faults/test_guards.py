"""Each guard, and what happens where it is switched off: a test that cannot fail proves nothing.

In this process and without the stack, except for the table's function, whose checks are taken out
on a real server.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from importlib.resources import files

import pytest
import redis
from tests.batches import apply_batch
from tests.stack import (
    PARTITIONS,
    PURPOSE,
    ProducedEvent,
    World,
    lives_in,
    member_of,
    now,
    opted_in,
    opted_out,
)
from tests.table import load_partition, store_partition

from consentry.domain.controls import PolicyPublished, Regime, Terms
from consentry.domain.errors import Fenced, TableWentBack
from consentry.domain.records import Record, fold
from consentry.domain.values import MemberId, Micros
from consentry.processor.batches import EventBatch, OwnedPartition
from consentry.processor.materialiser import Materialiser
from consentry.processor.ownership import LogSpan, take_over
from consentry.processor.ports import InMemoryPublisher, NoObligations, Published
from consentry.record_index import RecordIndex, Segment
from consentry.table.memory import InMemoryTable
from consentry.table.protocol import ConsentTable
from consentry.table.redis_table import RedisTable
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.catalog import Catalog, InMemoryRegistry, load_catalog, register_all
from consentry.wire.events import write_event
from consentry.wire.freshness import FOREVER
from consentry.wire.frontiers import Frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.messages import StoredMessage
from consentry.wire.partitions import partition_of
from consentry.wire.records import version_of, write_record

pytestmark = pytest.mark.stack

MEMBER = member_of(2)
KEY = MEMBER.encode()


def make_catalog() -> Catalog:
    """The schemas in a registry of this process."""
    registry = InMemoryRegistry()
    register_all(registry, "guards")
    return load_catalog(registry, "guards")


CATALOG = make_catalog()


class Worker:
    """What one worker does to partition 2, step by step, over a log in memory."""

    def __init__(
        self, table: ConsentTable, log: list[ProducedEvent], publisher: InMemoryPublisher
    ) -> None:
        self.log, self.publisher, self.table = log, publisher, table
        self.materialiser = Materialiser(
            table=table,
            publisher=publisher,
            obligations=NoObligations(),
            catalog=CATALOG,
            partitions=PARTITIONS,
        )
        self.owned = self.open()

    def open(
        self, committed: int | None = None, last_frontier: Frontier | None = None
    ) -> OwnedPartition:
        """Own the partition."""
        span = LogSpan(0, len(self.log), committed)
        records = [
            StoredMessage(partition, offset, one.member, one.record, Micros(0))
            for offset, (partition, one) in enumerate(self.publisher.records)
        ]
        taken = take_over(
            self.table,
            2,
            span=span,
            last_frontier=last_frontier,
            records=lambda: records,
            publish=self._publish,
            min_epoch=now() // 1000,
        )
        self.owned = taken.owned
        return self.owned

    def _publish(self, held: Sequence[Published]) -> None:
        self.publisher.publish(2, held)
        self.publisher.settle()

    def apply(self, start: int, end: int) -> None:
        """Take these events of the log."""
        events = self.log[start:end]
        apply_batch(
            self.materialiser,
            self.owned,
            EventBatch(
                2,
                list(range(start, end)),
                [event.member.encode() for event in events],
                [write_event(event, CATALOG) for event in events],
                [now() // 1000 for _ in events],
            ),
        )


def folded(log: list[ProducedEvent], end: int | None = None) -> bytes:
    """The record that the log's first events fold to."""
    record: Record | None = None
    for event in log[:end]:
        record = fold(record, event)
    assert record is not None
    return write_record(record, CATALOG.frame_of("ConsentRecord"))


def history() -> list[ProducedEvent]:
    """Arrival, an opt-in, an opt-out."""
    return [lives_in(MEMBER), opted_in(MEMBER), opted_out(MEMBER)]


# ---- the table's function


@pytest.fixture
def real_table(world: World) -> Iterator[RedisTable]:
    """The real table, with its real function again afterwards."""
    with world.table() as table:
        table.check()
        yield table
        table.check()


def without(world: World, line: str) -> None:
    """Take a check out of the table's function on the server."""
    source = (files("consentry.table") / "function.lua").read_text()
    assert source.count(line) >= 2
    connection = redis.Redis.from_url(world.stack.addresses.redis_url)
    connection.function_load(source.replace(line, ""), replace=True)
    connection.close()


def test_an_owner_that_was_replaced_is_refused_by_its_epoch(
    world: World, real_table: RedisTable
) -> None:
    """A worker that wakes from a long freeze would write the past over the present."""
    log = history()
    old = Worker(real_table, log, InMemoryPublisher())
    old.apply(0, 1)
    new = Worker(real_table, log, InMemoryPublisher())
    with pytest.raises(Fenced):
        old.apply(1, 2)
    new.apply(1, 3)
    assert load_partition(real_table, 2, [KEY]) == [folded(log)]

    without(
        world, "if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end"
    )
    zombie = Worker(real_table, log, InMemoryPublisher())
    Worker(real_table, log, InMemoryPublisher())
    past = folded(log, 1)
    store_partition(
        real_table, 2, {KEY: past}, epoch=zombie.owned.epoch, expected_offset=3, next_offset=3
    )
    assert load_partition(real_table, 2, [KEY]) == [past], (
        "with the guard off the zombie's past is written"
    )


def test_a_table_that_went_back_is_noticed_by_its_offset(
    world: World, real_table: RedisTable
) -> None:
    """After a torn file the events of the lost second would never be folded: an opt-out among them
    is gone.
    """
    log = history()
    worker = Worker(real_table, log, InMemoryPublisher())
    worker.apply(0, 2)
    went_back(world, next_offset=1, record=folded(log, 1))
    with pytest.raises(TableWentBack):
        worker.apply(2, 3)
    worker.open(committed=2)
    assert worker.owned.next_offset == 1
    worker.apply(1, 3)
    assert load_partition(real_table, 2, [KEY]) == [folded(log)]

    went_back(world, next_offset=1, record=folded(log, 1))
    without(
        world,
        "if next_offset ~= args[2] then return { 'OFFSET', epoch, next_offset, generation } end",
    )
    unguarded = Worker(real_table, log, InMemoryPublisher())
    unguarded.owned.next_offset = 2
    unguarded.apply(2, 3)
    [held] = load_partition(real_table, 2, [KEY])
    assert held is not None
    assert version_of(held) == 2 < version_of(folded(log)), "with the guard off an event is lost"


def went_back(world: World, *, next_offset: int, record: bytes) -> None:
    """The table of partition 2 as it was earlier, as a server that lost its last second gives
    it.
    """
    connection = redis.Redis.from_url(world.stack.addresses.redis_url)
    connection.hset(f"{world.namespace}:{{2}}:meta", "next_offset", next_offset)
    for name in connection.scan_iter(f"{world.namespace}:{{2}}:b:*"):
        connection.hset(name, KEY, record)
    connection.close()


# ---- the processor


def test_a_table_wiped_before_a_repeated_batch_is_noticed_and_not_published_as_nothing() -> None:
    """Stored, not yet published, then wiped: a batch that only repeats would be committed without
    its records.
    """
    log, table, publisher = history(), InMemoryTable(), InMemoryPublisher()
    worker = Worker(table, log, publisher)
    publisher.fail_next = ConnectionError("the broker is away")
    with pytest.raises(ConnectionError):
        worker.apply(0, 3)
    table.wipe()
    with pytest.raises(TableWentBack):
        worker.apply(0, 3)
    assert worker.owned.acknowledged_offset == 0
    worker.open()
    worker.apply(0, 3)
    assert load_partition(table, 2, [KEY]) == [folded(log)]
    assert publisher.records[-1][1].record == folded(log)


def test_a_worker_that_published_only_what_changed_would_lose_the_record_of_a_crash() -> None:
    """The crash lies between table and log: trainers would never hear of that opt-out."""
    log, table, publisher = history(), InMemoryTable(), InMemoryPublisher()
    first = Worker(table, log, publisher)
    publisher.fail_next = ConnectionError("killed")
    with pytest.raises(ConnectionError):
        first.apply(0, 3)
    assert publisher.records == []
    Worker(table, log, publisher).apply(0, 3)
    assert [one.record for _, one in publisher.records] == [folded(log)]


def test_a_table_of_another_life_is_rebuilt_and_not_trusted() -> None:
    """A server restored from a backup has a plausible position, and records that nobody vouches
    for.
    """
    log, table, publisher = history(), InMemoryTable(), InMemoryPublisher()
    worker = Worker(table, log, publisher)
    worker.apply(0, 3)
    store_partition(
        table, 2, {KEY: folded(log, 2)}, epoch=worker.owned.epoch, expected_offset=3, next_offset=3
    )  # the backup's content
    vouched = Frontier(2, worker.owned.generation, now(), 3, 1, 0, False)
    worker.open(committed=3, last_frontier=vouched)
    assert load_partition(table, 2, [KEY]) == [folded(log, 2)], "the same generation is trusted"
    worker.open(committed=3, last_frontier=vouched._replace(generation=uuid.uuid4().hex))
    assert load_partition(table, 2, [KEY]) == [folded(log)]


# ---- the follower


class Following:
    """A view of everything, made fresh by hand."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.snapshot = snapshot or Snapshot(PARTITIONS, iso_jurisdictions())
        self.snapshot.apply_control(
            PolicyPublished(
                event_id=uuid.uuid4().bytes,
                version="open",
                terms=(Terms(jurisdictions=("*",), purpose=PURPOSE, regime=Regime.DEFAULT_ON),),
                effective_at=Micros(1),
                recorded_at=Micros(1),
            )
        )

    def take(self, *records: bytes) -> None:
        """Records of MEMBER in the order in which the topic has them."""
        self.snapshot.apply_records(2, [KEY] * len(records), list(records))

    def reason(self) -> str:
        """The reason of the answer on MEMBER now."""
        told = self.snapshot.decide(
            MemberId(MEMBER),
            None,
            purpose=PURPOSE,
            at=now(seconds=1),
            known_at=now(seconds=1),
            stale_detail="",
        )
        return told.reason.value


class NoVersions(Snapshot):
    """A follower that believes whatever comes last."""

    def apply_records(self, partition: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Without looking at versions."""
        held = dict(self.records) | dict(zip(keys, values, strict=True))
        self.records = RecordIndex([Segment.of(list(held), list(held.values()))])


def test_an_older_record_that_comes_after_a_newer_one_changes_nothing() -> None:
    """A frozen worker that wakes publishes what it held: the opt-out in between would be
    forgotten.
    """
    log = history()
    guarded, unguarded = Following(), Following(NoVersions(PARTITIONS, iso_jurisdictions()))
    for follower in (guarded, unguarded):
        follower.take(folded(log), folded(log, 2))
    assert guarded.reason() == "OPTED_OUT"
    assert guarded.snapshot.regressions == 1
    assert unguarded.reason() == "OPTED_IN", "with the guard off the zombie's record counts"


def test_no_single_flipped_bit_of_a_record_allows_what_the_record_forbids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One bit of an opt-out makes an opt-in that still decodes, on a disk or on the way."""
    record = folded([lives_in(MEMBER), opted_out(MEMBER)])
    flipped = [
        record[:place] + bytes([record[place] ^ (1 << bit)]) + record[place + 1 :]
        for place in range(5, len(record))
        for bit in range(8)
    ]

    def found() -> set[str]:
        reasons = set()
        for damaged in flipped:
            follower = Following()
            follower.take(damaged)
            reasons.add(follower.reason())
        return reasons

    assert found() == {"QUARANTINED"}
    from consentry.trainer.deciding import snapshot as snapshot
    from consentry.wire import records

    for module in (snapshot, records):
        monkeypatch.setattr(module, "verify_checksum", lambda raw, member: None)
    assert found() & {"DEFAULT_ON", "OPTED_IN"}, "with the guard off some flipped bit allows"


def frontier(*, at: Micros, tainted: bool) -> Frontier:
    """A frontier of partition 2."""
    return Frontier(2, "g", at, 3, 0, 0, tainted)


class NoTaint(Snapshot):
    """A follower that does not look at taints."""

    def apply_frontier(self, frontier: Frontier, appended_at: Micros = FOREVER) -> None:
        """Every frontier as if it were whole."""
        super().apply_frontier(frontier._replace(tainted=False), appended_at)


def test_a_tainted_partition_allows_nobody_and_an_older_frontier_takes_no_taint_back() -> None:
    """The frontier of a worker that was frozen before the taint arrives after it: for a second all
    were allowed.
    """
    assert partition_of(KEY, PARTITIONS) == 2
    guarded, unguarded = Following(), Following(NoTaint(PARTITIONS, iso_jurisdictions()))
    for follower in (guarded, unguarded):
        follower.take(folded(history()[:1]))
        assert follower.reason() == "DEFAULT_ON"
        follower.snapshot.apply_frontier(frontier(at=now(), tainted=True))
        follower.snapshot.apply_frontier(frontier(at=now(seconds=-30), tainted=False))
    assert guarded.reason() == "QUARANTINED"
    assert unguarded.reason() == "DEFAULT_ON", "with the guard off the unread opt-out is ignored"
    guarded.snapshot.apply_frontier(frontier(at=now(seconds=1), tainted=False))
    assert guarded.reason() == "DEFAULT_ON"
