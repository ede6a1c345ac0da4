"""Records that went back: an older version appended after a newer one, and the newer one put behind
it again.

A worker that was frozen between storing and publishing may wake up and publish a record that is no
longer the newest. Followers ignore it by its version, but compaction keeps the last message of a
key, not the newest version: after `min.compaction.lag.ms` whoever starts from the log alone would
read the older record. So the newest is appended again.

Deciding and appending are not one step, and need not be. Whatever is published in between is newer
still, and then the repetition itself is an older version behind a newer one: it is seen like any
other and healed like any other. The loop ends as soon as nothing is published for the member during
one decision and append; the pause before each further round doubles, so that a member who never
rests costs two messages a minute at most, and an alert.
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
"""Before a second repetition for one member; doubled before each further one."""
PAUSE_SECONDS_MAX: Final = 30.0
QUIET_SECONDS: Final = 10.0
"""A member whose record did not go back for so long (or for twice the last pause) is settled."""
BATCH_MAX: Final = 1000
_TICK_SECONDS: Final = 0.1
_APPEND_SECONDS: Final = 10.0
_LOOK_BACK_SECONDS: Final = 5.0
_LOG = structlog.get_logger(__name__)


class Repetition(NamedTuple):
    """The newest record of a member, to be appended to its partition once more, byte for byte."""

    partition: int
    key: bytes
    value: bytes


class Appender(Protocol):
    """Puts records behind what is in the log."""

    def append(self, repetitions: Sequence[Repetition]) -> None:
        """Return when all are acknowledged.

        Raises Unavailable: it is then unknown which of them count.
        """


class _Repair:
    """One member whose record went back. Times in seconds of a monotonic clock."""

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
        return (
            min(PAUSE_SECONDS * 2 ** min(self.rounds - 1, 30), PAUSE_SECONDS_MAX)
            if self.rounds
            else 0.0
        )


class RecordRepairer:
    """Has the newest record published again where an older one came behind it; see the module.

    `newest` tells the newest record that was read of a key, from any thread; so may `note` be
    called, and `heal` from another. Nothing is appended before `ready` is true: until the log was
    read to its end the newest is not known.
    """

    def __init__(
        self,
        appender: Appender,
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
        self._wounds: dict[bytes, _Repair] = {}
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
        metrics.gauge("consentry_bundler_unhealed_seconds").set_function(self.unhealed_seconds)

    def note(self, regression: Regression) -> None:
        """Take in that an older record was read behind the newest one known; it will be healed by
        `heal`.

        Not where the older one is no earlier state of the newest: then one of the two lost an event
        and nobody can say which, so that the member stays quarantined (BundleState.damaged), for a
        person to look at.
        """
        self._regressions.inc()
        key, newest, now = regression.member, regression.newest, self._clock()
        with self._lock:
            if not is_ancestor(regression.arrived, newest):
                self._diverged.inc()
                self._diverged_since += 1
                self._wounds.pop(key, None)
                return
            wound = self._wounds.get(key)
            if wound is None:
                wound = self._wounds[key] = _Repair(regression.partition, now)
            if not wound.is_open:
                wound.is_open, wound.due_at = True, now + wound.pause()
            wound.version, wound.last_at = version_of(newest), now
            wound.noted += 1

    def heal(self) -> int:
        """Append what is due, and return how many records that were.

        Errors of the broker are tried again later.
        """
        self._tell_diverged()
        due = self._due(self._clock()) if self._ready() else {}
        if not due:
            return 0
        try:
            self._appender.append([one for one, _ in due.values()])
        except ConsentryError as error:
            self._outcomes["failed"].inc(len(due))
            _LOG.warning("heal_failed", records=len(due), code=error.code)
            self._close(due, is_healed=False)
            return 0
        self._outcomes["appended"].inc(len(due))
        self._close(due, is_healed=True)
        _LOG.warning("records_went_back", healed=len(due))
        return len(due)

    def _due(self, now: float) -> dict[bytes, tuple[Repetition, int]]:
        """What is to be appended now, and how often each was noted; what was overtaken or is long
        settled goes.
        """
        due: dict[bytes, tuple[Repetition, int]] = {}
        with self._lock:
            for key, wound in list(self._wounds.items()):
                if not wound.is_open:
                    if now - wound.last_at > max(QUIET_SECONDS, 2 * wound.pause()):
                        del self._wounds[key]
                elif wound.due_at <= now:
                    newest = self._newest(key)
                    if newest is None or version_of(newest) > wound.version:
                        # Read after the older one, so it stands behind it in the log.
                        self._outcomes["overtaken"].inc()
                        wound.is_open = False
                    else:
                        due[key] = Repetition(wound.partition, key, newest), wound.noted
                        if len(due) == BATCH_MAX:
                            break
        return due

    def _close(self, due: Mapping[bytes, tuple[Repetition, int]], *, is_healed: bool) -> None:
        """After an append.

        What failed stays open, and so does what was noted meanwhile: that may stand behind it.
        """
        now = self._clock()
        with self._lock:
            for key, (_, noted) in due.items():
                wound = self._wounds.get(key)
                if wound is not None:
                    wound.rounds += 1
                    wound.last_at, wound.due_at = now, now + wound.pause()
                    wound.is_open = not is_healed or wound.noted != noted

    def _tell_diverged(self) -> None:
        """One line for all of them: a partition's worth of lines would hide everything else."""
        with self._lock:
            count, self._diverged_since = self._diverged_since, 0
        if count:
            _LOG.critical("records_diverged", records=count)

    @property
    def open_count(self) -> int:
        """How many records stand behind an older version of themselves, as far as is known."""
        with self._lock:
            return sum(wound.is_open for wound in self._wounds.values())

    def unhealed_seconds(self) -> float:
        """How long the oldest record has been going back that does so still, in seconds;

        0 where none does.

        One that was healed and went back again at once counts from the first time.
        """
        now = self._clock()
        with self._lock:
            return max(
                (now - wound.first_at for wound in self._wounds.values() if wound.is_open),
                default=0.0,
            )

    def start(self, look_back: Callable[[], Iterable[Regression]] | None = None) -> None:
        """Heal on a thread of its own, so that a slow broker does not keep the follower from
        reading.

        `look_back` is asked once it is ready, on another thread: what it tells went back before
        this began to follow.
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
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def _look_back(self, look_back: Callable[[], Iterable[Regression]]) -> None:
        """Until it succeeds once: a broker that is away now may hold an older record that was never
        healed.
        """
        while not self._stopping.wait(_TICK_SECONDS):
            if not self._ready():
                continue
            try:
                found = list(look_back())
            except ConsentryError as error:
                _LOG.warning("look_back_failed", code=error.code)
                self._stopping.wait(_LOOK_BACK_SECONDS)
                continue
            for regression in found:
                self.note(regression)
            _LOG.info("looked_back", went_back=len(found))
            return

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            self.heal()


class KafkaAppender:
    """See Appender; an idempotent producer that waits for all replicas."""

    def __init__(self, kafka: Mapping[str, str], *, namespace: str) -> None:
        self._topic = topic_name(namespace, RECORDS)
        self._config: dict[str, Any] = producer_config(kafka, "consentry-bundler") | {
            "compression.type": "lz4",
            "delivery.timeout.ms": int(_APPEND_SECONDS * 1000),
        }
        self._producer: Producer | None = None

    def append(self, repetitions: Sequence[Repetition]) -> None:
        """See Appender."""
        producer = self._producer = self._producer or Producer(self._config)
        failed: list[KafkaError] = []

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            for one in repetitions:
                # With the time of now, which keeps the compaction away from both for as long as it
                # waits.
                producer.produce(self._topic, one.value, one.key, one.partition, on_delivery=note)
            left = producer.flush(_APPEND_SECONDS + 1)
        except (BufferError, KafkaException) as error:
            self.close()
            raise unavailable("accept a record", error) from error
        if failed or left:
            # A repetition that arrives minutes later, or a producer that a fatal error has ended,
            # would help nobody.
            self.close()
            cause = KafkaException(failed[0]) if failed else TimeoutError("time-out")
            raise unavailable(
                f"acknowledge {len(failed) or left} of {len(repetitions)} records", cause
            )

    def close(self) -> None:
        """Let go of the producer and of what it has not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(1.0)
