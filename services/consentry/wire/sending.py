"""Sending to Kafka from a program that goes on meanwhile: every message is told once what became of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consentry.domain.errors import Unavailable
from consentry.wire.kafka import DELIVERY_TIMEOUT_MS, producer_config, unavailable

QUEUE_MESSAGES: Final = 100_000
Headers = Sequence[tuple[str, bytes]]
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
        KafkaError._PURGE_QUEUE,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
"""What the broker or the client refused before anything was written; after any other error it is not known."""


class Place(NamedTuple):
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


Delivered = Callable[[Place | Undelivered], None]
"""Told once, on the sender's thread: where the message stands, or that it was not acknowledged."""


class Sender:
    """An idempotent producer, and a thread that serves its acknowledgements. May be called from any thread."""

    def __init__(
        self,
        kafka: Mapping[str, str],
        client_id: str,
        *,
        queue_messages: int = QUEUE_MESSAGES,
        delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS,
    ) -> None:
        self._config = producer_config(kafka, client_id) | {
            "queue.buffering.max.messages": queue_messages,
            "delivery.timeout.ms": delivery_timeout_ms,
        }
        self._lock = threading.Lock()
        self._producer = Producer(self._config)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="acknowledgements", daemon=True)
        self._thread.start()

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, delivered: Delivered) -> None:
        """Queue a message; `delivered` is told. Raises QueueFull and Unavailable, and then nothing is told."""

        def note(error: KafkaError | None, message: Message) -> None:
            if error is None:
                delivered(Place(message.partition() or 0, message.offset() or 0))
            else:
                delivered(Undelivered(topic, error))

        producer = self._producer
        try:
            producer.produce(topic, value, key, headers=headers, on_delivery=note)  # type: ignore[arg-type]
        except BufferError:
            raise QueueFull from None
        except KafkaException as error:
            self._replace_if_fatal(producer, error)
            raise unavailable(f"accept a message for {topic}", error) from error

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent or acknowledged."""
        return len(self._producer)

    def flush(self, timeout_seconds: float) -> int:
        """Wait until everything queued is acknowledged, at most so long; how many are not."""
        return int(self._producer.flush(timeout_seconds))

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Wait a while for what is queued, then end."""
        self._producer.flush(timeout_seconds)
        self._stopping.set()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(0.1)

    def _replace_if_fatal(self, failed: Producer, error: KafkaException) -> None:
        """After a fatal error an idempotent producer never sends again: another one takes its place."""
        if not error.args[0].fatal():
            return
        with self._lock:
            if self._producer is failed:
                failed.flush(0)
                self._producer = Producer(self._config)
