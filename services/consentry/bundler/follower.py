"""Follow records, controls and frontiers into the state that bundles are written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final, Self

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from consentry.bundles import BundleState, Regression, StoredControl
from consentry.domain.errors import Refused, Unavailable, UndecodableEvent
from consentry.kafka.clients import (
    client_config,
    end_offsets,
    follower_config,
    log_identity,
    partition_count,
    stored,
)
from consentry.wire.catalog import Catalog
from consentry.wire.frontiers import read_frontier
from consentry.wire.schemas import CONTROLS, FRONTIERS, RECORDS, topic_name

_BATCH: Final = 5000
_FRONTIERS_TAIL: Final = 20
"""A live partition publishes a frontier every second: its last one is among this many per
partition.
"""
_LOG: Final = structlog.get_logger(__name__)


class BundleFollower:
    """Reads three topics into `state`, on the caller's thread; assigns its partitions itself and
    commits nothing.

    Begins where `state.positions` is (a restored bundle's), else at the beginning. `on_regression`
    hears of each older version of a record that came after a newer one. Use as a context manager,
    or `close` it.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        catalog: Catalog,
        *,
        namespace: str,
        name: str = "bundler",
        state: BundleState | None = None,
        on_regression: Callable[[Regression], None] | None = None,
    ) -> None:
        """Raises Refused where a topic is not there, or is not the one that `state` was read from;

        Unavailable.
        """
        self._topics = {
            topic_name(namespace, topic): topic for topic in (RECORDS, CONTROLS, FRONTIERS)
        }
        self._names = {topic: known for known, topic in self._topics.items()}
        self._name = name
        self._catalog = catalog
        self._on_regression = on_regression
        admin = AdminClient(client_config(kafka, f"consentry-{name}"))
        partitions = partition_count(admin, self._names[RECORDS])
        logs = {
            topic: log_identity(kafka, self._names[topic]).hex() for topic in (RECORDS, CONTROLS)
        }
        # An empty state is one too: it is as false as none, but says which topics it is of.
        self.state = BundleState(partitions, catalog, logs=logs) if state is None else state
        if (self.state.partitions, self.state.logs) != (partitions, logs):
            raise Refused(
                "The topics are not those that the bundle was read from: they were made anew "
                "since.",
                code="bundle.other_log",
                fix="read them from the beginning, and write a snapshot",
            )
        places = [(self._names[topic], 0) for topic in (CONTROLS, FRONTIERS)]
        places += [(self._names[RECORDS], partition) for partition in range(partitions)]
        ends = end_offsets(admin, places)
        self._ends = {
            (self._topics[topic], partition): end for (topic, partition), end in ends.items()
        }
        self._consumer = Consumer(follower_config(kafka, f"consentry-{name}"))
        self._consumer.assign([TopicPartition(*place, self._start_of(*place)) for place in places])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End following."""
        self._consumer.close()

    def _start_of(self, name: str, partition: int) -> int:
        topic = self._topics[name]
        if topic == FRONTIERS:
            tail = self._ends[FRONTIERS, 0] - _FRONTIERS_TAIL * self.state.partitions
            return tail if tail > 0 else OFFSET_BEGINNING
        return self.state.positions.get((topic, partition), OFFSET_BEGINNING)

    def step(self, timeout_seconds: float = 0.1) -> int:
        """Wait at most so long for messages and take in what is there; how many there were.

        Raises Unavailable where the log no longer holds what was to be read next.
        """
        first = self._consumer.poll(timeout_seconds)
        messages = [] if first is None else [first, *self._consumer.consume(_BATCH - 1, 0)]
        records: dict[int, list[Message]] = {}
        for message in messages:
            topic, partition = self._topics.get(message.topic() or "", ""), message.partition() or 0
            error = message.error()
            if error is not None:
                self._note_error(error, topic, partition, message.offset() or 0)
            elif topic == RECORDS:
                records.setdefault(partition, []).append(message)
            else:
                self._apply_other(topic, message)
        for partition, found in records.items():
            self._apply_records(partition, found)
        self.state.settle_frontiers()
        return len(messages)

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that was there at the start has been read."""
        return all(self.state.position(*place) >= end for place, end in self._ends.items())

    def catch_up(self, timeout_seconds: float) -> None:
        """Read everything that was there at the start.

        Raises Unavailable where nothing comes for so long.
        """
        until = monotonic() + timeout_seconds
        while not self.is_caught_up:
            if self.step():
                until = monotonic() + timeout_seconds
            elif monotonic() > until:
                raise Unavailable(
                    f"Reading the records and controls made no progress for {timeout_seconds:.0f} "
                    "s.",
                    code="kafka.stalled",
                    fix="check the broker; the call may be repeated",
                )

    def _apply_records(self, partition: int, messages: Sequence[Message]) -> None:
        whole = [message for message in messages if message.key() and message.value()]
        keys = [bytes(message.key() or b"") for message in whole]
        values = [bytes(message.value() or b"") for message in whole]
        self.state.apply_records(partition, keys, values, self._on_regression)
        self.state.move(RECORDS, partition, (messages[-1].offset() or 0) + 1)

    def _apply_other(self, topic: str, message: Message) -> None:
        found = stored(message)
        if topic == CONTROLS:
            self.state.apply_control(StoredControl(found.offset, found.appended_at, found.value))
            return
        try:
            self.state.freshness.apply(read_frontier(found.value, self._catalog), found.appended_at)
        except UndecodableEvent as error:
            # It proves nothing; the next one comes within a second.
            _LOG.error(
                "follower_unreadable",
                follower=self._name,
                topic=topic,
                error_class=error.error_class,
            )
        self.state.move(topic, found.partition, found.offset + 1)

    def _note_error(self, error: KafkaError, topic: str, partition: int, offset: int) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            self.state.move(topic, partition, offset)
        elif error.fatal() or error.code() in (
            KafkaError._AUTO_OFFSET_RESET,
            KafkaError.OFFSET_OUT_OF_RANGE,
        ):
            raise Unavailable(
                f"The topic {topic} no longer holds what was to be read next: {error.str()}.",
                code="kafka.position_lost",
                fix="read the topics from the beginning, and write a snapshot",
            )
        else:
            _LOG.warning("kafka_error", follower=self._name, detail=error.str())
