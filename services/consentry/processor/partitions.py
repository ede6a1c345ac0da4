"""The partitions of one processor: assigned by the group, opened, closed and taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Final

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

from consentry.domain.errors import ConsentryError, Fenced, TableWentBack, Unavailable
from consentry.kafka.clients import unavailable
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.processor.batches import OwnedPartition
from consentry.processor.frontiers import Watermarks
from consentry.processor.ownership import LogSpan, take_over
from consentry.processor.ports import Published
from consentry.table.protocol import ConsentTable
from consentry.table.refusals import reason_of
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage

_REOPEN_SECONDS: Final = 1.0
_LOG = structlog.get_logger(__name__)


class Partitions:
    """The partitions that this processor owns, and those that it still has to open.

    Lives on the hot path's thread.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        topic: str,
        table: ConsentTable,
        publish: Callable[[int, Sequence[Published]], None],
        watermarks: Watermarks,
        last_frontiers: Callable[[], Mapping[int, Frontier]],
        records: Callable[[int], Iterable[StoredMessage]],
        clock: Clock,
        metrics: Metrics,
        note_progress: Callable[[], None],
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._table = table
        self._publish = publish
        self._watermarks = watermarks
        self._last_frontiers = last_frontiers
        self._records = records
        self._clock = clock
        self._metrics = metrics
        self._note_progress = note_progress
        self.owned: dict[int, OwnedPartition] = {}
        """The open ones."""
        self._to_open: dict[int, float] = {}
        """Those assigned and not open, and when to try, on the monotonic clock."""
        self._tainted: set[int] = set()
        """The partitions that were ever seen tainted.

        A table that is wiped before the next frontier must not make this worker forget the taint.
        """

    @property
    def are_all_open(self) -> bool:
        """True if no partition assigned to this processor waits to be opened."""
        return not self._to_open

    @property
    def has_due(self) -> bool:
        """True if this processor is to open a partition now."""
        return bool(self._due())

    def _due(self) -> list[int]:
        now = monotonic()
        return [partition for partition, open_at in self._to_open.items() if open_at <= now]

    def open_due(self) -> None:
        """Open every partition of the processor whose time has come.

        A partition that cannot be opened yet is tried again in a second. May publish, so nothing
        may be on its way. Raises UnsafeSetting where log and table cannot both be right.
        """
        due = self._due()
        if not due:
            return
        try:
            frontiers = self._last_frontiers()
        except Unavailable as error:
            _LOG.warning("open_failed", detail=str(error))
            for partition in due:
                self._open_later(partition)
            return
        for partition in due:
            self._note_progress()
            try:
                start_offset = self._open(partition, frontiers)
                self._consumer.seek(TopicPartition(self._topic, partition, start_offset))
                self._consumer.resume([TopicPartition(self._topic, partition)])
                del self._to_open[partition]
            except (Unavailable, Fenced, TableWentBack) as error:
                _LOG.warning("open_failed", partition=partition, detail=str(error))
                self._open_later(partition)
            except KafkaException as error:
                _LOG.warning("seek_failed", partition=partition, detail=str(error))
                self.owned.pop(partition, None)
                self._open_later(partition)
        self.announce()

    def _open_later(self, partition: int) -> None:
        self._to_open[partition] = monotonic() + _REOPEN_SECONDS

    def _open(self, partition: int, frontiers: Mapping[int, Frontier]) -> int:
        """Own the partition; return the offset to read from."""
        span = self._log_span(partition)
        taken = take_over(
            self._table,
            partition,
            span=span,
            last_frontier=frontiers.get(partition),
            records=lambda: self._noting_progress(self._records(partition)),
            publish=lambda records: self._publish(partition, records),
            min_epoch=self._clock() // 1000,
        )
        if taken.rebuilt:
            self._metrics.counter("consentry_table_generation_changes_total").inc()
        owned = taken.owned
        owned.tainted = owned.tainted or partition in self._tainted
        self.owned[partition] = owned
        _LOG.info(
            "partition_opened",
            partition=partition,
            epoch=owned.epoch,
            offset=taken.start_offset,
            end=span.end_offset,
        )
        return taken.start_offset

    def _log_span(self, partition: int) -> LogSpan:
        """Return the bounds of the partition's log and what was committed. Raises Unavailable."""
        topic_partition = TopicPartition(self._topic, partition)
        try:
            first, end = self._consumer.get_watermark_offsets(topic_partition, timeout=10)
            [committed] = self._consumer.committed([topic_partition], timeout=10)
        except KafkaException as error:
            raise unavailable("tell what is committed", error) from error
        return LogSpan(first, end, committed.offset if committed.offset >= 0 else None)

    def _noting_progress(self, records: Iterable[StoredMessage]) -> Iterator[StoredMessage]:
        """Yield the records and note progress at each: a rebuild may take minutes."""
        for record in records:
            self._note_progress()
            yield record

    def assigned(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        """Take the partitions that the group assigned to the processor, paused until opened.

        Opening may take long (a rebuild) or fail for a while.
        """
        at_end: list[TopicPartition] = []
        for position in positions:
            at_end.append(TopicPartition(position.topic, position.partition, OFFSET_END))
        consumer.incremental_assign(at_end)
        consumer.pause(positions)
        now = monotonic()
        for position in positions:
            self._to_open[position.partition] = now

    def lost(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        """Drop partitions that the group took away from this processor.

        It may have gone on without us: then another owner is at work, and the table refuses us.
        """
        consumer.incremental_unassign(positions)
        for position in positions:
            self.owned.pop(position.partition, None)
            self._to_open.pop(position.partition, None)
        self.announce()

    def announce(self) -> None:
        """Tell the frontier thread the partitions that are owned; remember the tainted ones."""
        self._watermarks.own(frozenset(self.owned))
        tainted = [partition for partition, owned in self.owned.items() if owned.tainted]
        self._tainted.update(tainted)
        self._metrics.gauge("consentry_partitions_tainted").set(len(tainted))

    def close(self, partition: int, error: ConsentryError) -> None:
        """Let go of a partition of the processor whose table has another owner or went back.

        While it is still assigned, it is opened again soon.
        """
        _LOG.warning("partition_closed", partition=partition, code=error.code, detail=str(error))
        self._metrics.counter("consentry_table_refusals_total", reason_of(error)).inc()
        if error.code == "table.damaged":
            self._discard_table(partition)
        self.owned.pop(partition, None)
        self._consumer.pause([TopicPartition(self._topic, partition)])
        delay_seconds = _REOPEN_SECONDS if isinstance(error, Fenced) else 0.0
        self._to_open[partition] = monotonic() + delay_seconds
        self.announce()

    def _discard_table(self, partition: int) -> None:
        """Make the next opening a rebuild: the table's own position cannot be trusted any more."""
        try:
            self._table.clear(partition, epoch=self.owned[partition].epoch)
        except ConsentryError as error:
            _LOG.warning("discard_failed", partition=partition, detail=str(error))
