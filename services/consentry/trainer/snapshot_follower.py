"""The thread that applies the log to a client's snapshot, and says whether that is proven fresh.

Fails closed: whatever ends the thread, nothing is fresh from then on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np
import structlog
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from consentry.domain.controls import Control
from consentry.domain.errors import Unavailable, UndecodableEvent
from consentry.domain.orders import PurgeOrder
from consentry.kafka.clients import stored
from consentry.kafka.follower import LogFollower, log_ends, log_partitions, start_offsets
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks import Hooks
from consentry.trainer.sharing import ControlMessage
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.freshness import stale_age
from consentry.wire.frontiers import read_frontier
from consentry.wire.messages import StoredMessage
from consentry.wire.purge_orders import read_order
from consentry.wire.records import newest_fact, version_of
from consentry.wire.schemas import CONTROLS, FRONTIERS, PURGE_ORDERS, RECORDS
from consentry.wire.tokens import Token

_POLL_SECONDS: Final = 0.05
_READY_POLL_SECONDS: Final = 0.02
_MOVED_POLL_SECONDS: Final = 0.25
_NOT_READY_SECONDS: Final = 3.0
"""After this long the log says why a client is not ready yet, and then every five times as long."""
_DELAY_SAMPLES: Final = 32
"""Delays of one batch that go into the histogram."""
_LOG = structlog.get_logger(__name__)


class SnapshotFollower:
    """Follows the log into a client's `snapshot` on one thread, from `start` to `stop`.

    Other threads ask meanwhile. It is fresh once all that was there at the start has been read, and
    while the least fresh partition is at most `staleness_seconds` old.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        admin: AdminClient,
        catalog: Catalog,
        snapshot: Snapshot,
        *,
        partitions: int,
        name: str,
        namespace: str,
        staleness_seconds: float,
        clock: Clock,
        metrics: Metrics,
        controls_log: list[ControlMessage],
        journal: Path | None,
    ) -> None:
        """Only prepare; `start` begins. `partitions` is the partition count of records.

        Each control's message is put at the end of `controls_log`, and the file `journal` gets a
        line for each record and control.
        """
        self.name = name
        self.snapshot = snapshot
        self.hooks = Hooks(snapshot, self.open_orders, clock=clock)
        self._partitions = partitions
        self._kafka = kafka
        self._admin = admin
        self._catalog = catalog
        self._namespace = namespace
        self._staleness_seconds = staleness_seconds
        self._clock = clock
        self._metrics = metrics
        self._controls_log = controls_log
        self._journal = None if journal is None else FollowerJournal(journal, clock)
        self._orders: dict[str, PurgeOrder] = {}
        self._on_change: list[Callable[[], None]] = []
        self._moved = threading.Condition()
        """Notified after each batch of messages, for those who wait for a token."""
        self._caught_up = threading.Event()
        self._failure = ""
        self._was_stale = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{name}", daemon=True)

    def start(self) -> None:
        """Begin to follow the log for a client.

        Raises Refused or Unavailable where the topics cannot be read.
        """
        followed = log_partitions((CONTROLS, PURGE_ORDERS, FRONTIERS, RECORDS), self._partitions)
        ends = log_ends(self._admin, self._namespace, followed)
        # Computed at each scrape, so that it grows when following stops.
        self._metrics.gauge("consentry_staleness_seconds", self.name).set_function(
            lambda: self.snapshot.staleness_seconds(self._clock())
        )
        positions = self.snapshot.positions
        self._log = LogFollower(
            self._kafka,
            namespace=self._namespace,
            name=self.name,
            # Orders are not part of a snapshot: each client reads them all.
            starts=start_offsets(ends, positions, always_whole=(PURGE_ORDERS,)),
            positions=positions,
            ends=ends,
            lost_fix="start the trainer anew, so that it reads from the beginning",
        )
        self._thread.start()

    def stop(self) -> None:
        """Follow the log no more; nothing is fresh from then on."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._failure = self._failure or "the client was stopped"
        self.hooks.stop()
        if self._journal is not None:
            self._journal.close()

    @property
    def is_following(self) -> bool:
        """True while the thread that follows the log lives: for a liveness probe."""
        return self._thread.is_alive() and not self._failure

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` run, on the follower's thread, after orders or controls changed."""
        self._on_change.append(call)

    def open_orders(self) -> list[PurgeOrder]:
        """Return the purge orders not settled, in the order in which they were opened."""
        orders = list(self._orders.values())  # a copy at once: the thread may add one meanwhile
        return [order for order in orders if not order.is_settled]

    # ---- how fresh the snapshot is

    def stale_detail(self) -> str:
        """Return why the snapshot can allow nothing now; empty where freshness is proven."""
        if self._failure:
            return self._failure
        if not self._caught_up.is_set():
            return "what was there at the start has not all been read"
        age = self.snapshot.staleness_seconds(self._clock())
        return stale_age("the least fresh partition", age, self._staleness_seconds)

    def behind(self, token: Token | None, wait_seconds: float) -> str:
        """Return why the snapshot would not be fresh, or not as fresh as `token`; else empty.

        With a token it waits for that, at most `wait_seconds`.
        """
        detail = self._behind_now(token)
        if token is None or not detail:
            return detail
        until = monotonic() + wait_seconds
        with self._moved:
            while (detail := self._behind_now(token)) and not self._failure:
                left = until - monotonic()
                if left <= 0:
                    break
                # Not until the next message: freshness also comes and goes with time alone.
                self._moved.wait(min(left, _MOVED_POLL_SECONDS))
        return detail

    def _behind_now(self, token: Token | None) -> str:
        detail = self.stale_detail()
        if detail or token is None:
            return detail
        return self.snapshot.missing(token)

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Return once the snapshot is fresh. Raises Unavailable after that time."""
        until = monotonic() + timeout_seconds
        log_at = monotonic() + _NOT_READY_SECONDS
        while detail := self.stale_detail():
            if monotonic() > log_at:
                _LOG.warning(
                    "not_ready_yet",
                    subscriber=self.name,
                    detail=detail,
                    hint="is a processor running?",
                )
                log_at += _NOT_READY_SECONDS * 5
            if monotonic() > until:
                raise Unavailable(
                    f"The trainer {self.name} is not ready after {timeout_seconds:.0f} s: "
                    f"{detail}.",
                    code="trainer.not_ready",
                    fix="check that the processor runs: it publishes a frontier every second",
                )
            self._stopping.wait(_READY_POLL_SECONDS)

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                messages = self._log.poll(_POLL_SECONDS)
                self._apply(messages)
                self.snapshot.settle_frontiers()
                self.hooks.note_frontiers()
                self._note_caught_up()
                if messages:
                    with self._moved:
                        self._moved.notify_all()
                self._log_freshness()
        except Exception as error:  # noqa: BLE001 - logged, and every answer is STALE from here on
            # Whatever it was, the snapshot is not proven any more: from here on all is STALE.
            self._failure = f"following ended ({type(error).__name__})"
            _LOG.critical("follower_ended", subscriber=self.name, exc_info=error)
        finally:
            self._log.close()

    def _note_caught_up(self) -> None:
        if self._caught_up.is_set() or not self._log.is_caught_up:
            return
        self._caught_up.set()
        self.hooks.begin()
        _LOG.info("follower_caught_up", subscriber=self.name, members=len(self.snapshot.records))

    def _log_freshness(self) -> None:
        """Log once when answers become STALE, and once when they are given again."""
        detail = self.stale_detail()
        if not self._caught_up.is_set() or bool(detail) == self._was_stale:
            return
        self._was_stale = bool(detail)
        if detail:
            _LOG.warning("stale", subscriber=self.name, detail=detail)
        else:
            _LOG.info("fresh", subscriber=self.name)

    def _apply(self, messages: Sequence[Message]) -> None:
        """Take messages in: controls, orders and frontiers one by one, records by partition."""
        records: dict[int, list[Message]] = {}
        has_changed = False
        for topic, message in self._log.data_messages(messages):
            if topic == RECORDS:
                records.setdefault(message.partition() or 0, []).append(message)
                continue
            self._apply_other(topic, stored(message))
            has_changed = has_changed or topic in (CONTROLS, PURGE_ORDERS)
        for partition, records_messages in records.items():
            self._apply_records(partition, records_messages)
        if has_changed:
            for call in self._on_change:
                call()
            self.hooks.note_controls()

    def _apply_records(self, partition: int, messages: Sequence[Message]) -> None:
        complete = [message for message in messages if message.key() and message.value()]
        keys = [bytes(message.key() or b"") for message in complete]
        values = [bytes(message.value() or b"") for message in complete]
        regressions = self.snapshot.regressions
        earlier = self.hooks.states_before(keys)
        self.snapshot.apply_records(partition, keys, values)
        self.hooks.note_records(earlier, keys, values)
        self._log.move(RECORDS, partition, (messages[-1].offset() or 0) + 1)
        self._count_regressions(self.snapshot.regressions - regressions)
        if self._caught_up.is_set():
            self._observe_delays([message.timestamp()[1] for message in complete])
        self._metrics.gauge("consentry_members", self.name).set(len(self.snapshot.records))
        if self._journal is not None:
            self._journal.note_records(keys, values)

    def _count_regressions(self, count: int) -> None:
        if count:
            self._metrics.counter("consentry_follower_regressions_total", self.name).inc(count)

    def _observe_delays(self, appended_ms: Sequence[int]) -> None:
        """Observe the time from the broker's append to here, for some records of a batch."""
        now_ms = self._clock() / 1000
        delays = np.maximum(now_ms - np.array(appended_ms, dtype=np.float64), 0.0).tolist()
        histogram = self._metrics.histogram("consentry_event_to_trainer_seconds", self.name)
        for delay in delays[:: max(1, len(delays) // _DELAY_SAMPLES)]:
            histogram.observe(delay / 1000)

    def _apply_other(self, topic: str, message: StoredMessage) -> None:
        if topic == CONTROLS:
            self._apply_control(message)
        else:
            self._apply_frontier_or_order(topic, message)
        self._log.move(topic, message.partition, message.offset + 1)

    def _apply_control(self, message: StoredMessage) -> None:
        control = read_control_or_pause(
            message.value,
            offset=message.offset,
            appended_at=message.appended_at,
            catalog=self._catalog,
        )
        self._controls_log.append(message)
        self.snapshot.apply_control(control)
        if self._caught_up.is_set():
            delay_seconds = max(0.0, (self._clock() - message.appended_at) / 1e6)
            self._metrics.histogram("consentry_pause_to_trainer_seconds", self.name).observe(
                delay_seconds
            )
        if self._journal is not None:
            self._journal.note_control(control)

    def _apply_frontier_or_order(self, topic: str, message: StoredMessage) -> None:
        try:
            if topic == FRONTIERS:
                frontier = read_frontier(message.value, self._catalog)
                self.snapshot.apply_frontier(frontier, message.appended_at)
            else:
                self._note_order(read_order(message.value, self._catalog))
        except UndecodableEvent as error:
            # An unreadable frontier proves nothing; an unreadable order stays owed in the ledger.
            _LOG.error(
                "follower_unreadable",
                subscriber=self.name,
                topic=topic,
                error_class=error.error_class,
            )

    def _note_order(self, order: PurgeOrder) -> None:
        known = self._orders.get(order.order_id)
        if known is None or not known.is_settled:
            self._orders[order.order_id] = order


class FollowerJournal:
    """A follower's file with a JSON line for each record and control, timed; for benches.

    The time is when it was in memory.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = path.open("a", buffering=1)
        self._clock = clock

    def note_records(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Note in the benches' file members, record versions and newest facts' tags."""
        now = self._clock()
        for key, value in zip(keys, values, strict=True):
            fact = newest_fact(value)
            self._write(
                {
                    "applied_at": now,
                    "member": key.decode(),
                    "version": version_of(value),
                    "tag": fact.tag.hex() if fact else "",
                }
            )

    def note_control(self, control: Control) -> None:
        """Note a control in the benches' file by its event id."""
        self._write({"applied_at": self._clock(), "control": control.event_id.hex()})

    def close(self) -> None:
        """Write nothing more to the benches' file."""
        self._file.close()

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
