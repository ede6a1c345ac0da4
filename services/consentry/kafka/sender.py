"""Send to Kafka while the program goes on: a callback gets each message's result, once."""

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
_FLUSH_POLL_SECONDS: Final = 0.002
_PURGE_SECONDS: Final = 5.0
_LOG: Final = logging.getLogger(__name__)
_CERTAINLY_REFUSED: Final = frozenset(
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
"""Errors after which nothing was written; after any other error it is not known.

A purge from the queue is not among them: the message may be back in the queue because an attempt
had no answer.
"""
_new_tuple: Final = tuple.__new__


class TopicPosition(NamedTuple):
    """The position of a sent message in its Kafka topic."""

    partition: int
    offset: int


class Undelivered(Unavailable):
    """Raised when the Kafka broker did not acknowledge a message that was sent.

    If `is_unknown`, it may be in the log anyhow.
    """

    def __init__(self, topic: str, error: KafkaError) -> None:
        known = unavailable(f"acknowledge a message for {topic}", KafkaException(error))
        super().__init__(known.message, code=known.code, fix=known.fix)
        self.is_unknown = error.code() not in _CERTAINLY_REFUSED


class QueueFull(Unavailable):
    """Raised when too many messages wait for the Kafka broker; the message was not taken."""

    def __init__(self) -> None:
        super().__init__(
            "Too many messages wait for Kafka to acknowledge them; this one was not taken.",
            code="kafka.queue_full",
            fix="send it again in a moment, more slowly",
        )


Note = Callable[[KafkaError | None, Message], None]
Delivered = Callable[[TopicPosition | Undelivered], None]
"""Called once, on the sender's thread: with the position of the message, or why it has none.

It must not block.
"""


_forks = 0
"""The number of forks between this process and the first one.

For each message it is read, which is cheaper than to ask for the pid.
"""


def _note_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_note_fork)


class Sender:
    """An idempotent Kafka producer, and a thread that serves its acknowledgements.

    It may be called from any thread, but not from a child made by fork(): librdkafka's threads stay
    in the parent. An event loop goes without the thread, with which it would take turns: it calls
    `serve` while any messages are `waiting`.
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
        """Queue a message for Kafka; `delivered` is called with its result.

        Raises QueueFull, Unavailable, Refused; then `delivered` is not called.
        """

        def note(error: KafkaError | None, message: Message) -> None:
            if error is None:
                # The constructor of a NamedTuple is a Python function; this is what it does.
                delivered(_new_tuple(TopicPosition, (message.partition(), message.offset())))
            else:
                delivered(Undelivered(topic, error))

        self.produce(topic, key, value, headers, note)

    def produce(self, topic: str, key: bytes, value: bytes, headers: Headers, note: Note) -> None:
        """Queue a message for Kafka as `send` does, with one call less.

        `note` gets librdkafka's arguments.
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
        """The number of messages that wait to be sent to Kafka or acknowledged."""
        return sum(map(len, self._producers()))

    def flush(self, timeout_seconds: float) -> int:
        """Wait until Kafka has acknowledged all, or time is up; return how many it has not."""
        # Not librdkafka's flush: it would call the callbacks on this thread, and raise their
        # errors here.
        until = time.monotonic() + timeout_seconds
        while (left := self.waiting) and time.monotonic() < until:
            time.sleep(_FLUSH_POLL_SECONDS)
        return left

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Wait a while for queued messages, then close the Kafka producer.

        The result of the others is not known.
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
            self.flush(_PURGE_SECONDS)
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def _new_producer(self) -> Producer:
        return Producer(self._config)

    def _producers(self) -> list[Producer]:
        return [*self._retired, self._producer]

    def serve(self, seconds: float = 0.0) -> None:
        """Call the callbacks of Kafka's acknowledgements; wait up to `seconds` for the first."""
        _poll(self._producer, seconds)
        for old in tuple(self._retired):
            _poll(old, 0)
            if len(old) == 0:
                self._retired.remove(old)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self.serve(_POLL_SECONDS)

    def _replace_if_fatal(self, error: KafkaException) -> None:
        """Replace the producer after a fatal error, after which it never sends again.

        The old one is served until each of its messages has a result.
        """
        # The error that is raised here has the code _FATAL without being marked fatal; the one that
        # is marked is only logged.
        failure = error.args[0]
        if failure.fatal() or failure.code() == KafkaError._FATAL:
            self._retired.append(self._producer)
            self._producer = self._new_producer()


def _poll(producer: Producer, seconds: float) -> None:
    try:
        producer.poll(seconds)
    except KafkaException as error:
        _LOG.error("the Kafka client failed: %s", error)
    except Exception:  # noqa: BLE001 - a caller's own callback: logged whole, and it was called
        # One caller's mistake must not leave all the others without a result.
        _LOG.exception("the callback of an acknowledgement failed")


def _refused_after_fork() -> Refused:
    return Refused(
        "This process was forked from the one that opened the connection to Kafka, which does not "
        "survive that.",
        code="kafka.forked",
        fix="open the producer in each worker process, after the fork (post_fork in gunicorn, "
        "worker_init in Celery)",
    )
