"""The processor's loop, through which every member event goes.

Its steps are poll, store, publish, settle, commit. It runs on one thread, with a consumer of its
own and no Faust stream: a stream costs 60 to 80 µs a message whatever it does
(docs/decisions/0001).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Final, TypeVar

import structlog
from confluent_kafka import Consumer, Message, TopicPartition

from consentry.domain.errors import Fenced, TableWentBack, Unavailable
from consentry.ops.clock import Clock
from consentry.ops.failpoints import Failpoint
from consentry.ops.metrics import Metrics
from consentry.processor.batch_metrics import BatchMetrics
from consentry.processor.batches import BatchGroup, EventBatch, OwnedPartition
from consentry.processor.frontiers import ReachedWatermark, Watermark, Watermarks
from consentry.processor.materialiser import Materialiser
from consentry.processor.partitions import Partitions
from consentry.processor.source import EventSource
from consentry.table.protocol import ConsentTable
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage

_POLL_SECONDS: Final = 0.05
_COMMIT_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_LOG = structlog.get_logger(__name__)

_Result = TypeVar("_Result")


class HotPath:
    """The processor's loop: takes member events in and writes records, from `run` until `stop`.

    It owns partitions of member-events, and materialises those. Batches are pipelined: while one
    group waits for Kafka's acknowledgements, the next one is polled, folded and stored. It is
    published only after the one before is settled.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        topic: str,
        table: ConsentTable,
        materialiser: Materialiser,
        watermarks: Watermarks,
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
        self._watermarks = watermarks
        self._metrics = BatchMetrics(metrics, clock)
        self._failpoint = failpoint
        self.progress_at = monotonic()
        """The start of the loop's last turn, on the monotonic clock; liveness is judged by it."""
        self._partitions = Partitions(
            consumer=consumer,
            topic=topic,
            table=table,
            publish=materialiser.publish_now,
            watermarks=watermarks,
            last_frontiers=last_frontiers,
            records=records,
            clock=clock,
            metrics=metrics,
            note_progress=self._note_progress,
        )
        self._owned = self._partitions.owned
        self._source = EventSource(consumer, topic, self._owned)
        self._unsettled: BatchGroup | None = None
        """The group that is stored and queued for publishing, but not acknowledged yet."""
        self._uncommitted: set[int] = set()
        self._committed_at = monotonic()
        self._stopping = threading.Event()

    @property
    def owned(self) -> int:
        """The number of partitions that the processor owns and has opened."""
        return len(self._owned)

    @property
    def is_settled(self) -> bool:
        """True if the processor has opened all partitions assigned to it, at least one."""
        return bool(self._owned) and self._partitions.are_all_open

    def _note_progress(self) -> None:
        self.progress_at = monotonic()

    def stop(self) -> None:
        """Finish the processor's batch in hand, commit it, and leave the consumer group."""
        self._stopping.set()

    def run(self) -> None:
        """Run the processor's loop until `stop`.

        Raises what cannot be retried: the worker is then to end and start anew.
        """
        self._consumer.subscribe(
            [self._topic],
            on_assign=self._partitions.assigned,
            on_revoke=self._revoked,
            on_lost=self._partitions.lost,
        )
        try:
            while not self._stopping.is_set():
                self._run_once()
            self._settle()
            self._commit_all()
        finally:
            self._watermarks.own(frozenset())
            self._consumer.close()

    def _run_once(self) -> None:
        self._note_progress()
        self._open_due()
        messages = self._poll()
        if messages:
            self._take(self._source.batches(messages))
        else:
            self._settle()
        if self._stopping.is_set():
            # What was read may not have been stored: no watermark may count as reached now.
            return
        self._commit_due(is_idle=not messages)
        self._report_watermarks()

    def _open_due(self) -> None:
        if self._partitions.has_due:
            # Opening may publish by itself. If an acknowledgement fails then, it has to be its own.
            self._settle()
            self._partitions.open_due()

    def _poll(self) -> list[Message]:
        # While acknowledgements are awaited, there is no time to wait for messages.
        timeout_seconds = 0 if self._unsettled else _POLL_SECONDS
        messages = self._source.poll(timeout_seconds)
        if messages:
            self._failpoint("after_poll")
        return messages

    def _take(self, batches: Mapping[int, EventBatch]) -> None:
        """Store what was polled while the last group is being acknowledged, then publish it."""
        pairs: list[tuple[OwnedPartition, EventBatch]] = []
        for partition, events in batches.items():
            owned = self._owned.get(partition)
            if owned is not None:
                pairs.append((owned, events))
        if not pairs:
            return
        group = self._retry(
            lambda: self._materialiser.store(pairs), before_retry=lambda: self._recover(pairs)
        )
        if group is None:
            return
        self._metrics.note_stored(group)
        self._settle()
        for batch in group.batches:
            if batch.result.refused is not None:
                self._partitions.close(batch.owned.partition, batch.result.refused)
        self._materialiser.publish(group)
        self._unsettled = group

    def _recover(self, pairs: Sequence[tuple[OwnedPartition, EventBatch]]) -> None:
        """Prepare to store a group again.

        The group before must not wait for that, and the table may hold this one already.
        """
        self._settle()
        self._materialiser.catch_up(pairs)

    def _settle(self) -> None:
        """Wait for the acknowledgements of the last group; its offsets may be committed then."""
        group = self._unsettled
        self._unsettled = None
        if group is None:
            return
        results = self._retry(
            lambda: self._materialiser.settle(group),
            before_retry=lambda: self._materialiser.publish(group),
        )
        if results is None:
            return
        self._metrics.note_settled(group)
        for batch in group.batches:
            if batch.is_refused:
                continue
            self._uncommitted.add(batch.owned.partition)
            self._metrics.count(batch.result)
            if batch.result.refusals:
                self._partitions.announce()

    def _retry(
        self, act: Callable[[], _Result], *, before_retry: Callable[[], None]
    ) -> _Result | None:
        """Return what `act` returns, calling it until it does not raise Unavailable.

        Calls `before_retry` before each repetition. Returns None if the worker is to stop first.
        """
        for attempt in itertools.count():
            try:
                if attempt:
                    before_retry()
                return act()
            except Unavailable as error:
                _LOG.warning("batch_retried", attempt=attempt, detail=str(error))
                last = len(_RETRY_SECONDS) - 1
                if self._stopping.wait(_RETRY_SECONDS[min(attempt, last)]):
                    return None
                self._note_progress()
        return None

    def _commit_due(self, *, is_idle: bool) -> None:
        """Commit what was acknowledged since the last commit; when busy every _COMMIT_SECONDS.

        A commit is a write for the broker, and one a poll cost it a tenth of its time at a thousand
        events a second.
        """
        now = monotonic()
        is_due = is_idle or now - self._committed_at >= _COMMIT_SECONDS
        if not self._uncommitted or not is_due:
            return
        self._failpoint("before_commit")
        uncommitted = self._uncommitted.copy()
        self._uncommitted.clear()
        self._committed_at = now
        self._source.commit(uncommitted, wait=False)

    def _commit_all(self) -> None:
        self._source.commit(self._owned.keys(), wait=True)

    def _report_watermarks(self) -> None:
        """Report each watermark that was reached, and note it in the table."""
        for partition, watermark in self._watermarks.due():
            owned = self._owned.get(partition)
            if owned is None or self._reached_offset(owned) < watermark.end_offset:
                continue
            try:
                self._heartbeat(owned, watermark)
            except Unavailable as error:
                _LOG.warning("heartbeat_failed", partition=partition, detail=str(error))
                return
            except (Fenced, TableWentBack) as error:
                self._partitions.close(partition, error)
                continue
            reached = ReachedWatermark(
                watermark, owned.generation, owned.acknowledged_offset, owned.tainted
            )
            self._watermarks.reach(partition, reached)

    def _heartbeat(self, owned: OwnedPartition, watermark: Watermark) -> None:
        self._table.heartbeat(
            owned.partition,
            epoch=owned.epoch,
            expected_offset=owned.next_offset,
            frontier_at=watermark.frontier_at,
        )

    def _reached_offset(self, owned: OwnedPartition) -> int:
        """Return how far a partition is acknowledged.

        With nothing unsettled this goes past the end marks of transactions, which are no messages.
        """
        if self._unsettled is not None:
            return owned.acknowledged_offset
        return max(owned.acknowledged_offset, owned.read_offset)

    def _revoked(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        """Give partitions back in order: all that is on its way arrives before another owner."""
        self._settle()
        self._commit_all()
        self._partitions.lost(consumer, positions)
