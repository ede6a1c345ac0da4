"""When a bundle is written, what it builds on, who stands by, and what is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.strategies import chose, new_catalog

from consentry.bundler.claims import SequenceClaims
from consentry.bundler.record_repair import RecordRepairer, RepairedRecord
from consentry.bundler.service import Bundler, BundlerPlan, went_back
from consentry.bundles import (
    BundleState,
    BundleStore,
    Manifest,
    PublicKeys,
    SigningKey,
    open_bundle,
    restore,
)
from consentry.bundles.manifest import POINTER_NAME
from consentry.domain.errors import Unavailable
from consentry.domain.records import Record, fold
from consentry.domain.values import Choice, Micros
from consentry.ops.metrics import Metrics
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record
from consentry.wire.schemas import RECORDS

START = 1_750_000_000_000_000
PARTITIONS = 2
CATALOG = new_catalog()
FRAME = CATALOG.frame_of("ConsentRecord")
KEY = SigningKey.generate()
KEYS = PublicKeys([KEY.public])
LOGS = {"records": "aa" * 8, "controls": "bb" * 8}


def record(member: str, count: int) -> bytes:
    """The member's record after so many choices."""
    found: Record | None = None
    for number in range(count):
        found = fold(found, chose(Choice.OPT_OUT, number + 1, on=number, member=member))
    assert found is not None
    return write_record(found, FRAME)


class Topics:
    """What Kafka holds, and the time."""

    def __init__(self) -> None:
        self.now = START
        self.records: list[tuple[bytes, bytes]] = []
        self.is_fresh = True

    def choose(self, member: str, count: int = 1) -> None:
        self.records.append((member.encode(), record(member, count)))


class FollowerOfTopics:
    """Stands where the follower does: takes in all there is, and a frontier where the processor
    runs.
    """

    def __init__(self, topics: Topics, state: BundleState | None = None) -> None:
        self.state = state or BundleState(PARTITIONS, CATALOG, logs=LOGS)
        self.is_caught_up = True
        self._topics = topics
        self._read = 0

    def step(self, timeout_seconds: float = 0.1) -> int:
        new = self._topics.records[self._read :]
        self._read = len(self._topics.records)
        for key, value in new:
            home = partition_of(key, PARTITIONS)
            self.state.apply_records(home, [key], [value])
            self.state.move(RECORDS, home, self.state.records_offset(home) + 1)
        if self._topics.is_fresh:
            for partition in range(PARTITIONS):
                offset = self.state.records_offset(partition)
                self.state.freshness.apply(
                    Frontier(partition, "g", Micros(self._topics.now), 0, offset, 0, False, "cc")
                )
        self.state.settle_frontiers()
        return len(new)


class Nowhere:
    def append(self, records: Sequence[RepairedRecord]) -> None:
        raise AssertionError("nothing went back")


class Service:
    """A bundler over topics and a store; a turn takes as long as its bundles are apart."""

    def __init__(
        self,
        topics: Topics,
        store: BundleStore,
        *,
        writer: str = "a",
        newest: Manifest | None = None,
        state: BundleState | None = None,
        keep_seconds: float = 0.0,
        key: SigningKey = KEY,
        believed: PublicKeys = KEYS,
    ) -> None:
        self.topics = topics
        self.store = store
        self.metrics = Metrics("test")
        self.follower = FollowerOfTopics(topics, state)

        def clock() -> Micros:
            return Micros(topics.now)

        self.bundler = Bundler(
            self.follower,
            store,
            SequenceClaims(store.url, writer=writer, clock=clock),
            key=key,
            believed=believed,
            namespace="consentry",
            plan=BundlerPlan(
                every_seconds=10, snapshot_every=3, keep_seconds=keep_seconds, staleness_seconds=5
            ),
            clock=clock,
            metrics=self.metrics,
            repairer=RecordRepairer(
                Nowhere(), newest=lambda _: None, ready=lambda: False, metrics=self.metrics
            ),
            newest=newest,
            seconds=lambda: topics.now / 1e6,
        )

    def turn(self, *, seconds: float = 10.0) -> str | None:
        """Let time pass, and see what becomes of it."""
        self.topics.now += int(seconds * 1e6)
        self.bundler.step()
        return self.bundler.last_outcome

    def turns(self, count: int) -> list[str | None]:
        return [self.turn() for _ in range(count)]


@pytest.fixture
def topics() -> Topics:
    return Topics()


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles")


def read(store: BundleStore, topics: Topics) -> tuple[Manifest, dict[bytes, bytes]]:
    """The newest bundle, checked, and the records that it holds."""
    bundle = open_bundle(store, keys=KEYS, namespace="consentry", now=Micros(topics.now))
    return bundle.manifest, dict(restore(bundle, CATALOG).items())


def test_a_snapshot_comes_first_then_deltas_and_every_third_is_a_snapshot_again(
    topics: Topics, store: BundleStore
) -> None:
    """A chain without end takes ever longer to read, and one damaged link of it would cost
    everything since.
    """
    service = Service(topics, store)
    outcomes = []
    for number in range(7):
        topics.choose(f"m{number}")
        outcomes.append(service.turn())
        assert read(store, topics)[1] == dict(topics.records)

    assert outcomes == ["snapshot", "delta", "delta", "snapshot", "delta", "delta", "snapshot"]
    assert read(store, topics)[0].sequence == 7
    assert service.bundler.age_seconds() == 0


def test_nothing_is_written_before_its_time(topics: Topics, store: BundleStore) -> None:
    """A store would fill with bundles that say the same."""
    service = Service(topics, store)
    service.turn()

    service.turn(seconds=9.9)

    assert read(store, topics)[0].sequence == 1


@pytest.mark.parametrize("why", ["stale", "behind", "clock"])
def test_what_is_not_proven_fresh_is_never_published(
    topics: Topics, store: BundleStore, why: str
) -> None:
    """Opt-outs that are on their way would be missing from what calls itself the newest."""
    service = Service(topics, store)
    service.turn()
    if why == "behind":
        service.follower.is_caught_up = False
    topics.is_fresh = False
    if why == "clock":
        topics.now -= 20_000_000

    outcomes = [service.turn(seconds=0 if why == "clock" else 10) for _ in range(2)]

    assert read(store, topics)[0].sequence == 1
    if why == "stale":
        assert outcomes == ["stale", "stale"]
        assert "20.0 s old" in service.bundler.stale_detail()
        assert service.bundler.status()["ok"] is False
        assert service.bundler.age_seconds() == 20
        topics.is_fresh = True
        assert service.turn(seconds=1) == "delta"


def test_a_bundler_that_is_started_again_goes_on_with_the_chain(
    topics: Topics, store: BundleStore
) -> None:
    """A snapshot at each restart would cost minutes where there are ten million members."""
    topics.choose("m1")
    Service(topics, store).turn()
    bundle = open_bundle(store, keys=KEYS, namespace="consentry", now=Micros(topics.now))
    topics.choose("m2")
    again = Service(topics, store, newest=bundle.manifest, state=restore(bundle, CATALOG))

    assert again.turn() == "delta"

    manifest, records = read(store, topics)
    assert (manifest.sequence, manifest.deltas) == (2, 1)
    assert records == dict(topics.records)


def test_after_a_number_that_was_claimed_in_vain_comes_a_snapshot(
    topics: Topics, store: BundleStore
) -> None:
    """A delta over a gap in the numbers is refused by every reader."""
    service = Service(topics, store)
    service.turn()
    SequenceClaims(store.url, writer="a", clock=lambda: Micros(topics.now)).take(
        2
    )  # and then it was killed

    assert service.turn() == "snapshot"
    assert read(store, topics)[0].sequence == 3


class TestTwoBundlers:
    def test_the_second_stands_by_until_the_first_falls_silent(
        self, topics: Topics, store: BundleStore
    ) -> None:
        """Two who write in turns would write nothing but snapshots, and fork the chain in the
        end.
        """
        first, second = Service(topics, store), Service(topics, store, writer="b")
        assert [first.turn(), second.turn(seconds=5), first.turn(seconds=5)] == [
            "snapshot",
            "standby",
            "delta",
        ]
        assert second.bundler.newest is not None
        assert second.bundler.newest.sequence == 1
        assert second.bundler.status()["ok"], "who stands by is ready to take over"

        assert [second.turn(), second.turn(), second.turn(seconds=10)] == [
            "standby",
            "standby",
            "standby",
        ]
        assert second.turn(seconds=1) == "snapshot"
        assert first.turn() == "standby"
        assert read(store, topics)[0].sequence == 3

    def test_what_another_published_meanwhile_is_never_replaced(
        self, topics: Topics, store: BundleStore
    ) -> None:
        """The slower one began earlier, and knows of fewer opt-outs."""
        slow, fast = Service(topics, store), Service(topics, store, writer="b")
        writing = slow.store.write
        written: list[bool] = []

        def write(*names: str, content: bytes) -> None:
            writing(*names, content=content)
            if names[-1] == "manifest.sig" and not written:
                written.append(True)
                topics.choose("late")
                topics.now += 400_000_000  # it froze, for longer than a claim holds
                assert fast.turn() == "snapshot"

        slow_store: Any = slow.store
        slow_store.write = write
        assert slow.turn() == "conflict"

        assert read(store, topics)[1] == dict(topics.records)
        assert slow.turn(seconds=1) == "standby"

    def test_a_pointer_that_was_put_back_is_noticed_and_overtaken(
        self, topics: Topics, store: BundleStore
    ) -> None:
        """Between the last look and the write somebody can freeze for an hour; trainers would get
        the older bundle.
        """
        first = Service(topics, store)
        first.turn()
        old = store.read(POINTER_NAME, bytes_max=10_000)
        first.turn()
        first.turn()
        store.write(POINTER_NAME, content=old)

        assert first.turn() == "snapshot"
        assert read(store, topics)[0].sequence == 4


def test_a_pointer_that_is_not_believed_is_neither_followed_nor_written_over(
    topics: Topics, store: BundleStore
) -> None:
    """To write over it would hide that somebody else writes to the store."""
    service, forger = Service(topics, store), SigningKey.generate()
    service.turn()
    Service(topics, store, writer="evil", key=forger, believed=PublicKeys([forger.public])).turn(
        seconds=100
    )
    forged = store.read(POINTER_NAME, bytes_max=10_000)
    store.write(POINTER_NAME, content=forged.replace(b'"sequence":1', b'"sequence":9'))
    before = store.read(POINTER_NAME, bytes_max=10_000)

    assert service.turn() == "failed"

    assert store.read(POINTER_NAME, bytes_max=10_000) == before
    assert service.bundler.age_seconds() > 0


def test_a_store_that_fails_costs_one_bundle_and_not_the_chain(
    topics: Topics, store: BundleStore
) -> None:
    """A full disk for a minute must not end in a bundle without the choices of that minute."""
    service = Service(topics, store)
    service.turn()
    topics.choose("m1")
    failing: Any = service.store
    writing = failing.write

    def write(*names: str, content: bytes) -> None:
        raise Unavailable("no space", code="bundle.store_unavailable")

    failing.write = write
    assert service.turn() == "failed"
    failing.write = writing

    assert service.turn(seconds=1) == "snapshot"
    assert read(store, topics)[1] == dict(topics.records)


class TestPruning:
    def test_what_the_newest_chain_needs_stays_and_the_rest_goes(
        self, topics: Topics, store: BundleStore
    ) -> None:
        """A store without pruning is full one day; with too much of it no trainer starts."""
        service = Service(topics, store)
        for number in range(20):
            topics.choose(f"m{number}")
            service.turn()
            assert read(store, topics)[1] == dict(topics.records)
            assert len(store.bundle_ids()) <= 6

    @pytest.mark.parametrize("keep", [35.0, 95.0])
    def test_what_was_the_newest_a_while_ago_stays_for_slow_readers(
        self, topics: Topics, store: BundleStore, keep: float
    ) -> None:
        """A trainer that reads for minutes would find the second half of its bundle deleted."""
        service = Service(topics, store, keep_seconds=keep)
        published: dict[float, str] = {}
        for number in range(25):
            topics.choose(f"m{number}")
            service.turn()
            published[topics.now] = read(store, topics)[0].bundle_id
            for since, bundle_id in published.items():
                if topics.now - since <= keep * 1e6:
                    bundle = open_bundle(
                        store,
                        keys=KEYS,
                        namespace=None,
                        now=Micros(topics.now),
                        bundle_id=bundle_id,
                    )
                    bundle.check_files()
        assert len(store.bundle_ids()) <= keep / 10 + 7

    def test_what_a_killed_bundler_left_half_is_deleted_in_time(
        self, topics: Topics, store: BundleStore
    ) -> None:
        """Each kill would leave gigabytes for ever."""
        service = Service(topics, store)
        service.turn()
        torn = f"{2:010d}-snapshot-{'0' * 16}"
        store.write(torn, "records-00000.parquet", content=b"half")
        SequenceClaims(store.url, writer="a", clock=lambda: Micros(topics.now)).take(2)

        service.turns(8)

        assert torn not in store.bundle_ids()
        read(store, topics)


class TestLookingBack:
    def log(self, *messages: tuple[str, int]) -> list[StoredMessage]:
        return [
            StoredMessage(0, offset, member.encode(), record(member, count), Micros(0))
            for offset, (member, count) in enumerate(messages)
        ]

    def test_only_who_ends_behind_what_is_held_went_back(self) -> None:
        """One that is missed comes back into training with the compaction; one too many is only one
        message.
        """
        held = {
            b"a": record("a", 3),
            b"b": record("b", 2),
            b"c": record("c", 1),
            b"d": record("d", 2),
        }
        log = self.log(
            ("a", 1), ("a", 3), ("a", 2), ("b", 2), ("b", 1), ("b", 2), ("c", 1), ("d", 1), ("d", 2)
        )

        found = list(went_back(log, held.get))

        assert [(one.member, one.newest, one.arrived) for one in found] == [
            (b"a", held[b"a"], record("a", 2))
        ]

    def test_a_record_that_only_the_bundle_remembers_is_found(self) -> None:
        """After compaction the log has nothing but the older one: the bundle is the last to know of
        the opt-out.
        """
        assert [
            one.member for one in went_back(self.log(("a", 1)), {b"a": record("a", 2)}.get)
        ] == [b"a"]

    def test_what_is_newer_than_what_is_held_is_no_matter(self) -> None:
        """It was appended while this was read; the follower is on its way there."""
        assert (
            list(went_back(self.log(("a", 1), ("a", 2), ("x", 1)), {b"a": record("a", 1)}.get))
            == []
        )
