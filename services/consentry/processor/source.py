"""The processor's member events from Kafka, as batches by partition; and the commits of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consentry.kafka.clients import client_config, unavailable
from consentry.kafka.headers import headers_of_all
from consentry.processor.batches import EventBatch, OwnedPartition
from consentry.wire.headers import Headers

BATCH_EVENTS_MAX: Final = 5000
_FATAL_ERRORS: Final = (
    KafkaError._FATAL,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
)
_LOG = structlog.get_logger(__name__)


def processor_consumer_config(
    kafka: Mapping[str, str], *, group: str, worker_id: str
) -> dict[str, Any]:
    """Return the settings of the processor's Kafka consumer.

    It commits by itself, never resets its position, and fetches again at once. A `worker_id` makes
    it a static member of the group.
    """
    config = client_config(kafka, "consentry-processor") | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 10_000,
        # A few messages a fetch instead of one: a third of the broker's work at a thousand events a
        # second.
        "fetch.wait.max.ms": 5,
        "fetch.min.bytes": 4096,
        "fetch.queue.backoff.ms": 5,
        "queued.max.messages.kbytes": 32_768,
        "allow.auto.create.topics": False,
        "check.crcs": True,
        "enable.partition.eof": True,
    }
    if worker_id:
        config["group.instance.id"] = worker_id
    return config


class _Columns(NamedTuple):
    """The messages of one partition, field by field; see EventBatch."""

    offsets: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    appended_ms: list[int]
    headers: list[Headers | None]


class EventSource:
    """Reads member events from Kafka for the processor, as batches by partition.

    The consumer is one that somebody else opens and closes. `owned` is the live dictionary of the
    partitions that are owned and open.
    """

    def __init__(self, consumer: Consumer, topic: str, owned: Mapping[int, OwnedPartition]) -> None:
        self._consumer = consumer
        self._topic = topic
        self._owned = owned

    def poll(self, timeout_seconds: float) -> list[Message]:
        """Return the messages in the processor's Kafka consumer; waits for the first only."""
        first = self._consumer.poll(timeout_seconds)
        if first is None:
            return []
        return [first, *self._consumer.consume(BATCH_EVENTS_MAX - 1, 0)]

    def batches(self, messages: Sequence[Message]) -> dict[int, EventBatch]:
        """Return polled messages as a batch for each partition; a broker's error is raised.

        Such an error is never skipped. Raises Unavailable.
        """
        columns_by_partition: dict[int, _Columns] = {}
        for message, headers in zip(messages, headers_of_all(messages), strict=True):
            error = message.error()
            partition = message.partition()
            if error is not None:
                self._check(error, partition, message.offset())
                continue
            if partition is None or partition not in self._owned:
                # Taken away, or waiting to be opened again: it will be read from its position then.
                continue
            columns = columns_by_partition.get(partition)
            if columns is None:
                columns = columns_by_partition[partition] = _Columns([], [], [], [], [])
            columns.offsets.append(message.offset() or 0)
            columns.keys.append(message.key())
            columns.values.append(message.value())
            columns.appended_ms.append(message.timestamp()[1])
            columns.headers.append(headers)
        return {
            partition: EventBatch(partition, *columns)
            for partition, columns in columns_by_partition.items()
        }

    def _check(self, error: KafkaError, partition: int | None, offset: int | None) -> None:
        """Note the end of a partition; raise Unavailable for an error that will not pass."""
        if error.code() == KafkaError._PARTITION_EOF:
            owned = None if partition is None else self._owned.get(partition)
            if owned is not None:
                owned.read_offset = offset or 0
            return
        # A fatal error (such as a worker id that is used twice) is reported once, by this code and
        # without its flag.
        if error.fatal() or error.code() in _FATAL_ERRORS:
            raise unavailable("deliver member events", KafkaException(error))
        if error.code() == KafkaError._BAD_COMPRESSION:
            # A poisoned batch below the decoder: nothing after it can be read, and skipping would
            # lose an opt-out.
            raise unavailable(
                "deliver a readable batch; see deploy/runbooks", KafkaException(error)
            )
        _LOG.warning("kafka_error", detail=error.str())

    def commit(self, partitions: Collection[int], *, wait: bool) -> None:
        """Commit how far the processor's partitions are acknowledged, but for those not owned.

        A failure is logged and no more: what is not committed is replayed, which is harmless, and
        the next commit covers it.
        """
        positions = [
            TopicPartition(self._topic, partition, owned.acknowledged_offset)
            for partition, owned in self._owned.items()
            if partition in partitions
        ]
        if not positions:
            return
        try:
            if wait:
                self._consumer.commit(offsets=positions, asynchronous=False)
            else:
                self._consumer.commit(offsets=positions, asynchronous=True)
        except KafkaException as error:
            _LOG.warning("commit_failed", detail=str(error))
