"""The loop that every member event goes through: poll, apply per partition, commit. One thread, no Faust stream.

A Faust stream costs 60 to 80 µs a message whatever it does (docs/decisions/0001), so this is a consumer of our own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from consentry.domain.errors import ConsentryError, Fenced, TableWentBack, Unavailable
from consentry.ops.clock import Clock
from consentry.ops.failpoints import Failpoint
from consentry.ops.metrics import Metrics
from consentry.processor.frontiers import Marks, Reached
from consentry.processor.materialiser import Batch, Materialiser, Outcome, Owned
from consentry.processor.ownership import LogSpan, take_over
from consentry.table.protocol import ConsentTable
from consentry.table.refusals import reason_of
from consentry.wire.controls import Frontier
from consentry.wire.kafka import Stored, client_config, unavailable

BATCH_EVENTS_MAX: Final = 5000
_POLL_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_REOPEN_SECONDS: Final = 1.0
_SAMPLES: Final = 32
_LOG = structlog.get_logger(__name__)


def processor_consumer_config(kafka: Mapping[str, str], *, group: str, worker_id: str) -> dict[str, Any]:
    """The hot path's consumer: it commits by itself, never resets, and fetches again at once."""
    config = client_config(kafka, "consentry-processor") | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 10_000,
        "fetch.wait.max.ms": 50,
        "fetch.queue.backoff.ms": 5,
        "queued.max.messages.kbytes": 32_768,
        "allow.auto.create.topics": False,
        "check.crcs": True,
    }
    return config | ({"group.instance.id": worker_id} if worker_id else {})


class HotPath:
    """Owns partitions of member-events and materialises them, from `run` until `stop`."""

    def __init__(
        self,
        *,
        consumer: Consumer,
        topic: str,
        table: ConsentTable,
        materialiser: Materialiser,
        marks: Marks,
        last_frontiers: Callable[[], Mapping[int, Frontier]],
        records: Callable[[int], Iterable[Stored]],
        clock: Clock,
        metrics: Metrics,
        failpoint: Failpoint,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._table = table
        self._materialiser = materialiser
        self._marks = marks
        self._last_frontiers = last_frontiers
        self._records = records
        self._clock = clock
        self._metrics = metrics
        self._failpoint = failpoint
        self._owned: dict[int, Owned] = {}
        self._to_open: dict[int, float] = {}
        self._stopping = threading.Event()
        self.progress_at = monotonic()
        """When the loop last went round, on the monotonic clock: what liveness looks at."""

    @property
    def owned(self) -> int:
        """How many partitions are owned and open."""
        return len(self._owned)

    @property
    def is_settled(self) -> bool:
        """Whether every assigned partition is open, and at least one is assigned."""
        return bool(self._owned) and not self._to_open

    def stop(self) -> None:
        """Finish the batch in hand, commit, and leave the group."""
        self._stopping.set()

    def run(self) -> None:
        """Run until `stop`. Raises what cannot be retried: the worker is then to end and start anew."""
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )
        try:
            while not self._stopping.is_set():
                self.progress_at = monotonic()
                self._open_due()
                messages = self._poll()
                if messages:
                    self._take(self._batches(messages))
                self._look_at_marks()
            self._commit_all()
        finally:
            self._marks.own(frozenset())
            self._consumer.close()

    def _poll(self) -> list[Message]:
        first = self._consumer.poll(_POLL_SECONDS)
        if first is None:
            return []
        self._failpoint("after_poll")
        return [first, *self._consumer.consume(BATCH_EVENTS_MAX - 1, 0)]

    def _batches(self, messages: Sequence[Message]) -> dict[int, Batch]:
        """The messages by partition, column by column. A broker's error is raised, never skipped."""
        columns: dict[int, tuple[list[int], list[bytes | None], list[bytes | None], list[int]]] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                self._check(error)
                continue
            partition = message.partition()
            if partition not in self._owned:
                continue  # taken away, or waiting to be opened again: it will be read from its position then
            offsets, keys, values, times = columns.setdefault(partition, ([], [], [], []))
            offsets.append(message.offset() or 0)
            keys.append(message.key())
            values.append(message.value())
            times.append(message.timestamp()[1])
        return {partition: Batch(partition, *four) for partition, four in columns.items()}

    def _check(self, error: KafkaError) -> None:
        # A fatal error (such as a worker id that is used twice) is told once, by this code and without its flag.
        hopeless = (KafkaError._FATAL, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
        if error.fatal() or error.code() in hopeless:
            raise unavailable("deliver member events", KafkaException(error))
        if error.code() == KafkaError._BAD_COMPRESSION:
            # A poisoned batch below the decoder: nothing after it can be read, and skipping would lose an opt-out.
            raise unavailable("deliver a readable batch; see deploy/runbooks", KafkaException(error))
        _LOG.warning("kafka_error", detail=error.str())

    def _take(self, batches: Mapping[int, Batch]) -> None:
        """Apply what was polled, however often it takes, and commit it."""
        pairs = [(self._owned[partition], batch) for partition, batch in batches.items() if partition in self._owned]
        if not pairs:
            return
        attempt = 0
        while True:
            try:
                outcomes = self._materialiser.apply_all(pairs)
                break
            except Unavailable as error:
                _LOG.warning("batch_retried", attempt=attempt, detail=str(error))
                if self._stopping.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]):
                    return
                attempt += 1
                self.progress_at = monotonic()
        done = []
        for (owned, batch), outcome in zip(pairs, outcomes, strict=True):
            if outcome.refused is not None:
                self._close(owned.partition, outcome.refused)
            else:
                done.append(owned)
                self._measure(batch, outcome)
        self._commit(done)

    def _commit(self, done: Sequence[Owned]) -> None:
        self._failpoint("before_commit")
        places = [TopicPartition(self._topic, owned.partition, owned.acknowledged_offset) for owned in done]
        try:
            if places:
                self._consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            # Not committed means replayed: harmless, and the next commit covers it.
            _LOG.warning("commit_failed", detail=str(error))

    def _commit_all(self) -> None:
        places = [
            TopicPartition(self._topic, owned.partition, owned.acknowledged_offset) for owned in self._owned.values()
        ]
        try:
            if places:
                self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            _LOG.warning("commit_failed", detail=str(error))

    def _look_at_marks(self) -> None:
        for partition, mark in self._marks.due():
            owned = self._owned.get(partition)
            if owned is None or owned.acknowledged_offset < mark.end_offset:
                continue
            try:
                self._table.beat(
                    partition, epoch=owned.epoch, expected_offset=owned.next_offset, frontier_at=mark.frontier_at
                )
            except Unavailable as error:
                _LOG.warning("beat_failed", partition=partition, detail=str(error))
                return
            except (Fenced, TableWentBack) as error:
                self._close(partition, error)
                continue
            self._marks.reach(partition, Reached(mark, owned.generation, owned.acknowledged_offset, owned.tainted))

    def _close(self, partition: int, error: ConsentryError) -> None:
        """Let go of a partition whose table is another's or went back; while assigned, it is opened again soon."""
        _LOG.warning("partition_closed", partition=partition, code=error.code, detail=str(error))
        self._metrics.counter("consentry_table_refusals_total", reason_of(error)).inc()
        if error.code == "table.damaged":
            self._discard_table(partition)
        self._owned.pop(partition, None)
        self._consumer.pause([TopicPartition(self._topic, partition)])
        self._to_open[partition] = monotonic() + (_REOPEN_SECONDS if isinstance(error, Fenced) else 0.0)
        self._announce()

    def _discard_table(self, partition: int) -> None:
        """Make the next opening a rebuild: the table's own position cannot be trusted any more."""
        try:
            self._table.empty(partition, epoch=self._owned[partition].epoch)
        except ConsentryError as error:
            _LOG.warning("discard_failed", partition=partition, detail=str(error))

    def _open_due(self) -> None:
        due = [partition for partition, when in self._to_open.items() if when <= monotonic()]
        if not due:
            return
        try:
            frontiers = self._last_frontiers()
        except Unavailable as error:
            _LOG.warning("open_failed", detail=str(error))
            self._to_open.update(dict.fromkeys(due, monotonic() + _REOPEN_SECONDS))
            return
        for partition in due:
            self.progress_at = monotonic()
            try:
                start = self._open(partition, frontiers)
                self._consumer.seek(TopicPartition(self._topic, partition, start))
                self._consumer.resume([TopicPartition(self._topic, partition)])
                del self._to_open[partition]
            except (Unavailable, Fenced, TableWentBack) as error:
                _LOG.warning("open_failed", partition=partition, detail=str(error))
                self._to_open[partition] = monotonic() + _REOPEN_SECONDS
            except KafkaException as error:
                _LOG.warning("seek_failed", partition=partition, detail=str(error))
                self._owned.pop(partition, None)
                self._to_open[partition] = monotonic() + _REOPEN_SECONDS
        self._announce()

    def _open(self, partition: int, frontiers: Mapping[int, Frontier]) -> int:
        """Own the partition; the offset to read from."""
        place = TopicPartition(self._topic, partition)
        try:
            first, end = self._consumer.get_watermark_offsets(place, timeout=10)
            committed = self._consumer.committed([place], timeout=10)[0].offset
        except KafkaException as error:
            raise unavailable("tell what is committed", error) from error
        taken = take_over(
            self._table,
            partition,
            span=LogSpan(first, end, committed if committed >= 0 else None),
            last_frontier=frontiers.get(partition),
            records=lambda: self._records(partition),
            floor=self._clock() // 1000,
        )
        if taken.rebuilt:
            self._metrics.counter("consentry_table_generation_changes_total").inc()
        self._owned[partition] = taken.owned
        _LOG.info("partition_opened", partition=partition, epoch=taken.owned.epoch, offset=taken.start_offset, end=end)
        return taken.start_offset

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # Opening may take long (a rebuild) or fail for a while: each is assigned at once, but read only when open.
        consumer.incremental_assign([TopicPartition(place.topic, place.partition, OFFSET_END) for place in places])
        consumer.pause(places)
        now = monotonic()
        self._to_open.update({place.partition: now for place in places})

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        consumer.incremental_unassign(places)
        for place in places:
            self._owned.pop(place.partition, None)
            self._to_open.pop(place.partition, None)
        self._announce()

    def _announce(self) -> None:
        self._marks.own(frozenset(self._owned))
        self._metrics.gauge("consentry_partitions_tainted").set(sum(owned.tainted for owned in self._owned.values()))

    def _measure(self, batch: Batch, outcome: Outcome) -> None:
        count = self._metrics.counter
        count("consentry_events_total", "applied").inc(outcome.applied)
        count("consentry_events_total", "repeated").inc(outcome.repeated)
        count("consentry_events_total", "replayed").inc(outcome.replayed)
        self._metrics.histogram("consentry_batch_events").observe(len(batch.offsets))
        for step, seconds in outcome.seconds.items():
            self._metrics.histogram("consentry_batch_seconds", step).observe(seconds)
        for refusal in outcome.refusals:
            count("consentry_events_total", "quarantined").inc()
            count("consentry_quarantined_total", refusal.error_class).inc()
            _LOG.warning(
                "quarantined", partition=refusal.partition, offset=refusal.offset, error_class=refusal.error_class
            )
        if outcome.refusals:
            self._announce()
        # Stored before it was published: the table had it that much earlier.
        stored_at = self._clock() / 1e6 - outcome.seconds["publish"]
        table_seconds = self._metrics.histogram("consentry_event_to_table_seconds")
        for appended_ms in batch.appended_ms[:: max(1, len(batch.appended_ms) // _SAMPLES)]:
            table_seconds.observe(max(0.0, stored_at - appended_ms / 1e3))
