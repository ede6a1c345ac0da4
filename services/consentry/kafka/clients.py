"""Kafka clients with our settings, and the reading of a topic to its end."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from consentry.domain.errors import Refused, Unavailable
from consentry.domain.values import Micros
from consentry.kafka.headers import headers_of
from consentry.wire.messages import StoredMessage
from consentry.wire.partitions import PARTITIONER

DELIVERY_TIMEOUT_MS: Final = 30_000
_LEADER_MOVED: Final = frozenset(
    {
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    }
)
_LEADER_PAUSE_SECONDS: Final = 0.2
_LOG: Final = logging.getLogger("librdkafka")


def client_config(kafka: Mapping[str, str], client_id: str) -> dict[str, Any]:
    """Return the settings of every Kafka client: addresses, security, quick reconnects.

    Addresses and security come from `kafka`.

    librdkafka logs through logging.
    """
    return {
        **kafka,
        "client.id": client_id,
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "logger": _LOG,
    }


def producer_config(kafka: Mapping[str, str], client_id: str) -> dict[str, Any]:
    """Return the Kafka settings of an idempotent producer that waits for all replicas.

    It partitions as Java's default partitioner does.
    """
    return client_config(kafka, client_id) | {
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 1,
        "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
        "partitioner": PARTITIONER,
    }


def follower_config(kafka: Mapping[str, str], client_id: str) -> dict[str, Any]:
    """Return the settings of a Kafka consumer that picks its own partitions, commits nothing."""
    return client_config(kafka, client_id) | {
        "group.id": f"{client_id}-unused",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 50,
        "fetch.queue.backoff.ms": 5,
        "allow.auto.create.topics": False,
    }


def unavailable(action: str, error: Exception) -> Unavailable:
    """Return the error for a Kafka broker that did not do `action`, a verb such as "answer"."""
    detail = str(error)
    if error.args and isinstance(error.args[0], KafkaError):
        detail = error.args[0].str()
    return Unavailable(
        f"Kafka did not {action}: {detail}.",
        code="kafka.unavailable",
        fix="check CONSENTRY_KAFKA_BOOTSTRAP and that the broker runs (`consentry local status` "
        "for the local one)",
    )


def partition_count(admin: AdminClient, topic: str, *, timeout_seconds: float = 10.0) -> int:
    """Return how many partitions a Kafka topic has, as the broker says.

    Raises Refused where it does not exist, Unavailable without a broker.
    """
    try:
        metadata = admin.list_topics(topic, timeout=timeout_seconds)
    except KafkaException as error:
        raise unavailable("answer", error) from error
    topic_metadata = metadata.topics.get(topic)
    if topic_metadata is None or topic_metadata.error is not None or not topic_metadata.partitions:
        raise Refused(
            f"The topic {topic} does not exist on this broker.",
            code="kafka.topic_missing",
            fix="run `consentry topics apply` once against this broker",
        )
    return len(topic_metadata.partitions)


def log_identity(kafka: Mapping[str, str], topic: str, *, timeout_seconds: float = 10.0) -> bytes:
    """Return eight bytes that tell this Kafka topic from a later one of the same name.

    The offsets of a topic that was made anew begin again. The bytes are derived from the broker's
    topic id (KIP-516); a broker without such ids gives every topic the same. Raises Refused where
    the topic does not exist, Unavailable without a broker.
    """
    admin = AdminClient(client_config(kafka, "consentry-identity"))
    partition_count(admin, topic, timeout_seconds=timeout_seconds)
    try:
        [answer] = admin.describe_topics(
            TopicCollection([topic]), request_timeout=timeout_seconds
        ).values()
        topic_id = answer.result().topic_id
    except KafkaException as error:
        raise unavailable("describe the topic", error) from error
    return hashlib.blake2b(str(topic_id).encode(), digest_size=8).digest()


def end_offsets(
    admin: AdminClient, partitions: Iterable[tuple[str, int]], *, timeout_seconds: float = 5.0
) -> dict[tuple[str, int], int]:
    """Return the end offset (exclusive) of Kafka partitions, as the broker knows it now.

    By (topic, partition).

    Raises Unavailable.
    """
    request = {
        TopicPartition(topic, partition): OffsetSpec.latest() for topic, partition in partitions
    }
    if not request:
        return {}
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            answers = admin.list_offsets(request, request_timeout=timeout_seconds)
            offsets: dict[tuple[str, int], int] = {}
            for topic_partition, answer in answers.items():
                key = (topic_partition.topic, topic_partition.partition)
                offsets[key] = answer.result().offset
        except KafkaException as error:
            has_moved = error.args[0].code() in _LEADER_MOVED
            if not has_moved or time.monotonic() > until:
                raise unavailable("report its offsets", error) from error
            # A broker that came back gives out new leader epochs; the client learns of it soon.
            time.sleep(_LEADER_PAUSE_SECONDS)
        else:
            return offsets


def read_all(
    kafka: Mapping[str, str], topic: str, *, timeout_seconds: float = 30.0
) -> Iterator[StoredMessage]:
    """Yield every message of a Kafka topic, from its beginning to the end seen at the start.

    The messages of one partition are in order, those of several are mixed. Raises Refused where the
    topic does not exist, Unavailable where nothing comes for `timeout_seconds`.
    """
    admin = AdminClient(client_config(kafka, "consentry-reader"))
    count = partition_count(admin, topic, timeout_seconds=min(timeout_seconds, 10.0))
    ends = end_offsets(admin, [(topic, partition) for partition in range(count)])
    ends_by_partition = {partition: end for (_, partition), end in ends.items()}
    yield from _read_between(kafka, topic, ends_by_partition, timeout_seconds)


def read_partition(
    kafka: Mapping[str, str],
    topic: str,
    partition: int,
    *,
    start: int = OFFSET_BEGINNING,
    with_headers: bool = False,
    timeout_seconds: float = 30.0,
) -> Iterator[StoredMessage]:
    """Yield every message of a Kafka partition, from an offset to the end seen at the start.

    The default is its beginning. Raises Unavailable, also where the offset is no longer held.
    """
    admin = AdminClient(client_config(kafka, "consentry-reader"))
    end = end_offsets(admin, [(topic, partition)])[topic, partition]
    if start >= end:
        end = 0
    yield from _read_between(
        kafka, topic, {partition: end}, timeout_seconds, start=start, with_headers=with_headers
    )


def _read_between(
    kafka: Mapping[str, str],
    topic: str,
    ends: Mapping[int, int],
    timeout_seconds: float,
    *,
    start: int = OFFSET_BEGINNING,
    with_headers: bool = False,
) -> Iterator[StoredMessage]:
    consumer = Consumer(follower_config(kafka, "consentry-reader"))
    try:
        open_partitions = {partition for partition, end in ends.items() if end > 0}
        consumer.assign([TopicPartition(topic, partition, start) for partition in open_partitions])
        progress_at = time.monotonic()
        while open_partitions:
            for message in consumer.consume(5000, 0.1):
                progress_at = time.monotonic()
                partition, offset, is_end = position_of(message)
                if is_end or offset + 1 >= ends[partition]:
                    open_partitions.discard(partition)
                if is_end or offset >= ends[partition]:
                    continue
                stored_message = stored(message)
                if with_headers:
                    headers = tuple(headers_of(message) or ())
                    stored_message = stored_message._replace(headers=headers)
                yield stored_message
            if time.monotonic() - progress_at > timeout_seconds:
                raise Unavailable(
                    f"Reading {topic} made no progress for {timeout_seconds:.0f} s.",
                    code="kafka.stalled",
                    fix="check the broker; the call may be repeated",
                )
    finally:
        consumer.close()


def position_of(message: Message) -> tuple[int, int, bool]:
    """Return the position of a message that a Kafka client gave.

    That is (partition, offset, whether this only reports that the end was reached).

    Raises Unavailable for an error.
    """
    error = message.error()
    partition, offset = message.partition(), message.offset()
    if error is not None:
        has_position = partition is not None and offset is not None
        if not has_position or error.code() != KafkaError._PARTITION_EOF:
            raise unavailable("deliver", KafkaException(error))
    assert partition is not None
    assert offset is not None
    return partition, offset, error is not None


def stored(message: Message) -> StoredMessage:
    """Return a message of the Kafka client as a plain value."""
    partition, offset, _ = position_of(message)
    _, milliseconds = message.timestamp()
    return StoredMessage(
        partition, offset, message.key(), message.value(), Micros(milliseconds * 1000)
    )


def send(
    producer: Producer,
    topic: str,
    messages: Iterable[tuple[bytes, bytes] | tuple[bytes, bytes, int]],
    *,
    timeout_seconds: float = 35.0,
) -> list[tuple[int, int]]:
    """Send (key, value) messages to Kafka and wait for all acknowledgements.

    Returns (partition, offset) of each.

    A third item is the sender's time in milliseconds, which counts only where the topic takes it.
    Raises Unavailable if any was not acknowledged: it is then unknown whether it counts, and
    sending the same again is safe.
    """
    positions: list[tuple[int, int]] = []
    errors: list[KafkaError] = []

    def delivered(index: int) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                errors.append(error)
            else:
                positions[index] = (message.partition() or 0, message.offset() or 0)

        return note

    for key, value, *times in messages:
        positions.append((-1, -1))
        while True:
            try:
                producer.produce(
                    topic,
                    value,
                    key,
                    timestamp=times[0] if times else 0,
                    on_delivery=delivered(len(positions) - 1),
                )
                break
            except BufferError:
                producer.poll(0.05)
            except KafkaException as error:
                raise unavailable(f"accept a message for {topic}", error) from error
    unacknowledged = producer.flush(timeout_seconds)
    if errors or unacknowledged:
        count = unacknowledged
        cause: Exception = TimeoutError("time-out; it is unknown whether they count")
        if errors:
            count = len(errors)
            cause = KafkaException(errors[0])
        raise unavailable(f"acknowledge {count} of {len(positions)} messages for {topic}", cause)
    return positions
