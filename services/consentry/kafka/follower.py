"""A follower of Kafka topics: reads from given offsets, notes how far each partition is read.

It reads on the thread of its caller, who takes the messages in. A trainer's client, the bundler and
the services that follow the controls all read the log through it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from consentry.domain.errors import Unavailable
from consentry.kafka.clients import end_offsets, follower_config, unavailable
from consentry.wire.schemas import FRONTIERS, RECORDS, topic_name

LogPartition = tuple[str, int]
"""The short name of a topic, such as `records`, and one of its partitions."""

BATCH_MESSAGES: Final = 5000
_FRONTIERS_TAIL: Final = 20
"""A live partition publishes a frontier every second: its last one is among this many per
partition of records.
"""
_POSITION_LOST: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_LOG: Final = structlog.get_logger(__name__)


class PositionLost(Unavailable):
    """Raised when a Kafka topic no longer holds the message that is to be read next."""

    def __init__(self, topic: str, detail: str, *, offset: int | None, fix: str) -> None:
        super().__init__(
            f"The topic {topic} no longer holds the message that is to be read next: {detail}.",
            code="kafka.position_lost",
            fix=fix,
        )
        self.offset = offset


def log_partitions(topics: Iterable[str], records_partitions: int) -> list[LogPartition]:
    """Return every Kafka partition of these topics.

    `records` has the given number, each other topic has one.
    """
    partitions: list[LogPartition] = []
    for topic in topics:
        count = 1
        if topic == RECORDS:
            count = records_partitions
        partitions += [(topic, partition) for partition in range(count)]
    return partitions


def log_ends(
    admin: AdminClient, namespace: str, partitions: Iterable[LogPartition]
) -> dict[LogPartition, int]:
    """Return the end offset (exclusive) of each Kafka partition now. Raises Unavailable."""
    full_names: dict[tuple[str, int], LogPartition] = {}
    for topic, partition in partitions:
        full_names[topic_name(namespace, topic), partition] = (topic, partition)
    offsets = end_offsets(admin, full_names)
    return {full_names[full_name]: offset for full_name, offset in offsets.items()}


def start_offsets(
    ends: Mapping[LogPartition, int],
    positions: Mapping[LogPartition, int],
    *,
    always_whole: Collection[str] = (),
) -> dict[LogPartition, int]:
    """Return the offset at which to begin to read each Kafka partition in `ends`.

    That is the position, or the beginning where there is none. A topic in `always_whole` is read
    from its beginning in any case. Of the frontiers only the tail is read: an old one proves
    nothing.
    """
    records_partitions = sum(topic == RECORDS for topic, _ in ends)
    starts: dict[LogPartition, int] = {}
    for (topic, partition), end in ends.items():
        if topic == FRONTIERS:
            start = end - _FRONTIERS_TAIL * records_partitions
            if start <= 0:
                start = OFFSET_BEGINNING
        elif topic in always_whole:
            start = OFFSET_BEGINNING
        else:
            start = positions.get((topic, partition), OFFSET_BEGINNING)
        starts[topic, partition] = start
    return starts


class LogFollower:
    """Reads Kafka partitions of our topics; joins no consumer group, and commits nothing.

    The topics are those of one namespace.

    Call `poll` for messages and `data_messages` for those that carry something; once a message is
    taken in, call `move`. `positions` is the caller's own dict, the next offset per partition; only
    `move` and the end of a partition change it, and never downwards.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        *,
        namespace: str,
        name: str,
        starts: Mapping[LogPartition, int],
        positions: dict[LogPartition, int],
        ends: Mapping[LogPartition, int] | None = None,
        lost_fix: str,
        never_goes_back: bool = False,
    ) -> None:
        """Begin at `starts`; `ends` are the offsets that count as caught up.

        `lost_fix` is the `fix` of PositionLost. With `never_goes_back` an offset below the position
        counts as lost too: the topic was truncated or made anew. That is not for a follower that
        reads a topic again from its beginning.
        """
        self.positions = positions
        self.ends = dict(ends or {})
        self.reached_ends: set[LogPartition] = set()
        """Partitions whose end the broker has reported at least once."""
        self._name = name
        self._lost_fix = lost_fix
        self._never_goes_back = never_goes_back
        self._full_names = {topic: topic_name(namespace, topic) for topic, _ in starts}
        self._short_names = {full_name: topic for topic, full_name in self._full_names.items()}
        assignment: list[TopicPartition] = []
        for (topic, partition), offset in starts.items():
            full_name = self._full_names[topic]
            assignment.append(TopicPartition(full_name, partition, offset))
        self._consumer = Consumer(follower_config(kafka, f"consentry-{name}"))
        self._consumer.assign(assignment)

    def close(self) -> None:
        """Close the Kafka consumer."""
        self._consumer.close()

    def poll(self, timeout_seconds: float) -> list[Message]:
        """Return Kafka messages, at most BATCH_MESSAGES, once one came or the time is up."""
        first = self._consumer.poll(timeout_seconds)
        if first is None:
            return []
        return [first, *self._consumer.consume(BATCH_MESSAGES - 1, 0)]

    def data_messages(self, messages: Sequence[Message]) -> Iterator[tuple[str, Message]]:
        """Yield the Kafka messages that carry something, in order, each with its topic's name.

        The name is the short one.

        The end of a partition moves its position. Other reports of the broker are logged: the
        client tries again by itself. Raises PositionLost at the message that shows it; what was
        yielded before is still good.
        """
        for message in messages:
            topic = self._short_names.get(message.topic() or "", "")
            error = message.error()
            if error is None:
                if self._never_goes_back:
                    self._check_goes_on(topic, message)
                yield topic, message
            elif error.code() == KafkaError._PARTITION_EOF:
                if self._never_goes_back:
                    self._check_goes_on(topic, message)
                partition = message.partition() or 0
                self.move(topic, partition, message.offset() or 0)
                self.reached_ends.add((topic, partition))
            elif error.fatal() or error.code() in _POSITION_LOST:
                raise PositionLost(topic, error.str(), offset=message.offset(), fix=self._lost_fix)
            else:
                _LOG.warning("kafka_error", follower=self._name, detail=error.str())

    def _check_goes_on(self, topic: str, message: Message) -> None:
        position = self.position(topic, message.partition() or 0)
        offset = message.offset()
        if offset is not None and offset < position:
            raise PositionLost(
                topic,
                f"it went back to {offset} from {position}",
                offset=offset,
                fix=self._lost_fix,
            )

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset to read of a Kafka partition; everything below is taken in."""
        return self.positions.get((topic, partition), 0)

    def move(self, topic: str, partition: int, position: int) -> None:
        """Note that everything below `position` of a Kafka partition has been taken in."""
        key = (topic, partition)
        self.positions[key] = max(position, self.positions.get(key, 0))

    @property
    def is_caught_up(self) -> bool:
        """True once every Kafka partition is read to the end that it had at the start."""
        return all(
            self.position(topic, partition) >= end for (topic, partition), end in self.ends.items()
        )

    def end_now(self, topic: str, partition: int, *, timeout_seconds: float) -> int:
        """Return a Kafka partition's end offset (exclusive) as of now. Raises Unavailable."""
        log_partition = TopicPartition(self._full_names[topic], partition)
        try:
            _, end = self._consumer.get_watermark_offsets(
                log_partition, timeout=timeout_seconds, cached=False
            )
        except KafkaException as error:
            raise unavailable("report its offsets", error) from error
        return end
