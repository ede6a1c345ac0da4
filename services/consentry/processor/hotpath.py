"""The loop that every member event goes through: poll, apply per partition, commit.

One thread, no Faust stream.

A Faust stream costs 60 to 80 µs a message whatever it does (docs/decisions/0001), so this is a
consumer of our own.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consentry.domain.errors import Fenced, TableWentBack, Unavailable
from consentry.kafka.clients import client_config, unavailable
from consentry.kafka.headers import headers_of_all
from consentry.ops.clock import Clock
from consentry.ops.failpoints import Failpoint
from consentry.ops.metrics import Metrics
from consentry.processor.batches import BatchGroup, BatchResult, EventBatch, OwnedPartition
from consentry.processor.frontiers import ReachedWatermark, Watermarks
from consentry.processor.materialiser import Materialiser
from consentry.processor.partitions import Partitions
from consentry.table.protocol import ConsentTable
from consentry.wire.frontiers import Frontier
from consentry.wire.headers import Headers
from consentry.wire.messages import StoredMessage

BATCH_EVENTS_MAX: Final = 5000
_POLL_SECONDS: Final = 0.05
_COMMIT_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_SAMPLES: Final = 32
_LOG = structlog.get_logger(__name__)

Done = TypeVar("Done")


def processor_consumer_config(
    kafka: Mapping[str, str], *, group: str, worker_id: str
) -> dict[str, Any]:
    """The hot path's consumer: it commits by itself, never resets, and fetches again at once."""
    config = client_config(kafka, "consentry-processor") | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 10_000,
        # A few messages a fetch instead of one: a third of the broker's work at a thousand events a
        # second.
        "fetch.wait.max.ms": 5,
        "fetch.min.bytes": 4096,
        "fetch.queue.backoff.ms": 5,
        "queued.max.messages.kbytes": 32_768,
        "allow.auto.create.topics": False,
        "check.crcs": True,
        "enable.partition.eof": True,
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
        marks: Watermarks,
        last_frontiers: Callable[[], Mapping[int, Frontier]],
        records: Callable[[int], Iterable[StoredMessage]],
        clock: Clock,
        metrics: Metrics,
        failpoint: Failpoint,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._table = table
        self._materialiser = materialiser
        self._marks = marks
        self._clock = clock
        self._metrics = metrics
        self._failpoint = failpoint
        self.progress_at = monotonic()
        """When the loop last went round, on the monotonic clock: what liveness looks at."""
        self._partitions = Partitions(
            consumer=consumer,
            topic=topic,
            table=table,
            publish=materialiser.publish_now,
            marks=marks,
            last_frontiers=last_frontiers,
            records=records,
            clock=clock,
            metrics=metrics,
            note_progress=self._note_progress,
        )
        self._owned = self._partitions.owned
        self._unsettled: BatchGroup | None = None
        """The round that is stored and queued for publishing, but not acknowledged yet."""
        self._uncommitted: set[int] = set()
        self._committed_at = monotonic()
        self._stopping = threading.Event()

    @property
    def owned(self) -> int:
        """How many partitions are owned and open."""
        return len(self._owned)

    @property
    def is_settled(self) -> bool:
        """Whether every assigned partition is open, and at least one is assigned."""
        return bool(self._owned) and self._partitions.are_all_open

    def _note_progress(self) -> None:
        self.progress_at = monotonic()

    def stop(self) -> None:
        """Finish the batch in hand, commit, and leave the group."""
        self._stopping.set()

    def run(self) -> None:
        """Run until `stop`.

        Raises what cannot be retried: the worker is then to end and start anew.
        """
        partitions = self._partitions
        self._consumer.subscribe(
            [self._topic],
            on_assign=partitions.assigned,
            on_revoke=self._revoked,
            on_lost=partitions.lost,
        )
        try:
            while not self._stopping.is_set():
                self.progress_at = monotonic()
                self._open_due()
                messages = self._poll()
                if messages:
                    self._take(self._batches(messages))
                else:
                    self._settle()
                if self._stopping.is_set():
                    # what was read may not have been stored: no mark may count as reached now
                    break
                self._commit_due(is_idle=not messages)
                self._look_at_marks()
            self._settle()
            self._commit_all()
        finally:
            self._marks.own(frozenset())
            self._consumer.close()

    def _open_due(self) -> None:
        if self._partitions.has_due:
            # opening may publish by itself, and an acknowledgement that fails has to be the right
            # one's
            self._settle()
            self._partitions.open_due()

    def _poll(self) -> list[Message]:
        # While acknowledgements are awaited there is something better to do than to wait for
        # messages.
        first = self._consumer.poll(0 if self._unsettled else _POLL_SECONDS)
        if first is None:
            return []
        self._failpoint("after_poll")
        return [first, *self._consumer.consume(BATCH_EVENTS_MAX - 1, 0)]

    def _batches(self, messages: Sequence[Message]) -> dict[int, EventBatch]:
        """The messages by partition, column by column. A broker's error is raised, never
        skipped.
        """
        columns: dict[
            int,
            tuple[
                list[int], list[bytes | None], list[bytes | None], list[int], list[Headers | None]
            ],
        ] = {}
        for message, found in zip(messages, headers_of_all(messages), strict=True):
            error = message.error()
            partition = message.partition()
            if error is not None:
                self._check(error, partition, message.offset())
                continue
            if partition not in self._owned:
                # taken away, or waiting to be opened again: it will be read from its position then
                continue
            offsets, keys, values, times, headers = columns.setdefault(
                partition, ([], [], [], [], [])
            )
            offsets.append(message.offset() or 0)
            keys.append(message.key())
            values.append(message.value())
            times.append(message.timestamp()[1])
            headers.append(found)
        return {partition: EventBatch(partition, *five) for partition, five in columns.items()}

    def _check(self, error: KafkaError, partition: int | None, offset: int | None) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            owned = self._owned.get(-1 if partition is None else partition)
            if owned is not None:
                owned.read_offset = offset or 0
            return
        # A fatal error (such as a worker id that is used twice) is told once, by this code and
        # without its flag.
        hopeless = (
            KafkaError._FATAL,
            KafkaError._AUTO_OFFSET_RESET,
            KafkaError.OFFSET_OUT_OF_RANGE,
        )
        if error.fatal() or error.code() in hopeless:
            raise unavailable("deliver member events", KafkaException(error))
        if error.code() == KafkaError._BAD_COMPRESSION:
            # A poisoned batch below the decoder: nothing after it can be read, and skipping would
            # lose an opt-out.
            raise unavailable(
                "deliver a readable batch; see deploy/runbooks", KafkaException(error)
            )
        _LOG.warning("kafka_error", detail=error.str())

    def _take(self, batches: Mapping[int, EventBatch]) -> None:
        """Store what was polled while the last round is being acknowledged, then publish it."""
        pairs = [
            (self._owned[partition], batch)
            for partition, batch in batches.items()
            if partition in self._owned
        ]
        if not pairs:
            return
        stored = self._insist(lambda: self._materialiser.store(pairs), lambda: self._recover(pairs))
        if stored is None:
            return
        self._measure_table(pairs, stored)
        self._settle()
        for work in stored.works:
            if work.outcome.refused is not None:
                self._partitions.close(work.owned.partition, work.outcome.refused)
        self._materialiser.publish(stored)
        self._unsettled = stored

    def _recover(self, pairs: Sequence[tuple[OwnedPartition, EventBatch]]) -> None:
        """Before a round is stored again: the last one must not wait for that, and the table may
        hold this one.
        """
        self._settle()
        self._materialiser.catch_up(pairs)

    def _settle(self) -> None:
        """Wait for the acknowledgements of the last round; its offsets may be committed then."""
        round_, self._unsettled = self._unsettled, None
        if round_ is None:
            return
        settled = self._insist(
            lambda: self._materialiser.settle(round_), lambda: self._materialiser.publish(round_)
        )
        if settled is None:
            return
        for step, seconds in round_.seconds.items():
            self._metrics.histogram("consentry_batch_seconds", step).observe(seconds)
        for work in round_.works:
            if work.outcome.refused is None:
                self._uncommitted.add(work.owned.partition)
                self._measure(work.outcome)

    def _insist(self, act: Callable[[], Done], again: Callable[[], None]) -> Done | None:
        """`act`, however often it takes, with `again` before each repetition;

        None if the worker is to stop first.
        """
        for attempt in itertools.count():
            try:
                if attempt:
                    again()
                return act()
            except Unavailable as error:
                _LOG.warning("batch_retried", attempt=attempt, detail=str(error))
                if self._stopping.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]):
                    return None
                self.progress_at = monotonic()
        return None

    def _commit_due(self, *, is_idle: bool) -> None:
        """Commit what was acknowledged since the last commit: at once when idle, else every
        _COMMIT_SECONDS.

        A commit is a write for the broker, and one a poll cost it a tenth of its time at a thousand
        events a second.
        """
        now = monotonic()
        if not self._uncommitted or (not is_idle and now - self._committed_at < _COMMIT_SECONDS):
            return
        self._failpoint("before_commit")
        places = [
            TopicPartition(self._topic, partition, self._owned[partition].acknowledged_offset)
            for partition in self._uncommitted & self._owned.keys()
        ]
        self._uncommitted.clear()
        self._committed_at = now
        try:
            if places:
                self._consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            # Not committed means replayed: harmless, and the next commit covers it.
            _LOG.warning("commit_failed", detail=str(error))

    def _commit_all(self) -> None:
        places = [
            TopicPartition(self._topic, owned.partition, owned.acknowledged_offset)
            for owned in self._owned.values()
        ]
        try:
            if places:
                self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            _LOG.warning("commit_failed", detail=str(error))

    def _look_at_marks(self) -> None:
        for partition, mark in self._marks.due():
            owned = self._owned.get(partition)
            if owned is None or self._reached_offset(owned) < mark.end_offset:
                continue
            try:
                self._table.beat(
                    partition,
                    epoch=owned.epoch,
                    expected_offset=owned.next_offset,
                    frontier_at=mark.frontier_at,
                )
            except Unavailable as error:
                _LOG.warning("beat_failed", partition=partition, detail=str(error))
                return
            except (Fenced, TableWentBack) as error:
                self._partitions.close(partition, error)
                continue
            self._marks.reach(
                partition,
                ReachedWatermark(mark, owned.generation, owned.acknowledged_offset, owned.tainted),
            )

    def _reached_offset(self, owned: OwnedPartition) -> int:
        """How far a partition is acknowledged; past the end marks of transactions, which are no
        messages.
        """
        if self._unsettled is not None:
            return owned.acknowledged_offset
        return max(owned.acknowledged_offset, owned.read_offset)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """The group takes partitions back in order: what is on its way arrives before the next
        owner begins.
        """
        self._settle()
        self._commit_all()
        self._partitions.lost(consumer, places)

    def _measure(self, outcome: BatchResult) -> None:
        count = self._metrics.counter
        count("consentry_events_total", "applied").inc(outcome.applied)
        count("consentry_events_total", "repeated").inc(outcome.repeated)
        count("consentry_events_total", "replayed").inc(outcome.replayed)
        count("consentry_events_total", "clamped").inc(outcome.clamped)
        for refusal in outcome.refusals:
            count("consentry_events_total", "quarantined").inc()
            count("consentry_quarantined_total", refusal.error_class).inc()
            _LOG.warning(
                "quarantined",
                partition=refusal.partition,
                offset=refusal.offset,
                error_class=refusal.error_class,
            )
        if outcome.refusals:
            self._partitions.announce()

    def _measure_table(
        self, pairs: Sequence[tuple[OwnedPartition, EventBatch]], stored: BatchGroup
    ) -> None:
        """Event → table, of up to 32 events spread over each batch."""
        stored_at = self._clock() / 1e6
        table_seconds = self._metrics.histogram("consentry_event_to_table_seconds")
        self._metrics.histogram("consentry_batch_events").observe(
            sum(len(batch.offsets) for _, batch in pairs)
        )
        for (_, batch), work in zip(pairs, stored.works, strict=True):
            if work.outcome.refused is None:
                for appended_ms in batch.appended_ms[:: max(1, len(batch.appended_ms) // _SAMPLES)]:
                    table_seconds.observe(max(0.0, stored_at - appended_ms / 1e3))
