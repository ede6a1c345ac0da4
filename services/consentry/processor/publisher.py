"""The processor's publisher over Kafka: one idempotent producer for records and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consentry.domain.values import MEMBER_ID_BYTES_MAX
from consentry.kafka.clients import producer_config, unavailable
from consentry.processor.ports import Published, Refusal
from consentry.wire.catalog import Catalog
from consentry.wire.headers import kept_headers
from consentry.wire.schemas import QUARANTINE, RECORDS, schema, topic_name

_SETTLE_SECONDS: Final = 35.0
_QUEUE_MESSAGES: Final = 500_000
_MESSAGE_BYTES_MAX: Final = 2_097_152
"""As quarantine.yaml has it: a refused message is kept with its key, headers and position, so it
grows by all of these.
"""


class KafkaPublisher:
    """Sends the processor's records and quarantined messages to Kafka, as Publisher describes.

    `version` is the software's, noted with every refusal.
    """

    def __init__(
        self, kafka: Mapping[str, str], *, namespace: str, catalog: Catalog, version: str
    ) -> None:
        self._records = topic_name(namespace, RECORDS)
        self._quarantine = topic_name(namespace, QUARANTINE)
        self._source = topic_name(namespace, "member-events")
        self._catalog = catalog
        self._version = version
        self._failures: list[KafkaError] = []
        config: dict[str, Any] = producer_config(kafka, "consentry-processor") | {
            "compression.type": "lz4",
            "queue.buffering.max.messages": _QUEUE_MESSAGES,
            "message.max.bytes": _MESSAGE_BYTES_MAX,
            # Successes need no callback: after a full flush, what was not reported as failed has
            # arrived.
            "delivery.report.only.error": True,
            "on_delivery": self._note_failure,
        }
        self._producer = Producer(config)

    def publish(self, partition: int, records: Sequence[Published]) -> None:
        """See Publisher."""
        # This loop runs per record: what it uses is in locals.
        produce, topic = self._producer.produce, self._records
        for member, record, appended_ms in records:
            try:
                produce(topic, record, member, partition, timestamp=appended_ms)
            except BufferError:
                self._producer.flush(_SETTLE_SECONDS)
                produce(topic, record, member, partition, timestamp=appended_ms)

    def quarantine(self, refusals: Sequence[Refusal]) -> None:
        """See Publisher."""
        frame = self._catalog.frame_of("Quarantined")
        quarantined = schema("Quarantined")
        for refusal in refusals:
            value = frame + quarantined.encode(
                {
                    "topic": self._source,
                    "partition": refusal.partition,
                    "offset": refusal.offset,
                    "appended_at": refusal.appended_at,
                    "error_class": refusal.error_class,
                    "schema_id": _schema_id(refusal.value),
                    "app_version": self._version,
                    "key": refusal.key,
                    "value": refusal.value,
                }
            )
            # A key that is no member's may be of any size; the value holds all of it.
            key = None if refusal.key is None else refusal.key[:MEMBER_ID_BYTES_MAX]
            headers: Any = kept_headers(refusal.headers, self._origin_headers(refusal))
            self._producer.produce(self._quarantine, value, key, refusal.partition, headers=headers)

    def _origin_headers(self, refusal: Refusal) -> dict[str, str]:
        """Return the origin of a refused message and its error class as headers.

        Nothing of the message's content is in them.
        """
        headers: dict[str, str] = {}
        schema_id = _schema_id(refusal.value)
        if schema_id is not None:
            headers["schema_id"] = str(schema_id)
        headers["orig.topic"] = self._source
        headers["orig.partition"] = str(refusal.partition)
        headers["orig.offset"] = str(refusal.offset)
        headers["orig.timestamp"] = str(refusal.appended_at // 1000)
        headers["error_class"] = refusal.error_class
        headers["app_version"] = self._version
        return headers

    def settle(self) -> None:
        """See Publisher."""
        waiting = self._producer.flush(_SETTLE_SECONDS)
        failures = self._failures
        self._failures = []
        if waiting:
            self._producer.purge()
            self._producer.flush(1.0)
            self._failures = []
        if failures:
            error = KafkaException(failures[0])
            raise unavailable(f"acknowledge {len(failures)} records", error)
        if waiting:
            raise unavailable(f"acknowledge {waiting} records", TimeoutError("time-out"))

    def send(self, topic: str, key: bytes, value: bytes, partition: int) -> None:
        """Queue one message of the processor for another topic, without waiting."""
        self._producer.produce(topic, value, key, partition)
        self._producer.poll(0)

    def close(self) -> None:
        """Wait a few seconds for the messages that the processor has queued."""
        self._producer.flush(5.0)

    def _note_failure(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failures.append(error)


def _schema_id(value: bytes | None) -> int | None:
    if value is None or len(value) < 5 or value[0] != 0 or value[1] >= 0x80:
        return None
    return int.from_bytes(value[1:5], "big")
