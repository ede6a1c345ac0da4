"""A view of the controls is fresh only where it goes on from what it has read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition
from tests.strategies import NAMESPACE, day, new_catalog, pause

from consentry.domain.values import Micros
from consentry.kafka import controls_follower as controls_view
from consentry.kafka.controls_follower import ControlsFollower
from consentry.wire.controls import write_control

CATALOG = new_catalog()
NOW = day(9)


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

    def consume(self, _: int, seconds: float) -> list[Message]:
        """All that was put in since."""
        given, self.messages = self.messages, []
        return given

    def get_watermark_offsets(
        self, _: TopicPartition, *, timeout: float, cached: bool
    ) -> tuple[int, int]:
        """The beginning and the end."""
        self.asked.release()
        return 0, self.end

    def close(self) -> None:
        """Nothing is open."""


def said(offset: int) -> Message:
    """A pause at an offset."""
    value = write_control(pause(1, "HK", on=1, name=f"p{offset}"), CATALOG)
    return Message(
        topic="controls", partition=0, offset=offset, key=b"k", value=value, timestamp=(1, 0)
    )


def told(code: int, offset: int) -> Message:
    """What the client tells of the place it reads at."""
    return Message(topic="controls", partition=0, offset=offset, error=KafkaError(code))


@contextmanager
def following(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> Iterator[ControlsFollower]:
    """A view that follows the broker, and asks it for the end at every turn."""
    monkeypatch.setattr(controls_view, "Consumer", lambda _: broker)
    monkeypatch.setattr(controls_view, "_ASK_SECONDS", 0.0)
    view = ControlsFollower({}, namespace=NAMESPACE, catalog=CATALOG, clock=lambda: NOW)
    view.start()
    try:
        yield view
    finally:
        view.stop()


def wait_for_two_questions(broker: Broker) -> None:
    """After the second question what the first one's answer meant is settled."""
    while broker.asked.acquire(blocking=False):
        pass
    for _ in range(2):
        assert broker.asked.acquire(timeout=10)


def test_a_view_that_has_read_all_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing were ever fresh, nothing would ever be allowed, and the other tests here would
    prove nothing.
    """
    broker = Broker(end=2)
    broker.messages = [said(0), said(1), told(KafkaError._PARTITION_EOF, 2)]
    with following(monkeypatch, broker) as view:
        wait_for_two_questions(broker)

        assert (view.position, view.fresh_at, view.is_alive) == (2, NOW, True)
        assert len(view.controls.log) == 2


def test_a_topic_that_ends_before_what_was_read_is_never_fresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made anew, it holds pauses that are not read here, and a view that has read "more than all"
    would not know.
    """
    broker = Broker(end=1)
    broker.messages = [said(0), said(1)]
    with following(monkeypatch, broker) as view:
        wait_for_two_questions(broker)

        assert (view.position, view.fresh_at) == (2, Micros(0))


@pytest.mark.parametrize(
    "message",
    [
        told(KafkaError._AUTO_OFFSET_RESET, 2),
        told(KafkaError.OFFSET_OUT_OF_RANGE, 2),
        told(KafkaError._PARTITION_EOF, 0),
        said(0),
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
    broker.messages = [said(0), said(1), message]
    with following(monkeypatch, broker) as view:
        view._thread.join(timeout=10)

        assert not view.is_alive
        assert (view.position, view.fresh_at) == (2, Micros(0))


def test_a_broker_that_is_away_for_a_moment_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view that ended at every hiccup would have all services restart at once."""
    broker = Broker(end=1)
    broker.messages = [told(KafkaError._ALL_BROKERS_DOWN, -1), said(0)]
    with following(monkeypatch, broker) as view:
        wait_for_two_questions(broker)

        assert (view.position, view.fresh_at, view.is_alive) == (1, NOW, True)
