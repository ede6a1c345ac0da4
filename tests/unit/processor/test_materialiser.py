"""The materialiser: the table is a function of the log, and what is published is the table,
whatever breaks when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batches import apply_batch, apply_batches
from tests.strategies import chose, day, erased, moved, new_catalog, released
from tests.table import load_partition, store_partition

from consentry.domain.errors import (
    ConsentryError,
    Fenced,
    TableWentBack,
    Unavailable,
    UndecodableEvent,
)
from consentry.domain.events import (
    ConsentChanged,
    EventUnreadable,
    FactKind,
    MemberErased,
    MemberEvent,
    MemberRelocated,
    SentEvent,
)
from consentry.domain.records import Record, fold
from consentry.domain.values import Choice, MemberId, Micros
from consentry.ops.failpoints import NAMES
from consentry.processor.batches import BatchResult, EventBatch, OwnedPartition
from consentry.processor.materialiser import Materialiser
from consentry.processor.ownership import LogSpan, Takeover, take_over
from consentry.processor.ports import InMemoryPublisher, MemberChange, NoObligations, Published
from consentry.table.memory import InMemoryTable
from consentry.wire.events import admit, read_event, write_event
from consentry.wire.frontiers import Frontier
from consentry.wire.headers import Headers
from consentry.wire.messages import StoredMessage
from consentry.wire.partitions import partition_of
from consentry.wire.records import (
    DamagedRecord,
    newest_fact,
    read_record,
    record_digest,
    version_of,
)

CATALOG = new_catalog()
PARTITIONS = 3
APPENDED_MS = day(100) // 1000
Sent = ConsentChanged | MemberRelocated | MemberErased
PASSED = [name for name in NAMES if name not in ("after_poll", "before_commit")]


class Crash(BaseException):
    """The process is gone; nothing but the table, the topics and the commits is left."""


class World:
    """A log, a table, the topics and what was committed: all that outlives a worker."""

    def __init__(self) -> None:
        self.logs: dict[int, list[tuple[bytes | None, bytes | None]]] = {
            number: [] for number in range(PARTITIONS)
        }
        self.table = InMemoryTable()
        self.topics = InMemoryPublisher()
        self.committed: dict[int, int] = {}
        self.frontiers: dict[int, Frontier] = {}
        self.min_epoch = 1000
        self.crash_at: str | None = None

    def send(self, event: Sent) -> None:
        """Append an event to its partition."""
        key = event.member.encode()
        self.logs[partition_of(key, PARTITIONS)].append((key, write_event(event, CATALOG)))

    def pass_by(self, name: str) -> None:
        """End the worker at the failpoint `crash_at`."""
        if name == self.crash_at:
            self.crash_at = None
            raise Crash(name)

    def worker(self) -> Materialiser:
        """A new process; what a dead one had queued is lost."""
        lasting = InMemoryPublisher()
        lasting.records, lasting.refusals = self.topics.records, self.topics.refusals
        self.topics = lasting
        return Materialiser(
            table=self.table,
            publisher=lasting,
            obligations=NoObligations(),
            catalog=CATALOG,
            partitions=PARTITIONS,
            failpoint=self.pass_by,
        )

    def open(self, partition: int) -> Takeover:
        """Own a partition as the hot path does."""
        self.min_epoch += 1
        return take_over(
            self.table,
            partition,
            span=LogSpan(0, len(self.logs[partition]), self.committed.get(partition)),
            last_frontier=self.frontiers.get(partition),
            records=lambda: self.records(partition),
            publish=lambda held: self.publish(partition, held),
            min_epoch=self.min_epoch,
        )

    def publish(self, partition: int, held: Sequence[Published]) -> None:
        """Put records into the records topic."""
        self.topics.publish(partition, held)
        self.topics.settle()

    def records(self, partition: int) -> list[StoredMessage]:
        """The records topic of a partition from its beginning."""
        return [
            StoredMessage(partition, offset, record.member, record.record, Micros(0))
            for offset, (number, record) in enumerate(self.topics.records)
            if number == partition
        ]

    def batch(self, partition: int, start: int, size: int) -> EventBatch:
        """Some messages of a partition."""
        messages = self.logs[partition][start : start + size]
        offsets = range(start, start + len(messages))
        keys, values = [key for key, _ in messages], [value for _, value in messages]
        return EventBatch(partition, offsets, keys, values, [APPENDED_MS] * len(messages))

    def commit(self, owned: OwnedPartition) -> None:
        """Commit, and say how far the partition has come."""
        partition, offset = owned.partition, owned.acknowledged_offset
        self.committed[partition] = offset
        end = len(self.records(partition))
        self.frontiers[partition] = Frontier(
            partition, owned.generation, day(100), offset, end, 0, owned.tainted
        )

    def expected(self) -> dict[bytes, Record]:
        """Return the pure fold of the log, as if nothing ever broke."""
        records: dict[bytes, Record] = {}
        for messages in self.logs.values():
            for key, value in messages:
                assert key is not None
                records[key] = fold(records.get(key), read_event(value, key, CATALOG))
        return records

    def held(self) -> dict[bytes, Record]:
        """Return the table's record of every member."""
        return {
            member: read_record(raw, member)
            for partition in self.logs
            for member, raw in self.table.scan(partition)
        }

    def followed(self) -> dict[bytes, bytes]:
        """Return the records of a follower that read all of them: the newest version of each."""
        newest: dict[bytes, bytes] = {}
        for _, (member, record, _) in self.topics.records:
            if member not in newest or version_of(newest[member]) <= version_of(record):
                newest[member] = record
        return newest


def drain(world: World, random: Random, *, crashes: int) -> None:
    """Read all logs to their end, crashing on the way and taking over anew."""
    worker, opened = world.worker(), {number: world.open(number) for number in world.logs}
    positions = {number: taken.start_offset for number, taken in opened.items()}
    while any(positions[number] < len(world.logs[number]) for number in world.logs):
        if crashes and random.random() < 0.5:
            crashes -= 1
            world.crash_at = random.choice(PASSED)
        batches = [
            (opened[number].owned, world.batch(number, positions[number], random.randrange(1, 6)))
            for number in world.logs
            if positions[number] < len(world.logs[number]) and random.random() < 0.8
        ]
        try:
            for (owned, batch), outcome in zip(
                batches, apply_batches(worker, batches), strict=True
            ):
                assert outcome.refused is None
                positions[owned.partition] = batch.offsets[-1] + 1
                if random.random() < 0.8:
                    world.commit(owned)
        except Crash:
            if random.random() < 0.2:
                world.table.wipe()
            worker, opened = world.worker(), {number: world.open(number) for number in world.logs}
            positions = {number: taken.start_offset for number, taken in opened.items()}
    world.crash_at = None


def history_by_chance(random: Random) -> list[Sent]:
    """Events of a few members, some of them sent twice."""
    events: list[Sent] = []
    for number in range(1, random.randrange(5, 40)):
        member = f"member-{random.randrange(7)}"
        drawn = random.random()
        if drawn < 0.6:
            choice = random.choice(list(Choice))
            observed = random.choice([None, random.randrange(8)])
            events.append(chose(choice, number, on=number, member=member, observed=observed))
        elif drawn < 0.95:
            events.append(
                moved(random.choice(["HK", "US", "DE"]), number, on=number, member=member)
            )
        else:
            events.append(erased(number, on=number, member=member))
        if random.random() < 0.2:
            events.append(random.choice(events))
    return events


class TestExample:
    def test_the_example_of_the_module_is_true(self) -> None:
        """A reader who learns the steps from an example must not learn something untrue."""
        ann, bob = members_at_home(2)
        world = World()
        for number in range(1, 5):
            world.send(moved("US", number, on=number, member=bob))
        for number in range(3):
            world.send(moved("US", 10 + number, on=number, member=members_at_home(3)[2]))
        apply_batch(world.worker(), world.open(0).owned, world.batch(0, 0, 7))
        opt_out = (ann.encode(), write_event(chose(Choice.OPT_OUT, 20, on=8, member=ann), CATALOG))
        move = (bob.encode(), write_event(moved("HK", 21, on=8, member=bob), CATALOG))
        world.logs[0] += [opt_out, move, opt_out, (bob.encode(), b"?")]
        world.committed[0] = 7

        first = apply_batch(world.worker(), world.open(0).owned, world.batch(0, 7, 4))
        versions = {name: world.held()[name.encode()].version for name in (ann, bob)}
        again = world.open(0)
        second = apply_batch(world.worker(), again.owned, world.batch(0, again.start_offset, 4))

        assert (first.applied, first.repeated, first.replayed) == (3, 1, 0)
        assert [refusal.offset for refusal in first.refusals] == [10]
        assert versions == {ann: 1, bob: 6}
        assert world.table.meta(0).next_offset == 11
        assert again.start_offset == 7
        assert (second.applied, second.repeated, second.replayed) == (0, 0, 4)


class TestCrashes:
    @settings(max_examples=300)
    @given(st.integers(0, 2**48))
    def test_whatever_crashes_table_and_followers_are_the_fold_of_the_log(self, seed: int) -> None:
        """An event that is lost or applied twice by a crash is an opt-out that is forgotten or
        undone.
        """
        random = Random(seed)
        world = World()
        for event in history_by_chance(random):
            world.send(event)

        drain(world, random, crashes=random.randrange(5))

        assert world.held() == world.expected()
        table = {member: raw for number in world.logs for member, raw in world.table.scan(number)}
        assert world.followed() == table

    @pytest.mark.parametrize("step", PASSED)
    def test_a_crash_at_each_step_loses_nothing_and_publishes_what_was_stored(
        self, step: str
    ) -> None:
        """The step between storing and publishing is the one where a record gets lost by most
        designs.
        """
        world = World()
        world.send(moved("US", 1, on=1))
        partition = partition_of(b"member-1", PARTITIONS)
        world.crash_at = step

        with pytest.raises(Crash, match=step):
            apply_batch(world.worker(), world.open(partition).owned, world.batch(partition, 0, 5))
        taken = world.open(partition)
        apply_batch(world.worker(), taken.owned, world.batch(partition, taken.start_offset, 5))

        assert world.held() == world.expected()
        assert set(world.followed()) == {b"member-1"}

    def test_publishing_only_what_changed_would_lose_the_record_of_a_crash(self) -> None:
        """Hurt when this breaks: whoever trusts that replayed events are published again."""
        world = World()
        world.send(moved("US", 1, on=1))
        partition = partition_of(b"member-1", PARTITIONS)
        world.crash_at = "after_store"
        with pytest.raises(Crash):
            apply_batch(world.worker(), world.open(partition).owned, world.batch(partition, 0, 5))

        outcome = apply_batch(
            world.worker(), world.open(partition).owned, world.batch(partition, 0, 5)
        )

        assert (outcome.applied, outcome.replayed) == (0, 1)
        assert [record.member for _, record in world.topics.records] == [b"member-1"]

    def test_a_broker_that_does_not_acknowledge_is_asked_again_with_the_same_batch(self) -> None:
        """Unacknowledged is unknown: the batch is given again, and nothing is folded twice."""
        world = World()
        world.send(chose(Choice.OPT_OUT, 1, on=1))
        partition = partition_of(b"member-1", PARTITIONS)
        worker, owned = world.worker(), world.open(partition).owned
        world.topics.fail_next = Unavailable("away", code="kafka.unavailable")

        with pytest.raises(Unavailable):
            apply_batch(worker, owned, world.batch(partition, 0, 5))
        assert owned.acknowledged_offset == 0
        apply_batch(worker, owned, world.batch(partition, 0, 5))

        assert owned.acknowledged_offset == 1
        assert world.held() == world.expected()
        assert world.followed().keys() == world.held().keys()


class TestOwners:
    def test_a_worker_that_was_replaced_while_it_slept_writes_and_publishes_nothing(self) -> None:
        """It would bring back what the members said before it fell asleep."""
        world = World()
        world.send(moved("US", 1, on=1))
        partition = partition_of(b"member-1", PARTITIONS)
        sleeper, stale = world.worker(), world.open(partition).owned
        awake, owned = world.worker(), world.open(partition).owned
        apply_batch(awake, owned, world.batch(partition, 0, 5))
        world.send(chose(Choice.OPT_OUT, 2, on=2))
        apply_batch(awake, owned, world.batch(partition, 1, 5))
        published = list(world.topics.records)

        with pytest.raises(Fenced):
            apply_batch(sleeper, stale, world.batch(partition, 0, 1))

        assert world.topics.records == published
        assert world.held() == world.expected()

    def test_a_table_that_was_wiped_between_two_batches_is_noticed_and_rebuilt_alike(self) -> None:
        """An empty table that went on from the middle of the log would know nobody's earlier
        opt-out.
        """
        world = World()
        events = history_by_chance(Random(7))
        for event in events:
            world.send(event)
        drain(world, Random(1), crashes=0)
        opened = {number: world.open(number) for number in world.logs}
        for taken in opened.values():
            world.commit(taken.owned)
        before = digests(world)
        world.table.wipe()
        for event in (
            moved("HK", 900 + number, on=90, member=f"member-{number}") for number in range(7)
        ):
            world.send(event)

        for number, taken in opened.items():
            if taken.owned.next_offset == len(world.logs[number]):
                continue
            with pytest.raises(TableWentBack):
                apply_batch(
                    world.worker(), taken.owned, world.batch(number, taken.owned.next_offset, 50)
                )
        rebuilt = {number: world.open(number) for number in world.logs}

        assert all(taken.rebuilt for taken in rebuilt.values())
        assert digests(world) == before
        for number, taken in rebuilt.items():
            if taken.start_offset < len(world.logs[number]):
                apply_batch(
                    world.worker(), taken.owned, world.batch(number, taken.start_offset, 50)
                )
        assert world.held() == world.expected()

    def test_one_lost_partition_does_not_stop_the_others(self) -> None:
        """A worker owns many; a rebalance takes one of them at a time."""
        world = World()
        for number in range(1, 20):
            world.send(moved("US", number, on=number, member=f"member-{number}"))
        worker, opened = world.worker(), {number: world.open(number).owned for number in world.logs}
        world.open(1)

        outcomes = apply_batches(
            worker, [(owned, world.batch(number, 0, 50)) for number, owned in opened.items()]
        )

        assert [type(outcome.refused) for outcome in outcomes] == [type(None), Fenced, type(None)]
        assert {number for number, _ in world.topics.records} == {0, 2}
        assert (opened[0].acknowledged_offset, opened[1].acknowledged_offset) == (
            len(world.logs[0]),
            0,
        )


def digests(world: World) -> dict[int, int]:
    """The digest of each partition's table."""
    return {
        number: sum(record_digest(member, raw) for member, raw in world.table.scan(number)) % 2**128
        for number in world.logs
    }


def applied(
    world: World, messages: Sequence[tuple[bytes | None, bytes | None]], *, partition: int
) -> OwnedPartition:
    """Append raw messages to a partition and apply them."""
    start = len(world.logs[partition])
    world.logs[partition].extend(messages)
    owned = world.open(partition).owned
    apply_batch(world.worker(), owned, world.batch(partition, start, len(messages)))
    return owned


class TestUnreadable:
    KEY = b"member-1"
    HOME = partition_of(KEY, PARTITIONS)

    def newest(self, world: World) -> FactKind:
        """The kind of the last fact in the member's record."""
        [raw] = load_partition(world.table, self.HOME, [self.KEY])
        assert raw is not None
        fact = newest_fact(raw)
        assert fact is not None
        return fact.kind

    @pytest.mark.parametrize("value", [None, b"", b"\x00", b"{}", b"\x00\x00\x00\x00\x01garbage"])
    def test_an_unreadable_value_holds_its_member_and_is_kept_as_it_was(
        self, value: bytes | None
    ) -> None:
        """It may have been an opt-out; an operator needs the very bytes to find out."""
        world = World()

        owned = applied(
            world,
            [(self.KEY, write_event(moved("US", 1, on=1), CATALOG)), (self.KEY, value)],
            partition=self.HOME,
        )

        assert self.newest(world) is FactKind.QUARANTINED
        [refusal] = world.topics.refusals
        assert (refusal.partition, refusal.offset, refusal.key, refusal.value) == (
            self.HOME,
            1,
            self.KEY,
            value,
        )
        assert refusal.error_class
        assert not owned.tainted
        assert owned.acknowledged_offset == 2

    def test_an_unreadable_value_that_is_read_again_holds_its_member_once(self) -> None:
        """The operator releases once; a replay must not shut the member out again."""
        world = World()
        world.logs[self.HOME].append((self.KEY, b"?"))
        owned = world.open(self.HOME).owned
        batch = world.batch(self.HOME, 0, 1)

        for _ in range(2):
            apply_batch(world.worker(), owned, batch)

        [raw] = load_partition(world.table, self.HOME, [self.KEY])
        assert raw is not None
        assert version_of(raw) == 1

    @pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"../../etc", b"a" * 65])
    def test_an_unreadable_key_taints_its_partition(self, key: bytes | None) -> None:
        """Nobody can say whose opt-out it was, so nobody of this partition is used."""
        world = World()

        owned = applied(world, [(key, b"?")], partition=1)

        assert owned.tainted
        assert world.table.meta(1).tainted
        assert world.topics.refusals[0].key == key
        assert world.open(1).owned.tainted

    def test_an_event_on_a_foreign_partition_is_refused_and_its_member_held(self) -> None:
        """Its order with the member's other events is lost: some producer hashes otherwise."""
        world = World()
        foreign = (self.HOME + 1) % PARTITIONS

        applied(
            world,
            [(self.KEY, write_event(chose(Choice.OPT_IN, 1, on=1), CATALOG))],
            partition=foreign,
        )

        assert world.topics.refusals[0].error_class == "wrong_partition"
        [raw] = load_partition(world.table, foreign, [self.KEY])
        assert raw is not None
        assert [fact.kind for fact in read_record(raw, self.KEY).facts] == [FactKind.QUARANTINED]

    def test_an_opt_in_from_the_future_is_refused_and_its_member_held(self) -> None:
        """It would outlive the lift that is to void it."""
        world = World()

        applied(
            world,
            [(self.KEY, write_event(chose(Choice.OPT_IN, 1, on=101), CATALOG))],
            partition=self.HOME,
        )

        assert self.newest(world) is FactKind.QUARANTINED
        assert world.topics.refusals[0].error_class == "opt_in_from_future"

    def test_an_opt_out_from_the_future_counts_from_when_the_broker_took_it(self) -> None:
        """A clock that runs ahead must not postpone an exclusion."""
        world = World()
        event = chose(Choice.OPT_OUT, 1, on=101, effective_at=day(1))

        applied(world, [(self.KEY, write_event(event, CATALOG))], partition=self.HOME)

        [raw] = load_partition(world.table, self.HOME, [self.KEY])
        assert raw is not None
        [fact] = read_record(raw, self.KEY).facts
        assert fact.kind is FactKind.OPTED_OUT
        assert fact.recorded_at == APPENDED_MS * 1000 + 999

    def test_a_large_batch_with_bad_messages_among_good_ones_is_read_like_single_ones(self) -> None:
        """Batches take the columnar path, single events the strict one: a member is the same in
        both.
        """
        good = [(b"member-%d" % number, number) for number in range(200)]
        messages = [
            (key, write_event(moved("US", number, on=number % 50, member=key.decode()), CATALOG))
            for key, number in good
            if partition_of(key, PARTITIONS) == 0
        ]
        messages[5] = (messages[5][0], b"?")
        together, apart = World(), World()

        applied(together, messages, partition=0)
        for message in messages:
            applied(apart, [message], partition=0)

        assert dict(together.table.scan(0)) == dict(apart.table.scan(0))
        assert together.topics.refusals == apart.topics.refusals


class Opened(NoObligations):
    """Notes what it was asked to open."""

    def __init__(self) -> None:
        self.changes: list[MemberChange] = []

    def wants(self, fact_kind: int) -> bool:
        return fact_kind == FactKind.ERASED

    def open_for(self, changes: Sequence[MemberChange]) -> None:
        self.changes.extend(changes)


class TestObligations:
    KEY = b"member-1"
    HOME = partition_of(KEY, PARTITIONS)

    def worker(self, world: World, opened: Opened) -> Materialiser:
        """A worker that opens purge orders."""
        return Materialiser(
            table=world.table,
            publisher=world.topics,
            obligations=opened,
            catalog=CATALOG,
            partitions=PARTITIONS,
        )

    def test_an_erasure_obliges_also_when_it_is_replayed(self) -> None:
        """The crash may have come before the order was opened; opening it twice changes nothing."""
        world, opened = World(), Opened()
        world.send(erased(1, on=1))
        owned = world.open(self.HOME).owned

        for _ in range(2):
            apply_batch(self.worker(world, opened), owned, world.batch(self.HOME, 0, 1))

        assert [change.fact.kind for change in opened.changes] == [FactKind.ERASED] * 2
        assert opened.changes[0].record.erasure is not None

    def test_a_damaged_record_sends_the_partition_to_be_rebuilt(self) -> None:
        """Folding onto damaged bytes would make the damage look sound."""
        world, opened = World(), Opened()
        world.send(moved("US", 1, on=1))
        world.send(erased(2, on=2))
        owned = world.open(self.HOME).owned
        apply_batch(self.worker(world, opened), owned, world.batch(self.HOME, 0, 1))
        damage(world, self.HOME, self.KEY, owned)

        with pytest.raises(TableWentBack) as caught:
            apply_batch(self.worker(world, opened), owned, world.batch(self.HOME, 1, 1))

        assert caught.value.code == "table.damaged"

    def test_a_damaged_record_of_a_replayed_erasure_sends_the_partition_to_be_rebuilt(self) -> None:
        """Raised as anything else it would end the worker, and end it again after each start."""
        world, opened = World(), Opened()
        world.send(erased(1, on=1))
        owned = world.open(self.HOME).owned
        apply_batch(self.worker(world, opened), owned, world.batch(self.HOME, 0, 1))
        damage(world, self.HOME, self.KEY, owned)

        with pytest.raises(ConsentryError) as caught:
            apply_batch(self.worker(world, opened), owned, world.batch(self.HOME, 0, 1))

        assert caught.value.code == "table.damaged"
        assert not isinstance(caught.value, DamagedRecord)


def damage(world: World, partition: int, member: bytes, owned: OwnedPartition) -> None:
    """Flip a bit of a record in the table."""
    [raw] = load_partition(world.table, partition, [member])
    assert raw is not None
    flipped = raw[:20] + bytes((raw[20] ^ 1,)) + raw[21:]
    offset = owned.next_offset
    store_partition(
        world.table,
        partition,
        {member: flipped},
        epoch=owned.epoch,
        expected_offset=offset,
        next_offset=offset,
    )


def test_a_hold_is_a_fact_like_any_other() -> None:
    """It is stored, published and counted in the version, so that followers hold the member too."""
    held = fold(
        None,
        EventUnreadable(
            event_id=bytes(16), member=chose(Choice.OPT_OUT, 1, on=1).member, recorded_at=day(1)
        ),
    )

    assert (held.version, held.facts[0].kind) == (1, FactKind.QUARANTINED)


def apply_messages(
    world: World,
    *messages: tuple[bytes | None, bytes | None],
    headers: Sequence[Headers | None] = (),
) -> BatchResult:
    """Apply these messages on partition 0, and return the result."""
    worker, opened = world.worker(), world.open(0)
    start = len(world.logs[0])
    world.logs[0] += messages
    batch = world.batch(0, opened.start_offset, start + len(messages))._replace(headers=headers)
    return apply_batch(worker, opened.owned, batch)


def member_at_home() -> str:
    """A member whose events belong to partition 0."""
    return members_at_home(1)[0]


def members_at_home(count: int) -> list[str]:
    """Members whose events belong to partition 0."""
    names = (f"m{number}" for number in range(100))
    return [name for name in names if partition_of(name.encode(), PARTITIONS) == 0][:count]


class TestReusedEventIds:
    """An event id that comes back with other content is a forgery or a bug, and somebody has to
    look at it.
    """

    MEMBER = member_at_home()
    KEY = MEMBER.encode()
    FIRST = write_event(chose(Choice.OPT_OUT, 1, on=1, member=MEMBER), CATALOG)
    FORGED = write_event(chose(Choice.OPT_IN, 1, on=1, member=MEMBER), CATALOG)

    def test_the_offending_message_goes_to_quarantine_and_a_retry_does_not(self) -> None:
        """The hold alone says that something happened, and not what."""
        outcome = apply_messages(
            World(), (self.KEY, self.FIRST), (self.KEY, self.FIRST), (self.KEY, self.FORGED)
        )

        assert [
            (refusal.offset, refusal.value, refusal.error_class) for refusal in outcome.refusals
        ] == [(2, self.FORGED, "event_id_reused")]
        assert (outcome.applied, outcome.repeated) == (2, 1)

    @pytest.mark.parametrize("step", PASSED)
    def test_a_crash_anywhere_forgets_no_offence(self, step: str) -> None:
        """Between the table and the topics the worker dies: replayed, the record is a quarantine
        and looks like any other.
        """
        world = World()
        world.crash_at = step
        with pytest.raises(Crash):
            apply_messages(world, (self.KEY, self.FIRST), (self.KEY, self.FORGED))

        opened = world.open(0)
        outcome = apply_batch(world.worker(), opened.owned, world.batch(0, opened.start_offset, 10))

        assert [(refusal.offset, refusal.error_class) for refusal in outcome.refusals] == [
            (1, "event_id_reused")
        ]
        assert {refusal.offset for refusal in world.topics.refusals} == {1}

    def test_a_move_that_may_repeat_one_of_beyond_the_record_goes_to_quarantine_too(self) -> None:
        """Its member is quarantined, as nobody can tell: without the message nobody could ever find
        out why.
        """
        events = [moved("US", 1, on=1, member=self.MEMBER)]
        events += [moved("HK", number, on=number, member=self.MEMBER) for number in range(2, 70)]
        late = moved("DE", 99, on=1.5, member=self.MEMBER)

        outcome = apply_messages(
            World(), *((self.KEY, write_event(event, CATALOG)) for event in [*events, late])
        )

        assert [refusal.error_class for refusal in outcome.refusals] == ["beyond_history"]


class TestHeaders:
    def test_headers_of_what_is_refused_are_kept_with_it(self) -> None:
        """They say who sent it, and which request it belonged to."""
        member = member_at_home()
        value = write_event(chose(Choice.OPT_OUT, 1, on=1, member=member), CATALOG)
        headers_sent: Headers = [("traceparent", b"00-1-2-01")]

        outcome = apply_messages(
            World(),
            (member.encode(), value),
            (member.encode(), b"?"),
            (None, value),
            headers=[headers_sent, headers_sent, None],
        )

        assert [(refusal.error_class, refusal.headers) for refusal in outcome.refusals] == [
            ("short", headers_sent),
            ("key", None),
        ]


class TestClamped:
    def test_events_from_a_fast_clock_are_counted(self) -> None:
        """A clock that is wrong is mended only if somebody hears of it."""
        member = member_at_home()
        ahead = write_event(chose(Choice.OPT_OUT, 1, on=101, member=member), CATALOG)
        right = write_event(chose(Choice.OPT_OUT, 2, on=99, member=member), CATALOG)

        outcome = apply_messages(World(), (member.encode(), ahead), (member.encode(), right))

        assert (outcome.clamped, outcome.applied, outcome.refusals) == (1, 2, [])


class TestAnyBytes:
    @settings(max_examples=300)
    @given(st.integers(0, 2**48))
    def test_whatever_is_sent_the_table_is_what_the_strict_path_alone_makes_of_it(
        self, seed: int
    ) -> None:
        """Fast path, dictionary of middles and coalescing are there for speed: they may change no
        single answer.
        """
        random = Random(seed)
        world = World()
        member = member_at_home()
        key = member.encode()
        messages = [mutated(random, member) for _ in range(random.randrange(1, 12))]
        messages += random.choices(messages, k=3)

        apply_messages(world, *((key, value) for value in messages))

        record: Record | None = None
        for offset, value in enumerate(messages):
            record = fold(record, strictly(key, value, offset))
        assert record is not None
        assert world.held() == {key: record}


def strictly(key: bytes, value: bytes, offset: int) -> MemberEvent:
    """The event of a message by the strict path alone, or the hold in its place."""
    appended_at = Micros(APPENDED_MS * 1000 + 999)
    try:
        return admit(read_event(value, key, CATALOG), appended_at)
    except UndecodableEvent:
        event_id = hashlib.blake2b(f"0:{offset}".encode(), digest_size=16).digest()
        return EventUnreadable(
            event_id=event_id, member=MemberId(key.decode()), recorded_at=appended_at
        )


def mutated(random: Random, member: str) -> bytes:
    """A good event of the member, or one with some bytes changed, cut, repeated or swapped."""
    number = random.randrange(1, 6)
    events: list[SentEvent] = [
        chose(
            random.choice(list(Choice)),
            number,
            on=random.choice([1, 2, 101]),
            member=member,
            observed=number,
        ),
        moved(random.choice(["US", "HK", "XX"]), number, on=1, member=member),
        erased(number, on=99, member=member),
        replace(
            released(number, on=3, observed=random.choice([None, number])), member=MemberId(member)
        ),
    ]
    value = bytearray(write_event(random.choice(events), CATALOG))
    for _ in range(random.choice([0, 0, 1, 2])):
        position = random.randrange(len(value))
        match random.randrange(4):
            case 0:
                value[position] ^= 1 << random.randrange(8)
            case 1:
                del value[position:]
                value += b"\x00"
            case 2:
                value[position:position] = bytes(value[position : position + random.randrange(4)])
            case _:
                value[position] = random.choice([0, 1, 2, 3, 0x80, 0xFF])
    return bytes(value)
