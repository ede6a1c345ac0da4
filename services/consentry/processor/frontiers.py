"""Every second, say how far each partition has come: what had been appended by then is in records
by now.
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
    """A place in a partition's log to be reached: everything appended by `frontier_at` lies below
    `end_offset`.
    """

    frontier_at: Micros
    end_offset: int


class ReachedWatermark(NamedTuple):
    """A mark that was reached, and what the partition's owner knew then."""

    mark: Watermark
    generation: str
    next_offset: int
    tainted: bool


class Watermarks:
    """The marks that the frontier thread sets and the hot path reaches; shared between the two
    threads.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._pending: dict[int, Watermark] = {}
        self._reached: dict[int, ReachedWatermark] = {}
        self._owned: frozenset[int] = frozenset()

    @property
    def owned(self) -> frozenset[int]:
        """The partitions that this worker owns now."""
        return self._owned

    def own(self, partitions: frozenset[int]) -> None:
        """Note which partitions are owned; marks of others are dropped."""
        with self._condition:
            self._owned = partitions
            for gone in set(self._pending) - partitions:
                del self._pending[gone]
            self._condition.notify_all()

    def set(self, marks: Mapping[int, Watermark]) -> None:
        """Ask for these marks; one that is still pending is kept, as it is reached first."""
        with self._condition:
            for partition, mark in marks.items():
                if partition in self._owned:
                    self._pending.setdefault(partition, mark)

    def due(self) -> list[tuple[int, Watermark]]:
        """The pending marks, for the hot path to look at."""
        if not self._pending:
            return []
        with self._condition:
            return list(self._pending.items())

    def reach(self, partition: int, reached: ReachedWatermark) -> None:
        """Report a mark as reached."""
        with self._condition:
            if self._pending.get(partition) == reached.mark:
                del self._pending[partition]
                self._reached[partition] = reached
                self._condition.notify_all()

    def take(self, timeout_seconds: float) -> dict[int, ReachedWatermark]:
        """Wait until no mark is pending, at most so long, and take those that were reached."""
        with self._condition:
            self._condition.wait_for(lambda: not self._pending, timeout_seconds)
            reached, self._reached = self._reached, {}
            return reached


class FrontierThread:
    """Asks the broker for the ends, waits for the hot path to get there, and publishes.

    Runs on its own thread.
    """

    def __init__(
        self,
        marks: Watermarks,
        *,
        kafka: Mapping[str, str],
        namespace: str,
        publish: Callable[[Frontier], None],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._marks = marks
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
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, within a tick."""
        self._stopping.set()
        self._thread.join(timeout=5)

    @property
    def is_alive(self) -> bool:
        """Whether frontiers are still being published; if not, every follower soon excludes
        everybody.
        """
        return self._thread.is_alive()

    def ages(self) -> dict[int, float]:
        """Seconds since each owned partition's frontier; a partition without one is not in it."""
        now = self._clock()
        return {partition: (now - at) / 1e6 for partition, at in list(self._last.items())}

    def _new_admin(self) -> AdminClient:
        return AdminClient(client_config(self._kafka, "consentry-frontiers"))

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_SECONDS if self._marks.owned else 0.1):
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
        owned = self._marks.owned
        if not self._log:
            self._log = log_identity(self._kafka, self._events).hex()
        asked_at = self._clock()
        ends = end_offsets(
            self._admin, [(self._controls, 0), *((self._events, partition) for partition in owned)]
        )
        self._controls_end = ends.pop((self._controls, 0))
        self._marks.set(
            {partition: Watermark(asked_at, end) for (_, partition), end in ends.items()}
        )
        reached = self._marks.take(_REACH_SECONDS)
        # Asked after the marks were reached: whatever they cover was acknowledged before, and so
        # lies below.
        published = end_offsets(self._admin, [(self._records, partition) for partition in reached])
        for partition, found in reached.items():
            self._publish(
                Frontier(
                    partition=partition,
                    generation=found.generation,
                    frontier_at=found.mark.frontier_at,
                    next_offset=found.next_offset,
                    records_offset=published[self._records, partition],
                    controls_offset=self._controls_end,
                    tainted=found.tainted,
                    log=self._log,
                )
            )
            if partition not in self._last:
                # Computed at each scrape: were it set by this thread, a dead thread would look
                # fresh for ever.
                gauge = self._metrics.gauge("consentry_frontier_age_seconds", str(partition))
                gauge.set_function(partial(self._age, partition))
            self._last[partition] = found.mark.frontier_at

    def _age(self, partition: int) -> float:
        return self.ages().get(partition, math.nan)

    def _forget_revoked(self) -> None:
        for gone in set(self._last) - self._marks.owned:
            del self._last[gone]
            self._metrics.forget("consentry_frontier_age_seconds", str(gone))
