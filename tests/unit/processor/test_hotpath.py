"""The hot path's loop with a scripted consumer: what it may report as done, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, TopicPartition
from tests.strategies import chose, day, moved, new_catalog

from consentry.domain.errors import Fenced, TableWentBack, Unavailable
from consentry.domain.events import FactKind, SentEvent
from consentry.domain.values import Choice, Micros
from consentry.ops.metrics import Metrics
from consentry.processor.batches import BatchGroup
from consentry.processor.frontiers import ReachedWatermark, Watermark, Watermarks
from consentry.processor.hotpath import HotPath
from consentry.processor.materialiser import Materialiser
from consentry.processor.ports import InMemoryPublisher, NoObligations
from consentry.table.memory import InMemoryTable
from consentry.table.protocol import Write
from consentry.wire.events import write_event
from consentry.wire.messages import StoredMessage
from consentry.wire.records import read_record

CATALOG = new_catalog()
APPENDED_MS = day(100) // 1000
Step = Callable[[], None]


class Message:
    """One message, or the end of the partition."""

    def __init__(
        self,
        offset: int,
        key: bytes | None = None,
        value: bytes | None = None,
        *,
        headers: list[tuple[str, bytes | None]] | None = None,
        is_end: bool = False,
    ) -> None:
        self._offset, self._key, self._value, self._headers = offset, key, value, headers
        self._error = KafkaError(KafkaError._PARTITION_EOF) if is_end else None

    def error(self) -> KafkaError | None:
        return self._error

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 2, APPENDED_MS


class ScriptedConsumer:
    """Returns the log from the offset of the last seek.

    Before each poll it does the next step of the script.
    """

    def __init__(self, script: Sequence[Step]) -> None:
        self.log: list[tuple[bytes | None, bytes | None]] = []
        self.commits: list[int] = []
        self.headers: list[tuple[str, bytes | None]] | None = None
        """Those of every message."""
        self._script = list(script)
        self._position: int | None = None
        self._ready: list[Message] = []

    def subscribe(
        self, _topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any
    ) -> None:
        on_assign(self, [TopicPartition("t", 0)])

    def poll(self, _timeout: float) -> Message | None:
        if self._script:
            self._script.pop(0)()
        if self._position is None:
            return None
        end = len(self.log)
        self._ready = [
            Message(position, *self.log[position], headers=self.headers)
            for position in range(self._position, end)
        ]
        if self._ready:
            self._ready.append(Message(end, is_end=True))
        self._position = end
        return self._ready.pop(0) if self._ready else None

    def consume(self, _count: int, _timeout: float) -> list[Message]:
        ready, self._ready = self._ready, []
        return ready

    def seek(self, position: TopicPartition) -> None:
        self._position = position.offset

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self.commits += [position.offset for position in offsets]

    def get_watermark_offsets(self, _place: TopicPartition, *, timeout: float) -> tuple[int, int]:
        return 0, len(self.log)

    def committed(self, positions: list[TopicPartition], *, timeout: float) -> list[TopicPartition]:
        return [TopicPartition("t", 0, self.commits[-1] if self.commits else -1001)]

    def incremental_assign(self, _places: list[TopicPartition]) -> None: ...
    def pause(self, _places: list[TopicPartition]) -> None: ...
    def resume(self, _places: list[TopicPartition]) -> None: ...
    def close(self) -> None: ...


class ForgetfulTable(InMemoryTable):
    """Stores, and once loses the answer on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.answers_to_lose = 0

    def store(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        done = super().store(writes)
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise Unavailable("The table did not answer.", code="table.unavailable")
        return done


class Bench:
    """A hot path over one partition, everything around it in memory; it stops where the script
    ends.
    """

    def __init__(self, *script: Step) -> None:
        self.table = ForgetfulTable()
        self.publisher = InMemoryPublisher()
        self.watermarks = Watermarks()
        self.metrics = Metrics("test")
        self.consumer = ScriptedConsumer([*script, lambda: self.hot_path.stop()])
        consumer: Any = self.consumer
        self.hot_path = HotPath(
            consumer=consumer,
            topic="t",
            table=self.table,
            materialiser=Materialiser(
                table=self.table,
                publisher=self.publisher,
                obligations=NoObligations(),
                catalog=CATALOG,
                partitions=1,
            ),
            watermarks=self.watermarks,
            last_frontiers=dict,
            records=lambda _: [
                StoredMessage(0, offset, record.member, record.record, Micros(0))
                for offset, (_, record) in enumerate(self.publisher.records)
            ],
            clock=lambda: day(100),
            metrics=self.metrics,
            failpoint=lambda _: None,
        )

    def send(self, *events: SentEvent) -> None:
        """Append events to the log."""
        self.consumer.log += [
            (event.member.encode(), write_event(event, CATALOG)) for event in events
        ]

    def reached(self) -> ReachedWatermark | None:
        """What the frontier thread would publish now."""
        return self.watermarks.take(0).get(0)

    def refusals(self) -> list[str]:
        """Lines of the metric that counts batches the table refused."""
        return [
            line
            for line in self.metrics.text().decode().splitlines()
            if line.startswith("consentry_table_refusals")
        ]


def test_no_frontier_is_reached_before_the_records_are_acknowledged() -> None:
    """A trainer would take itself for fresh while an opt-out is still on its way."""
    seen: list[tuple[int, ReachedWatermark | None]] = []

    def send() -> None:
        bench.send(moved("HK", 1, on=1), chose(Choice.OPT_OUT, 2, on=2))
        bench.watermarks.set({0: Watermark(day(99), 2)})

    def look() -> None:
        seen.append((len(bench.publisher.records), bench.reached()))

    bench = Bench(lambda: None, send, look, look, look)

    bench.hot_path.run()

    assert seen[0] == (0, None)
    acknowledged, reached = next(pair for pair in seen if pair[1] is not None)
    assert acknowledged == 1
    assert reached is not None
    assert reached.next_offset == 2
    assert bench.consumer.commits[-1] == 2


def test_a_store_whose_answer_was_lost_is_not_taken_for_a_table_that_went_back() -> None:
    """The table holds the batch: refusing it would close the partition, and folding it again could
    drop a fact.
    """

    def send() -> None:
        bench.send(moved("HK", 1, on=1), chose(Choice.OPT_OUT, 2, on=2))
        bench.table.answers_to_lose = 1

    bench = Bench(lambda: None, send, lambda: None, lambda: None)

    bench.hot_path.run()

    assert bench.refusals() == []
    assert [record.member for _, record in bench.publisher.records] == [b"member-1"]
    assert bench.consumer.commits[-1] == 2
    assert 'consentry_events_total{outcome="replayed"} 2.0' in bench.metrics.text().decode()


def test_a_taint_outlives_a_table_that_is_wiped() -> None:
    """Some event has no readable key: until somebody has looked, the partition must not allow
    anything.
    """
    seen: list[ReachedWatermark | None] = []

    def taint() -> None:
        bench.consumer.log.append((None, b"\xff"))

    def wipe() -> None:
        bench.table.wipe()
        bench.send(moved("HK", 1, on=1))

    def ask() -> None:
        bench.watermarks.set({0: Watermark(day(99), 2)})

    def look() -> None:
        seen.append(bench.reached())

    bench = Bench(lambda: None, taint, lambda: None, wipe, ask, ask, ask, look)

    bench.hot_path.run()

    assert bench.refusals()  # the wipe was noticed, and the partition opened again
    [reached] = seen
    assert reached is not None
    assert reached.tainted


def test_a_member_quarantined_for_a_damaged_record_is_published_when_the_partition_is_reopened() -> (
    None
):
    """The table alone would know of the quarantine, and every trainer go on with what stood before
    the damage.
    """

    def damage() -> None:
        partition, record = bench.publisher.records[-1]
        damaged = record.record[:-1] + bytes((record.record[-1] ^ 1,))
        bench.publisher.records[-1] = (partition, record._replace(record=damaged))
        bench.table.wipe()
        bench.send(moved("HK", 2, on=2, member="member-2"))

    def arrive() -> None:
        bench.send(moved("US", 1, on=1))

    bench = Bench(
        lambda: None, arrive, lambda: None, damage, lambda: None, lambda: None, lambda: None
    )

    bench.hot_path.run()

    records = [
        record.record for _, record in bench.publisher.records if record.member == b"member-1"
    ]
    assert read_record(records[-1], b"member-1").facts[-1].kind is FactKind.QUARANTINED
    assert dict(bench.table.scan(0))[b"member-1"] == records[-1]


def test_nothing_is_on_its_way_when_a_partition_is_opened() -> None:
    """Opening may publish: an acknowledgement that failed would be taken for its own, and the round
    for arrived.
    """
    bench = Bench()
    bench.hot_path._partitions.assigned(bench.hot_path._consumer, [TopicPartition("t", 0)])
    bench.hot_path._unsettled = BatchGroup([], {})

    bench.hot_path._open_due()

    assert bench.hot_path._unsettled is None
    assert bench.hot_path.owned == 1


def test_a_message_with_too_many_headers_is_refused_and_counted() -> None:
    """What the loop does not hand on, nobody behind it can refuse."""

    def arrive() -> None:
        bench.send(chose(Choice.OPT_OUT, 1, on=1))
        bench.consumer.headers = [("header", b"x")] * 33

    bench = Bench(lambda: None, arrive, lambda: None)

    bench.hot_path.run()

    assert 'consentry_quarantined_total{error_class="headers"} 1.0' in bench.metrics.text().decode()
    assert [len(refusal.headers or ()) for refusal in bench.publisher.refusals] == [33]
