"""Sending: every message is told once what became of it.

The client is real, the broker is librdkafka's own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import pytest
from confluent_kafka import KafkaError, KafkaException
from tests.sizes import PATIENCE

from consentry.domain.errors import Refused, Unavailable
from consentry.kafka.sender import QueueFull, Sender, TopicPosition, Undelivered

BROKER: Final = {"bootstrap.servers": "made-by-librdkafka", "test.mock.num.brokers": "1"}
Outcome = TopicPosition | Undelivered


@contextmanager
def silent_broker() -> Iterator[dict[str, str]]:
    """The settings for a broker that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {"bootstrap.servers": f"127.0.0.1:{listener.getsockname()[1]}"}


def wait_for(look: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return as soon as `look` is true."""
    until = time.monotonic() + PATIENCE * seconds
    while not look():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def send_numbers(
    sender: Sender, count: int, told: Callable[[int, Outcome], None], *, first: int = 0
) -> None:
    """Send so many messages of one member; each tells its number."""
    for number in range(first, first + count):
        sender.send("t", b"member", b"%d" % number, [], partial(told, number))


def test_every_message_is_told_once_where_it_stands() -> None:
    """Whoever is told of another message's offset gives out a token that does not cover their
    own.
    """
    outcomes: list[tuple[int, Outcome]] = []
    sender = Sender(BROKER, "test")
    try:
        send_numbers(sender, 500, lambda number, outcome: outcomes.append((number, outcome)))
        assert sender.flush(20) == 0
        wait_for(lambda: len(outcomes) == 500)
        assert sender.waiting == 0
    finally:
        sender.close()
    partition = outcomes[0][1].partition  # type: ignore[union-attr] # checked below
    assert outcomes == [(number, TopicPosition(partition, number)) for number in range(500)]


def test_a_broker_that_never_answers_leaves_it_unknown() -> None:
    """A caller told *refused* would make a new event of what may stand in the log."""
    outcomes: list[Outcome] = []
    with silent_broker() as kafka:
        sender = Sender(kafka, "test", delivery_timeout_ms=300)
        try:
            send_numbers(sender, 3, lambda _, outcome: outcomes.append(outcome))
            wait_for(lambda: len(outcomes) == 3)
        finally:
            sender.close(0)
    for outcome in outcomes:
        assert isinstance(outcome, Undelivered)
        assert outcome.is_unknown
        assert outcome.code == "kafka.unavailable"


def test_a_full_queue_takes_nothing_and_tells_nothing() -> None:
    """A service that may not know that the queue is full answers *accepted* for what is lost at its
    end.
    """
    told: list[int] = []
    with silent_broker() as kafka:
        sender = Sender(kafka, "test", queue_messages=2)
        try:
            send_numbers(sender, 2, lambda number, _: told.append(number))
            with pytest.raises(QueueFull, match=r"kafka\.queue_full"):
                send_numbers(sender, 1, lambda number, _: told.append(number), first=2)
            assert sender.waiting == 2
        finally:
            sender.close(0)
    assert sorted(told) == [0, 1]


def test_closing_tells_everybody_who_still_waits() -> None:
    """A request that is never answered hangs until its client gives up, and nobody knows whether it
    counts.
    """
    outcomes: list[Outcome] = []
    with silent_broker() as kafka:
        sender = Sender(kafka, "test")
        send_numbers(sender, 20, lambda _, outcome: outcomes.append(outcome))
        sender.close(0.1)
    assert len(outcomes) == 20
    assert all(isinstance(outcome, Undelivered) and outcome.is_unknown for outcome in outcomes)
    with pytest.raises(Refused, match=r"kafka\.sender_closed"):
        send_numbers(sender, 1, lambda _, outcome: outcomes.append(outcome))
    sender.close(0.1)
    assert len(outcomes) == 20


def test_a_caller_that_fails_when_told_silences_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One bug in one service's callback would stop every acknowledgement after it."""
    told: list[int] = []

    def fail_at_first(number: int, _outcome: Outcome) -> None:
        told.append(number)
        if number == 0:
            raise ValueError("a caller's mistake")

    sender = Sender(BROKER, "test")
    try:
        send_numbers(sender, 50, fail_at_first)
        wait_for(lambda: len(told) == 50)
        send_numbers(sender, 1, fail_at_first, first=50)
        wait_for(lambda: len(told) == 51)
    finally:
        sender.close()
    assert told == list(range(51))
    assert "a caller's mistake" in caplog.text


def test_threads_may_share_a_sender() -> None:
    """A service's worker threads send at the same time: each has to hear of its own message."""
    outcomes: dict[int, Outcome] = {}
    sender = Sender(BROKER, "test")
    threads = [
        threading.Thread(
            target=send_numbers, args=(sender, 200, outcomes.__setitem__), kwargs={"first": first}
        )
        for first in (0, 200, 400)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        wait_for(lambda: len(outcomes) == 600)
    finally:
        sender.close()
    assert (
        len({outcome for outcome in outcomes.values() if isinstance(outcome, TopicPosition)}) == 600
    )


def test_a_forked_child_is_refused_and_leaves_the_parent_alone() -> None:
    """In a forked worker the message would wait for threads that are not there, and the member's
    choice be lost.
    """
    outcomes: list[Outcome] = []
    sender = Sender(BROKER, "test")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # newer Pythons warn of exactly this
            child = os.fork()
        if child == 0:
            status = 1
            try:
                send_numbers(sender, 1, lambda *_: None)
            except Refused as error:
                status = 42 if error.code == "kafka.forked" else 2
                sender.close()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        send_numbers(sender, 1, lambda _, outcome: outcomes.append(outcome))
        wait_for(lambda: len(outcomes) == 1)
        assert isinstance(outcomes[0], TopicPosition)
    finally:
        sender.close()


def test_after_a_fatal_error_another_producer_takes_over_and_all_are_told() -> None:
    """An idempotent producer that failed fatally never sends again: a service would refuse opt-outs
    until restarted.
    """
    outcomes: list[tuple[int, Outcome]] = []

    def told(number: int, outcome: Outcome) -> None:
        outcomes.append((number, outcome))

    # A gapless producer fails fatally when a message in flight is purged, which is how to get such
    # an error at will.
    sender = Sender(
        BROKER | {"enable.gapless.guarantee": "true", "test.mock.broker.rtt": "300"}, "test"
    )
    failed = sender._producer
    try:
        send_numbers(sender, 1, told)
        assert sender.flush(20) == 0
        send_numbers(sender, 3, told, first=1)
        time.sleep(0.15)  # by now they are on their way to the broker, which takes 300 ms to answer
        failed.purge(in_queue=False)
        wait_for(lambda: len(outcomes) == 4)
        with pytest.raises(Unavailable):
            send_numbers(sender, 1, told, first=4)
        assert sender._producer is not failed
        send_numbers(sender, 1, told, first=5)
        assert sender.flush(20) == 0
    finally:
        sender.close()
    assert [number for number, _ in outcomes] == [0, 1, 2, 3, 5]
    assert [isinstance(outcome, TopicPosition) for _, outcome in outcomes] == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_what_a_replaced_producer_had_on_its_way_is_told_all_the_same() -> None:
    """Replaced and forgotten, it would leave requests without an answer for ever."""
    outcomes: list[tuple[int, Outcome]] = []
    sender = Sender(BROKER | {"test.mock.broker.rtt": "300"}, "test")
    try:
        send_numbers(sender, 1, lambda number, outcome: outcomes.append((number, outcome)))
        assert sender.flush(20) == 0
        send_numbers(sender, 3, lambda number, outcome: outcomes.append((number, outcome)), first=1)
        sender._replace_if_fatal(KafkaException(KafkaError(KafkaError._FATAL)))
        assert sender.waiting >= 3  # librdkafka counts its own notes of them too
        wait_for(lambda: len(outcomes) == 4)
        wait_for(lambda: not sender._retired)
    finally:
        sender.close()
    assert [number for number, _ in outcomes] == [0, 1, 2, 3]
    assert all(isinstance(outcome, TopicPosition) for _, outcome in outcomes)


def test_without_a_thread_nothing_is_told_until_it_is_served_and_closing_tells_the_rest() -> None:
    """An event loop that forgot to serve would leave callers waiting; one that ends must still tell
    them all.
    """
    sender = Sender(BROKER, "test", has_thread=False)
    told: list[object] = []
    for _ in range(2):
        sender.send("t", b"k", b"v", [], told.append)
    time.sleep(0.3)
    assert told == []
    until = time.monotonic() + PATIENCE * 10
    while len(told) < 2 and time.monotonic() < until:
        sender.serve(0.05)
    assert [type(one) for one in told] == [TopicPosition, TopicPosition]
    assert sender.waiting == 0
    sender.send("t", b"k", b"v", [], told.append)
    sender.close()
    assert len(told) == 3
