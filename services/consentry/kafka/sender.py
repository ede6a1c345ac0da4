"""Sending to Kafka from a program that goes on meanwhile: every message is told once what became of
it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consentry.domain.errors import Refused, Unavailable
from consentry.kafka.clients import DELIVERY_TIMEOUT_MS, producer_config, unavailable

QUEUE_MESSAGES: Final = 100_000
CLOSE_SECONDS: Final = 10.0
Headers = list[tuple[str, bytes]]
"""A list and no other sequence: the client takes nothing else."""

_POLL_SECONDS: Final = 0.1
_FLUSH_LOOK_SECONDS: Final = 0.002
_LAST_WORDS_SECONDS: Final = 5.0
_LOG: Final = logging.getLogger(__name__)
_REFUSED_FOR_SURE: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.POLICY_VIOLATION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
"""What the broker or the client refused before anything was written; after any other error it is
not known.

A message purged from the queue is not among them: it may be back there because an attempt had no
answer.
"""
_new_tuple: Final = tuple.__new__


class TopicPosition(NamedTuple):
    """Where a message stands in its topic."""

    partition: int
    offset: int


class Undelivered(Unavailable):
    """A message was not acknowledged. `is_unknown`: it may stand in the log all the same."""

    def __init__(self, topic: str, error: KafkaError) -> None:
        known = unavailable(f"acknowledge a message for {topic}", KafkaException(error))
        super().__init__(known.message, code=known.code, fix=known.fix)
        self.is_unknown = error.code() not in _REFUSED_FOR_SURE


class QueueFull(Unavailable):
    """More messages wait for the broker than may; nothing was taken."""

    def __init__(self) -> None:
        super().__init__(
            "Too many messages wait for Kafka to acknowledge them; this one was not taken.",
            code="kafka.queue_full",
            fix="send it again in a moment, more slowly",
        )


Note = Callable[[KafkaError | None, Message], None]
Delivered = Callable[[TopicPosition | Undelivered], None]
"""Told once, on the sender's thread: where the message stands, or that it was not acknowledged.

Must not block.
"""


_forks = 0
"""How often this process is a child made by fork().

Cheaper to look at, for each message, than asking for the pid.
"""


def _note_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_note_fork)


class Sender:
    """An idempotent producer, and a thread that serves its acknowledgements.

    May be called from any thread.

    An event loop does without the thread, which would take turns with it: it calls `serve` while
    any are `waiting`.

    Not from a child made by fork(): librdkafka's threads stay behind in the parent.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        client_id: str,
        *,
        queue_messages: int = QUEUE_MESSAGES,
        delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS,
        has_thread: bool = True,
    ) -> None:
        self._config = producer_config(kafka, client_id) | {
            "queue.buffering.max.messages": queue_messages,
            "delivery.timeout.ms": delivery_timeout_ms,
        }
        self._forks = _forks
        self._lock = threading.Lock()
        self._producer = self._new_producer()
        self._retired: list[Producer] = []
        self._is_closed = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="acknowledgements", daemon=True)
        if has_thread:
            self._thread.start()

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Headers, delivered: Delivered
    ) -> None:
        """Queue a message; `delivered` is told.

        Raises QueueFull, Unavailable, Refused, and then nothing is told.
        """

        def note(error: KafkaError | None, message: Message) -> None:
            if error is None:
                # The constructor of a NamedTuple is a Python function; this is what it does.
                delivered(_new_tuple(TopicPosition, (message.partition(), message.offset())))
            else:
                delivered(Undelivered(topic, error))

        self.produce(topic, key, value, headers, note)

    def produce(self, topic: str, key: bytes, value: bytes, headers: Headers, note: Note) -> None:
        """The same for who sends so much that each call counts:

        `note` gets what librdkafka gives out.
        """
        if self._forks != _forks:
            raise _refused_after_fork()
        with self._lock:
            if self._is_closed:
                raise Refused(
                    "This sender was closed; the message was not taken.",
                    code="kafka.sender_closed",
                    fix="send before closing, or open another",
                )
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=note)  # type: ignore[arg-type] # it takes str and None too
            except BufferError:
                raise QueueFull from None
            except KafkaException as error:
                self._replace_if_fatal(error)
                raise unavailable(f"accept a message for {topic}", error) from error

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent or acknowledged."""
        return sum(map(len, self._producers()))

    def flush(self, timeout_seconds: float) -> int:
        """Wait until everything queued is acknowledged, at most so long; how many are not."""
        # Not librdkafka's flush: it would tell the acknowledgements on this thread, and raise what
        # is told there.
        until = time.monotonic() + timeout_seconds
        while (left := self.waiting) and time.monotonic() < until:
            time.sleep(_FLUSH_LOOK_SECONDS)
        return left

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Wait a while for what is queued, then end; whoever still waits is told that it is not
        known.
        """
        if self._forks != _forks:
            return  # the parent's, and its thread is not here
        with self._lock:
            self._is_closed = True
        if not self._thread.is_alive() and not self._stopping.is_set():
            self._thread.start()
        if self.flush(timeout_seconds):
            for producer in self._producers():
                producer.purge()
            self.flush(_LAST_WORDS_SECONDS)
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def _new_producer(self) -> Producer:
        return Producer(self._config)

    def _producers(self) -> list[Producer]:
        return [*self._retired, self._producer]

    def serve(self, seconds: float = 0.0) -> None:
        """Tell the acknowledgements that have come, waiting at most so long for the first."""
        _poll(self._producer, seconds)
        for old in tuple(self._retired):
            _poll(old, 0)
            if len(old) == 0:
                self._retired.remove(old)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self.serve(_POLL_SECONDS)

    def _replace_if_fatal(self, error: KafkaException) -> None:
        """After a fatal error an idempotent producer never sends again: another one takes its
        place.

        The old one is served until everybody who waits for it has been told.
        """
        # What is raised here says _FATAL without being marked fatal; the error that was, is only
        # logged.
        if error.args[0].fatal() or error.args[0].code() == KafkaError._FATAL:
            self._retired.append(self._producer)
            self._producer = self._new_producer()


def _poll(producer: Producer, seconds: float) -> None:
    try:
        producer.poll(seconds)
    except KafkaException as error:
        _LOG.error("the Kafka client failed: %s", error)
    except Exception:  # noqa: BLE001 - it is logged whole, and whoever was told has been told
        # One caller's mistake must not leave all the others without an answer.
        _LOG.exception("an acknowledgement was told, and whoever was told failed")


def _refused_after_fork() -> Refused:
    return Refused(
        "This process was forked from the one that opened the connection to Kafka, which does not "
        "survive that.",
        code="kafka.forked",
        fix="open the producer in each worker process, after the fork (post_fork in gunicorn, "
        "worker_init in Celery)",
    )
