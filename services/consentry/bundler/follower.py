"""The bundler's reader of the log: records, controls and frontiers, as the state for bundles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final, Self

import structlog
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from consentry.bundles import BundleState, Regression, StoredControl
from consentry.domain.errors import Refused, Unavailable, UndecodableEvent
from consentry.kafka.clients import client_config, log_identity, partition_count, stored
from consentry.kafka.follower import LogFollower, log_ends, log_partitions, start_offsets
from consentry.wire.catalog import Catalog
from consentry.wire.frontiers import read_frontier
from consentry.wire.schemas import CONTROLS, FRONTIERS, RECORDS, topic_name

_LOG: Final = structlog.get_logger(__name__)


class BundleFollower:
    """The bundler's reader of three topics; keeps `state` up to date on its caller's thread.

    It begins at `state.positions` (those of a restored bundle), else at the beginning.
    `on_regression` is called with each older version of a record that came after a newer one. Use
    it as a context manager, or `close` it.
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
        """Find the ends of the topics, and begin to read.

        Raises Refused where a topic does not exist, or is not the one that `state` was read from;
        Unavailable.
        """
        self._name = name
        self._catalog = catalog
        self._on_regression = on_regression
        admin = AdminClient(client_config(kafka, f"consentry-{name}"))
        partitions = partition_count(admin, topic_name(namespace, RECORDS))
        logs = {
            topic: log_identity(kafka, topic_name(namespace, topic)).hex()
            for topic in (RECORDS, CONTROLS)
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
        followed = log_partitions((CONTROLS, FRONTIERS, RECORDS), partitions)
        ends = log_ends(admin, namespace, followed)
        self._log = LogFollower(
            kafka,
            namespace=namespace,
            name=name,
            starts=start_offsets(ends, self.state.positions),
            positions=self.state.positions,
            ends=ends,
            lost_fix="read the topics from the beginning, and write a snapshot",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the reading of the topics."""
        self._log.close()

    def step(self, timeout_seconds: float = 0.1) -> int:
        """Wait up to `timeout_seconds` for messages, take them in, and return their number.

        Raises PositionLost where the log no longer holds the message that is to be read next.
        """
        messages = self._log.poll(timeout_seconds)
        records: dict[int, list[Message]] = {}
        for topic, message in self._log.data_messages(messages):
            if topic == RECORDS:
                records.setdefault(message.partition() or 0, []).append(message)
            else:
                self._apply_other(topic, message)
        for partition, records_messages in records.items():
            self._apply_records(partition, records_messages)
        self.state.settle_frontiers()
        return len(messages)

    @property
    def is_caught_up(self) -> bool:
        """True once the bundler has read all that was in the topics at the start."""
        return self._log.is_caught_up

    def catch_up(self, timeout_seconds: float) -> None:
        """Read all that was in the topics at the start.

        Raises Unavailable where no message comes for `timeout_seconds`.
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
        complete = [message for message in messages if message.key() and message.value()]
        keys = [bytes(message.key() or b"") for message in complete]
        values = [bytes(message.value() or b"") for message in complete]
        self.state.apply_records(partition, keys, values, self._on_regression)
        self.state.move(RECORDS, partition, (messages[-1].offset() or 0) + 1)

    def _apply_other(self, topic: str, message: Message) -> None:
        stored_message = stored(message)
        offset, appended_at = stored_message.offset, stored_message.appended_at
        if topic == CONTROLS:
            self.state.apply_control(StoredControl(offset, appended_at, stored_message.value))
            return
        try:
            frontier = read_frontier(stored_message.value, self._catalog)
            self.state.freshness.apply(frontier, appended_at)
        except UndecodableEvent as error:
            # It proves nothing; the next one comes within a second.
            _LOG.error(
                "follower_unreadable",
                follower=self._name,
                topic=topic,
                error_class=error.error_class,
            )
        self.state.move(topic, stored_message.partition, offset + 1)
