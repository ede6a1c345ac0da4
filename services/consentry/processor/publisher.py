"""Records and refusals to Kafka, by one idempotent producer."""

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
"""As quarantine.yaml has it: what is refused is kept with its key, headers and place, so it grows
by all of these.
"""


class KafkaPublisher:
    """See Publisher. `version` is the software's, noted with every refusal."""

    def __init__(
        self, kafka: Mapping[str, str], *, namespace: str, catalog: Catalog, version: str
    ) -> None:
        self._records = topic_name(namespace, RECORDS)
        self._quarantine = topic_name(namespace, QUARANTINE)
        self._source = topic_name(namespace, "member-events")
        self._catalog = catalog
        self._version = version
        self._failed: list[KafkaError] = []
        config: dict[str, Any] = producer_config(kafka, "consentry-processor") | {
            "compression.type": "lz4",
            "queue.buffering.max.messages": _QUEUE_MESSAGES,
            "message.max.bytes": _MESSAGE_BYTES_MAX,
            # Successes need no callback each: what was not reported as failed after a full flush,
            # arrived.
            "delivery.report.only.error": True,
            "on_delivery": self._note_failure,
        }
        self._producer = Producer(config)

    def publish(self, partition: int, records: Sequence[Published]) -> None:
        """See Publisher."""
        produce, topic = self._producer.produce, self._records
        for member, record, appended_ms in records:
            try:
                produce(topic, record, member, partition, timestamp=appended_ms)
            except BufferError:
                self._producer.flush(_SETTLE_SECONDS)
                produce(topic, record, member, partition, timestamp=appended_ms)

    def quarantine(self, refusals: Sequence[Refusal]) -> None:
        """See Publisher."""
        head, quarantined = self._catalog.frame_of("Quarantined"), schema("Quarantined")
        for refusal in refusals:
            value = head + quarantined.encode(
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
            headers: Any = kept_headers(refusal.headers, self._place_of(refusal))
            self._producer.produce(self._quarantine, value, key, refusal.partition, headers=headers)

    def _place_of(self, refusal: Refusal) -> dict[str, str]:
        """Where a refused message came from and why it was refused, as headers: nothing of its
        content.
        """
        schema_id = _schema_id(refusal.value)
        known = {} if schema_id is None else {"schema_id": str(schema_id)}
        return known | {
            "orig.topic": self._source,
            "orig.partition": str(refusal.partition),
            "orig.offset": str(refusal.offset),
            "orig.timestamp": str(refusal.appended_at // 1000),
            "error_class": refusal.error_class,
            "app_version": self._version,
        }

    def settle(self) -> None:
        """See Publisher."""
        left = self._producer.flush(_SETTLE_SECONDS)
        failed, self._failed = self._failed, []
        if left:
            self._producer.purge()
            self._producer.flush(1.0)
            self._failed = []
        if failed or left:
            error = KafkaException(failed[0]) if failed else TimeoutError("time-out")
            raise unavailable(f"acknowledge {len(failed) or left} records", error)

    def send(self, topic: str, key: bytes, value: bytes, partition: int) -> None:
        """Queue one message of another topic without waiting for it."""
        self._producer.produce(topic, value, key, partition)
        self._producer.poll(0)

    def close(self) -> None:
        """Wait a moment for what is queued."""
        self._producer.flush(5.0)

    def _note_failure(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed.append(error)


def _schema_id(value: bytes | None) -> int | None:
    if value is None or len(value) < 5 or value[0] != 0 or value[1] >= 0x80:
        return None
    return int.from_bytes(value[1:5], "big")
