"""The bundler's repair of records that went back: an older version came after a newer one.

A worker that was frozen between storing and publishing may wake up and publish a record that is no
longer the newest. Followers ignore it by its version, but compaction keeps the last message of a
key, not the newest version: after `min.compaction.lag.ms` a follower that starts from the log alone
would read the older record. So the newest is appended again, behind it.

Deciding and appending are two steps, and another record may be published in between. That one is
newer still, and then the appended record is an older version behind a newer one: it is seen and
repaired like any other. The loop ends as soon as nothing is published for the member during one
decision and append. The pause before each further round doubles, so that a member whose record
never rests costs at most two messages a minute, and an alert.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consentry.bundles import Regression
from consentry.domain.errors import ConsentryError
from consentry.kafka.clients import producer_config, unavailable
from consentry.ops.metrics import Metrics
from consentry.wire.records import is_ancestor, version_of
from consentry.wire.schemas import RECORDS, topic_name

PAUSE_SECONDS: Final = 0.2
"""The pause before a second repair of one member; doubled before each further one."""
PAUSE_SECONDS_MAX: Final = 30.0
QUIET_SECONDS: Final = 10.0
"""A member is settled whose record did not go back for this long, or for twice the last pause."""
BATCH_MAX: Final = 1000
_TICK_SECONDS: Final = 0.1
_APPEND_SECONDS: Final = 10.0
_LOOK_BACK_SECONDS: Final = 5.0
_LOG = structlog.get_logger(__name__)


class RepairedRecord(NamedTuple):
    """A member's newest record that the bundler appends to the log again, byte for byte.

    It goes to the record's own partition.
    """

    partition: int
    key: bytes
    value: bytes


class RecordAppender(Protocol):
    """Appends the bundler's repaired records to the log."""

    def append(self, records: Sequence[RepairedRecord]) -> None:
        """Append these records, and return when the broker has acknowledged all.

        Raises Unavailable: it is then unknown which of them count.
        """


class _Repair:
    """The repair of one member's record. Times in seconds of a monotonic clock.

    It is open from when the record went back until the newest is appended, or overtaken.
    """

    __slots__ = (
        "due_at",
        "first_at",
        "is_open",
        "last_at",
        "noted",
        "partition",
        "rounds",
        "version",
    )

    def __init__(self, partition: int, now: float) -> None:
        self.partition = partition
        self.version = 0
        self.first_at = self.last_at = self.due_at = now
        self.noted = self.rounds = 0
        self.is_open = True

    def pause(self) -> float:
        if self.rounds == 0:
            return 0.0
        doublings = min(self.rounds - 1, 30)
        return min(PAUSE_SECONDS * 2.0**doublings, PAUSE_SECONDS_MAX)


class RecordRepairer:
    """The bundler's repair: appends the newest record again where an older one came after it.

    The module says how.

    `newest` returns the newest record that was read of a key, on any thread. `note` may be called
    on one thread and `repair` on another. Nothing is appended before `ready` is true: until the log
    was read to its end the newest record is not known.
    """

    def __init__(
        self,
        appender: RecordAppender,
        *,
        newest: Callable[[bytes], bytes | None],
        ready: Callable[[], bool],
        metrics: Metrics,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._appender = appender
        self._newest = newest
        self._ready = ready
        self._clock = clock
        self._repairs: dict[bytes, _Repair] = {}
        self._diverged_since = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._regressions = metrics.counter("consentry_bundler_regressions_total")
        self._diverged = metrics.counter("consentry_bundler_divergences_total")
        self._outcomes = {
            outcome: metrics.counter("consentry_bundler_heals_total", outcome)
            for outcome in ("appended", "overtaken", "failed")
        }
        metrics.gauge("consentry_bundler_unhealed_seconds").set_function(self.unrepaired_seconds)

    def note(self, regression: Regression) -> None:
        """Remember that an older record was read behind the newest one; `repair` will mend it.

        If the older one is not an earlier state of the newest, it is not repaired: then one of the
        two lost an event and nobody can say which, so that the member stays quarantined
        (BundleState.damaged), for a person to look at.
        """
        self._regressions.inc()
        key, newest, now = regression.member, regression.newest, self._clock()
        with self._lock:
            if not is_ancestor(regression.arrived, newest):
                self._diverged.inc()
                self._diverged_since += 1
                self._repairs.pop(key, None)
                return
            repair = self._repairs.get(key)
            if repair is None:
                repair = self._repairs[key] = _Repair(regression.partition, now)
            if not repair.is_open:
                repair.is_open, repair.due_at = True, now + repair.pause()
            repair.version, repair.last_at = version_of(newest), now
            repair.noted += 1

    def repair(self) -> int:
        """Append the repaired records that are due, and return their number.

        Errors of the broker are tried again later.
        """
        self._log_diverged()
        due = self._due(self._clock()) if self._ready() else {}
        if not due:
            return 0
        try:
            self._appender.append([record for record, _ in due.values()])
        except ConsentryError as error:
            self._outcomes["failed"].inc(len(due))
            _LOG.warning("heal_failed", records=len(due), code=error.code)
            self._close(due, is_repaired=False)
            return 0
        self._outcomes["appended"].inc(len(due))
        self._close(due, is_repaired=True)
        _LOG.warning("records_went_back", healed=len(due))
        return len(due)

    def _due(self, now: float) -> dict[bytes, tuple[RepairedRecord, int]]:
        """Return what is to be appended now, by key, and how often each was noted.

        A repair that is long settled is forgotten, one that was overtaken is closed.
        """
        due: dict[bytes, tuple[RepairedRecord, int]] = {}
        with self._lock:
            for key, repair in list(self._repairs.items()):
                if not repair.is_open:
                    if now - repair.last_at > max(QUIET_SECONDS, 2 * repair.pause()):
                        del self._repairs[key]
                elif repair.due_at <= now:
                    newest = self._newest(key)
                    if newest is None or version_of(newest) > repair.version:
                        # Read after the older one, so it stands behind it in the log.
                        self._outcomes["overtaken"].inc()
                        repair.is_open = False
                    else:
                        due[key] = RepairedRecord(repair.partition, key, newest), repair.noted
                        if len(due) == BATCH_MAX:
                            break
        return due

    def _close(self, due: Mapping[bytes, tuple[RepairedRecord, int]], *, is_repaired: bool) -> None:
        """Close repairs after an append.

        Those that failed stay open, and so do those that were noted again meanwhile: the older
        record may stand behind the appended one.
        """
        now = self._clock()
        with self._lock:
            for key, (_, noted) in due.items():
                repair = self._repairs.get(key)
                if repair is not None:
                    repair.rounds += 1
                    repair.last_at, repair.due_at = now, now + repair.pause()
                    repair.is_open = not is_repaired or repair.noted != noted

    def _log_diverged(self) -> None:
        """Log one line for all of them: a line for each record would hide everything else."""
        with self._lock:
            count, self._diverged_since = self._diverged_since, 0
        if count:
            _LOG.critical("records_diverged", records=count)

    @property
    def open_count(self) -> int:
        """The number of records known to have an older version of themselves behind them."""
        with self._lock:
            return sum(repair.is_open for repair in self._repairs.values())

    def unrepaired_seconds(self) -> float:
        """Return the age of the oldest open repair, in seconds; 0 where none is open.

        A record that was repaired and went back again at once counts from the first time.
        """
        now = self._clock()
        with self._lock:
            ages = [now - repair.first_at for repair in self._repairs.values() if repair.is_open]
        return max(ages, default=0.0)

    def start(self, look_back: Callable[[], Iterable[Regression]] | None = None) -> None:
        """Repair on a thread of its own: a slow broker does not keep the follower from reading.

        `look_back` is called once, when ready, on another thread: it returns records that went back
        before this began to follow.
        """
        self._thread = threading.Thread(target=self._run, name="heal", daemon=True)
        self._thread.start()
        if look_back is not None:
            threading.Thread(
                target=self._look_back, args=(look_back,), name="look-back", daemon=True
            ).start()

    def stop(self) -> None:
        """End the thread, after the append that is under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=_APPEND_SECONDS + 5)

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def _look_back(self, look_back: Callable[[], Iterable[Regression]]) -> None:
        """Look back until it succeeds once: an older record may never have been repaired."""
        while not self._stopping.wait(_TICK_SECONDS):
            if not self._ready():
                continue
            try:
                regressions = list(look_back())
            except ConsentryError as error:
                _LOG.warning("look_back_failed", code=error.code)
                self._stopping.wait(_LOOK_BACK_SECONDS)
                continue
            for regression in regressions:
                self.note(regression)
            _LOG.info("looked_back", went_back=len(regressions))
            return

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            self.repair()


class KafkaRecordAppender:
    """Appends the bundler's repaired records with an idempotent Kafka producer.

    It is a RecordAppender, and waits for all replicas.
    """

    def __init__(self, kafka: Mapping[str, str], *, namespace: str) -> None:
        self._topic = topic_name(namespace, RECORDS)
        self._config: dict[str, Any] = producer_config(kafka, "consentry-bundler") | {
            "compression.type": "lz4",
            "delivery.timeout.ms": int(_APPEND_SECONDS * 1000),
        }
        self._producer: Producer | None = None

    def append(self, records: Sequence[RepairedRecord]) -> None:
        """Append these records to Kafka; see RecordAppender."""
        producer = self._producer = self._producer or Producer(self._config)
        failed: list[KafkaError] = []

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            for record in records:
                # With the current time, which keeps the compaction away from both messages for as
                # long as it waits.
                producer.produce(
                    self._topic, record.value, record.key, record.partition, on_delivery=note
                )
            left = producer.flush(_APPEND_SECONDS + 1)
        except (BufferError, KafkaException) as error:
            self.close()
            raise unavailable("accept a record", error) from error
        if failed or left:
            # A record that arrives minutes later, or a producer that a fatal error has ended, would
            # help nobody.
            self.close()
            cause = KafkaException(failed[0]) if failed else TimeoutError("time-out")
            raise unavailable(f"acknowledge {len(failed) or left} of {len(records)} records", cause)

    def close(self) -> None:
        """Close the producer, without the records that it has not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(1.0)
