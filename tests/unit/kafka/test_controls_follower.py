"""The follower of the controls is fresh only where it goes on from what it has read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition
from tests.strategies import NAMESPACE, day, new_catalog, pause

from consentry.domain.values import Micros
from consentry.kafka import controls_follower, follower
from consentry.kafka.controls_follower import ControlsFollower
from consentry.wire.controls import write_control
from consentry.wire.schemas import CONTROLS, topic_name

CATALOG = new_catalog()
NOW = day(9)
TOPIC = topic_name(NAMESPACE, CONTROLS)


class Broker:
    """Stands where the client does: hands out what is put into `messages`;

    `end` is where the topic ends.
    """

    def __init__(self, end: int) -> None:
        self.messages: list[Message] = []
        self.end = end
        self.asked = threading.Semaphore(0)

    def assign(self, _: object) -> None:
        """Nothing has to be assigned."""

    def poll(self, _: float) -> Message | None:
        """The first of what was put in since."""
        return self.messages.pop(0) if self.messages else None

    def consume(self, _: int, seconds: float) -> list[Message]:
        """All the others that were put in since."""
        waiting, self.messages = self.messages, []
        return waiting

    def get_watermark_offsets(
        self, _: TopicPartition, *, timeout: float, cached: bool
    ) -> tuple[int, int]:
        """The beginning and the end."""
        self.asked.release()
        return 0, self.end

    def close(self) -> None:
        """Nothing is open."""


def stored_pause(offset: int) -> Message:
    """The message of a pause at an offset."""
    value = write_control(pause(1, "HK", on=1, name=f"p{offset}"), CATALOG)
    return Message(topic=TOPIC, partition=0, offset=offset, key=b"k", value=value, timestamp=(1, 0))


def broker_report(code: int, offset: int) -> Message:
    """A report of the client about the offset that it reads at."""
    return Message(topic=TOPIC, partition=0, offset=offset, error=KafkaError(code))


@contextmanager
def following(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> Iterator[ControlsFollower]:
    """A follower that follows the broker, and asks it for the end at every turn."""
    monkeypatch.setattr(follower, "Consumer", lambda _: broker)
    monkeypatch.setattr(controls_follower, "_END_SECONDS", 0.0)
    controls = ControlsFollower({}, namespace=NAMESPACE, catalog=CATALOG, clock=lambda: NOW)
    controls.start()
    try:
        yield controls
    finally:
        controls.stop()


def wait_for_two_questions(broker: Broker) -> None:
    """After the second question what the first one's answer meant is settled."""
    while broker.asked.acquire(blocking=False):
        pass
    for _ in range(2):
        assert broker.asked.acquire(timeout=10)


def test_a_follower_that_has_read_all_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing were ever fresh, nothing would ever be allowed, and the other tests here would
    prove nothing.
    """
    broker = Broker(end=2)
    broker.messages = [
        stored_pause(0),
        stored_pause(1),
        broker_report(KafkaError._PARTITION_EOF, 2),
    ]
    with following(monkeypatch, broker) as controls:
        wait_for_two_questions(broker)

        assert (controls.position, controls.fresh_at, controls.is_alive) == (2, NOW, True)
        assert len(controls.controls.log) == 2


def test_a_topic_that_ends_before_what_was_read_is_never_fresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made anew, it holds pauses that are not read here, and one that has read "more than all"
    would not know.
    """
    broker = Broker(end=1)
    broker.messages = [stored_pause(0), stored_pause(1)]
    with following(monkeypatch, broker) as controls:
        wait_for_two_questions(broker)

        assert (controls.position, controls.fresh_at) == (2, Micros(0))


@pytest.mark.parametrize(
    "message",
    [
        broker_report(KafkaError._AUTO_OFFSET_RESET, 2),
        broker_report(KafkaError.OFFSET_OUT_OF_RANGE, 2),
        broker_report(KafkaError._PARTITION_EOF, 0),
        stored_pause(0),
    ],
    ids=["no offset to reset to", "out of range", "ends earlier", "goes back"],
)
def test_a_topic_that_does_not_go_on_from_what_was_read_is_not_followed_further(
    message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause of everything in the new topic stays unheard for ever, and the service calls itself
    alive and fresh.
    """
    broker = Broker(end=2)
    broker.messages = [stored_pause(0), stored_pause(1), message]
    with following(monkeypatch, broker) as controls:
        controls._thread.join(timeout=10)

        assert not controls.is_alive
        assert (controls.position, controls.fresh_at) == (2, Micros(0))


def test_a_broker_that_is_away_for_a_moment_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that ended at every hiccup would have all services restart at once."""
    broker = Broker(end=1)
    broker.messages = [broker_report(KafkaError._ALL_BROKERS_DOWN, -1), stored_pause(0)]
    with following(monkeypatch, broker) as controls:
        wait_for_two_questions(broker)

        assert (controls.position, controls.fresh_at, controls.is_alive) == (1, NOW, True)
