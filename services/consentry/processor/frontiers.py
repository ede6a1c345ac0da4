"""The frontier of each partition, published by the processor every second.

A frontier says: everything that had been appended to the log by this time is in `records` by now.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

import structlog
from confluent_kafka.admin import AdminClient

from consentry.domain.errors import Refused, Unavailable
from consentry.domain.values import Micros
from consentry.kafka.clients import client_config, end_offsets, log_identity
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.wire.frontiers import Frontier
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, RECORDS, topic_name

INTERVAL_SECONDS: Final = 1.0
_REACH_SECONDS: Final = 0.9
_LOG = structlog.get_logger(__name__)


class Watermark(NamedTuple):
    """A log position that the processor has to reach before it publishes a frontier.

    Everything that was appended by `frontier_at` lies below `end_offset`.
    """

    frontier_at: Micros
    end_offset: int


class ReachedWatermark(NamedTuple):
    """A log position that the processor has reached, and the state of its partition then."""

    watermark: Watermark
    generation: str
    next_offset: int
    tainted: bool


class Watermarks:
    """The log positions that the frontier thread sets and the processor's hot path reaches.

    Shared between the two threads.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._pending: dict[int, Watermark] = {}
        self._reached: dict[int, ReachedWatermark] = {}
        self._owned: frozenset[int] = frozenset()

    @property
    def owned(self) -> frozenset[int]:
        """The partitions that this processor owns now."""
        return self._owned

    def own(self, partitions: frozenset[int]) -> None:
        """Note the partitions that this processor owns; watermarks of others are dropped."""
        with self._condition:
            self._owned = partitions
            for lost in set(self._pending) - partitions:
                del self._pending[lost]
            self._condition.notify_all()

    def set(self, watermarks: Mapping[int, Watermark]) -> None:
        """Ask the hot path for these watermarks; a pending one stays, as it is reached first."""
        with self._condition:
            for partition, watermark in watermarks.items():
                if partition in self._owned:
                    self._pending.setdefault(partition, watermark)

    def due(self) -> list[tuple[int, Watermark]]:
        """Return the watermarks that the processor's hot path has not reached yet."""
        if not self._pending:
            return []
        with self._condition:
            return list(self._pending.items())

    def reach(self, partition: int, reached: ReachedWatermark) -> None:
        """Report that the hot path reached a watermark; ignored unless it is the pending one."""
        with self._condition:
            if self._pending.get(partition) == reached.watermark:
                del self._pending[partition]
                self._reached[partition] = reached
                self._condition.notify_all()

    def take(self, timeout_seconds: float) -> dict[int, ReachedWatermark]:
        """Return the watermarks that the hot path reached since the last call, each once.

        Waits until no watermark is pending, but at most for the time-out.
        """
        with self._condition:
            self._condition.wait_for(lambda: not self._pending, timeout_seconds)
            reached = self._reached
            self._reached = {}
            return reached


class FrontierThread:
    """The thread of the processor that publishes the frontier of each partition.

    Each second it asks the broker for the end of each log, waits until the hot path has got there,
    and publishes.
    """

    def __init__(
        self,
        watermarks: Watermarks,
        *,
        kafka: Mapping[str, str],
        namespace: str,
        publish: Callable[[Frontier], None],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._watermarks = watermarks
        self._kafka = kafka
        self._admin = self._new_admin()
        self._events = topic_name(namespace, MEMBER_EVENTS)
        self._records = topic_name(namespace, RECORDS)
        self._controls = topic_name(namespace, CONTROLS)
        self._publish = publish
        self._clock = clock
        self._metrics = metrics
        self._last: dict[int, Micros] = {}
        self._controls_end = 0
        self._log = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frontiers", daemon=True)

    def start(self) -> None:
        """Start the thread that publishes the processor's frontiers."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread that publishes the processor's frontiers, within a tick."""
        self._stopping.set()
        self._thread.join(timeout=5)

    @property
    def is_alive(self) -> bool:
        """True while the processor's frontiers are being published.

        When they stop, every follower soon excludes everybody.
        """
        return self._thread.is_alive()

    def ages(self) -> dict[int, float]:
        """Return the seconds since the last frontier, by partition that the processor owns.

        A partition that has none is left out.
        """
        now = self._clock()
        ages: dict[int, float] = {}
        # A copy: the thread changes the dictionary meanwhile.
        for partition, frontier_at in list(self._last.items()):
            ages[partition] = (now - frontier_at) / 1e6
        return ages

    def _new_admin(self) -> AdminClient:
        return AdminClient(client_config(self._kafka, "consentry-frontiers"))

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_SECONDS if self._watermarks.owned else 0.1):
            try:
                self._tick()
            except (Refused, Unavailable) as error:
                # The frontier then stands still, and its age says so; the next tick asks again.
                _LOG.warning("frontier_unavailable", detail=str(error))
                # An admin client never learns of a new leader epoch: after a broker's restart it
                # would fail for ever.
                self._admin = self._new_admin()
            self._forget_revoked()

    def _tick(self) -> None:
        if not self._log:
            self._log = log_identity(self._kafka, self._events).hex()
        self._set_watermarks()
        reached = self._watermarks.take(_REACH_SECONDS)
        # Asked after the watermarks were reached: the records of all they cover were acknowledged
        # before, and so lie below these ends.
        record_logs = [(self._records, partition) for partition in reached]
        record_ends = end_offsets(self._admin, record_logs)
        for partition, watermark in reached.items():
            self._publish_frontier(partition, watermark, record_ends[self._records, partition])

    def _set_watermarks(self) -> None:
        """Ask for the present end of each owned partition's log, as of the time before asking."""
        asked_at = self._clock()
        controls = (self._controls, 0)
        event_logs = [(self._events, partition) for partition in self._watermarks.owned]
        ends = end_offsets(self._admin, [controls, *event_logs])
        self._controls_end = ends.pop(controls)
        watermarks: dict[int, Watermark] = {}
        for (_, partition), end_offset in ends.items():
            watermarks[partition] = Watermark(asked_at, end_offset)
        self._watermarks.set(watermarks)

    def _publish_frontier(
        self, partition: int, reached: ReachedWatermark, records_offset: int
    ) -> None:
        frontier_at = reached.watermark.frontier_at
        self._publish(
            Frontier(
                partition=partition,
                generation=reached.generation,
                frontier_at=frontier_at,
                next_offset=reached.next_offset,
                records_offset=records_offset,
                controls_offset=self._controls_end,
                tainted=reached.tainted,
                log=self._log,
            )
        )
        if partition not in self._last:
            # Computed at each scrape: were it set by this thread, a dead thread would look fresh
            # for ever.
            gauge = self._metrics.gauge("consentry_frontier_age_seconds", str(partition))
            gauge.set_function(partial(self._age, partition))
        self._last[partition] = frontier_at

    def _age(self, partition: int) -> float:
        return self.ages().get(partition, math.nan)

    def _forget_revoked(self) -> None:
        for revoked in set(self._last) - self._watermarks.owned:
            del self._last[revoked]
            self._metrics.forget("consentry_frontier_age_seconds", str(revoked))
