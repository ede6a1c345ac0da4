"""The partitions of one worker: given by the group, opened, closed and opened again, and taken
away.
"""

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
    """Which partitions this worker owns, and which it still has to open.

    Lives on the hot path's thread.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        topic: str,
        table: ConsentTable,
        publish: Callable[[int, Sequence[Published]], None],
        marks: Watermarks,
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
        self._marks = marks
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
        """Partitions seen tainted: a table that is wiped before the next frontier must not make
        this worker forget.
        """

    @property
    def are_all_open(self) -> bool:
        """Whether nothing that was assigned waits to be opened."""
        return not self._to_open

    @property
    def has_due(self) -> bool:
        """Whether a partition is to be opened now."""
        now = monotonic()
        return any(when <= now for when in self._to_open.values())

    def open_due(self) -> None:
        """Open every partition whose time has come; those that cannot be opened yet come again in a
        second.

        May publish, so nothing may be on its way. Raises UnsafeSetting where log and table cannot
        both be right.
        """
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
            self._note_progress()
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
                self.owned.pop(partition, None)
                self._to_open[partition] = monotonic() + _REOPEN_SECONDS
        self.announce()

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
            records=lambda: self._noting_progress(self._records(partition)),
            publish=lambda held: self._publish(partition, held),
            floor=self._clock() // 1000,
        )
        if taken.rebuilt:
            self._metrics.counter("consentry_table_generation_changes_total").inc()
        taken.owned.tainted = taken.owned.tainted or partition in self._tainted
        self.owned[partition] = taken.owned
        _LOG.info(
            "partition_opened",
            partition=partition,
            epoch=taken.owned.epoch,
            offset=taken.start_offset,
            end=end,
        )
        return taken.start_offset

    def _noting_progress(self, records: Iterable[StoredMessage]) -> Iterator[StoredMessage]:
        """A rebuild may take minutes; as long as it reads on, the worker does not stand still."""
        for record in records:
            self._note_progress()
            yield record

    def assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Note what the group gave us: assigned at once, read when open."""
        # Opening may take long (a rebuild) or fail for a while: each is assigned at once, but read
        # only when open.
        consumer.incremental_assign(
            [TopicPartition(place.topic, place.partition, OFFSET_END) for place in places]
        )
        consumer.pause(places)
        now = monotonic()
        self._to_open.update({place.partition: now for place in places})

    def lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """The group went on without us: another owner may be at work already, and the table refuses
        us.
        """
        consumer.incremental_unassign(places)
        for place in places:
            self.owned.pop(place.partition, None)
            self._to_open.pop(place.partition, None)
        self.announce()

    def announce(self) -> None:
        """Say which partitions are owned, and remember which are tainted."""
        self._marks.own(frozenset(self.owned))
        self._tainted.update(partition for partition, owned in self.owned.items() if owned.tainted)
        self._metrics.gauge("consentry_partitions_tainted").set(
            sum(owned.tainted for owned in self.owned.values())
        )

    def close(self, partition: int, error: ConsentryError) -> None:
        """Let go of a partition whose table is another's or went back; while assigned, it is opened
        again soon.
        """
        _LOG.warning("partition_closed", partition=partition, code=error.code, detail=str(error))
        self._metrics.counter("consentry_table_refusals_total", reason_of(error)).inc()
        if error.code == "table.damaged":
            self._discard_table(partition)
        self.owned.pop(partition, None)
        self._consumer.pause([TopicPartition(self._topic, partition)])
        self._to_open[partition] = monotonic() + (
            _REOPEN_SECONDS if isinstance(error, Fenced) else 0.0
        )
        self.announce()

    def _discard_table(self, partition: int) -> None:
        """Make the next opening a rebuild: the table's own position cannot be trusted any more."""
        try:
            self._table.empty(partition, epoch=self.owned[partition].epoch)
        except ConsentryError as error:
            _LOG.warning("discard_failed", partition=partition, detail=str(error))
