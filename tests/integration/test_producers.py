"""The SDK on the real stack: an acknowledged event is in the log and heeded, and every other
outcome is told.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as cloudevents_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from tests.stack import (
    PARTITIONS,
    PURPOSE,
    World,
    allowed,
    chose,
    lives_in,
    opted_out,
    reason,
    wait_for,
)

from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated
from consentry.domain.values import AgeBand, Choice, Micros
from consentry.kafka.clients import follower_config, log_identity
from consentry.kafka.sender import QueueFull
from consentry.producer import AsyncConsentProducer, ConsentProducer, EventUndelivered
from consentry.wire.events import read_event, write_event
from consentry.wire.partitions import partition_of
from consentry.wire.records import version_of
from consentry.wire.schemas import MEMBER_EVENTS
from consentry.wire.tokens import TokenKeys, read_token

pytestmark = pytest.mark.stack

MOMENT = datetime(2024, 10, 11, 8, 30, tzinfo=UTC)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def open_producer(world: World, **more: Any) -> ConsentProducer:
    """A producer of this namespace, as a service opens it."""
    settings: dict[str, Any] = {
        "registry_url": world.stack.addresses.registry_url,
        "source": "settings-web",
    }
    return ConsentProducer(world.kafka, namespace=world.namespace, **settings | more)


@contextmanager
def frozen_broker(world: World) -> Iterator[None]:
    """Our broker stands still meanwhile: it keeps its connections and answers nobody."""
    broker = world.stack.processes["kafka"]
    os.kill(broker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker, signal.SIGCONT)


def headers_of(message: Message) -> dict[str, bytes]:
    """A message's headers; each of ours has a value, and a name of its own."""
    found: Any = message.headers() or []
    return dict(found)


def messages(world: World, count: int) -> list[Message]:
    """The first messages of member-events with their headers, partition by partition."""
    consumer = Consumer(follower_config(world.kafka, "test") | {"enable.partition.eof": False})
    try:
        topic = world.topic(MEMBER_EVENTS)
        consumer.assign(
            [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)]
        )
        found: list[Message] = []

        def look() -> bool:
            found.extend(consumer.consume(count - len(found), 0.2))
            return len(found) >= count

        wait_for(look, f"{count} messages")
        return found
    finally:
        consumer.close()


def test_every_statement_reaches_the_log_as_the_event_that_it_says(world: World) -> None:
    """A statement that is written as another one is somebody else's decision about a member."""
    with open_producer(world) as producer:
        accepted = [
            producer.opt_out(
                "anna", PURPOSE, notice_version="2025-11", evidence="ticket-7", legal_basis="OTHER"
            ),
            producer.opt_in("bo", PURPOSE, observed_version=3, effective_at=MOMENT),
            producer.clear_choice("cy", PURPOSE),
            producer.relocate("di", "US-CA", age_band=AgeBand.ADULT),
            producer.erase("ed"),
        ]
    by_place = {(stored.partition, stored.offset): stored for stored in world.log()}
    found = []
    for acceptance in accepted:
        stored = by_place.pop((acceptance.partition, acceptance.offset))
        event = read_event(stored.value, stored.key or b"", world.catalog)
        assert event.event_id == acceptance.event_id.bytes
        assert abs(event.recorded_at - acceptance.accepted_at) < 30_000_000
        found.append(event)
    assert by_place == {}
    anna, bo, cy, di, ed = found
    assert isinstance(anna, ConsentChanged)
    assert (anna.choice, anna.purpose, anna.source) == (Choice.OPT_OUT, PURPOSE, "settings-web")
    assert (anna.notice_version, anna.evidence, anna.legal_basis) == (
        "2025-11",
        "ticket-7",
        "OTHER",
    )
    assert anna.effective_at == anna.recorded_at
    assert isinstance(bo, ConsentChanged)
    assert (bo.choice, bo.observed_version, bo.effective_at) == (
        Choice.OPT_IN,
        3,
        MOMENT.timestamp() * 1_000_000,
    )
    assert isinstance(cy, ConsentChanged)
    assert cy.choice is Choice.UNKNOWN
    assert isinstance(di, MemberRelocated)
    assert (di.jurisdiction, di.age_band) == ("US-CA", AgeBand.ADULT)
    assert isinstance(ed, MemberErased)


def test_whoever_passes_the_token_on_is_answered_with_the_choice_in_it(world: World) -> None:
    """Without it a training job that starts right after the opt-out would still read the member's
    data.
    """
    keys = TokenKeys({1: b"k" * 32})
    world.processor()
    world.open_policy()
    client = world.client()
    with open_producer(world, token_keys=keys) as producer:
        producer.relocate("anna", "US", age_band=AgeBand.ADULT)
        wait_for(lambda: allowed(client, "anna"), "allowed")
        acceptance = producer.opt_out("anna", PURPOSE)
        found = client.decide("anna", purpose=PURPOSE, at_least=acceptance.token, wait_seconds=20)
    assert found.reason.value == "OPTED_OUT"
    token = read_token(acceptance.token, keys)
    assert token.offsets == {acceptance.partition: acceptance.offset + 1}
    assert token.log == log_identity(world.kafka, world.topic(MEMBER_EVENTS))
    assert "anna" not in repr(acceptance)


def test_a_repeated_event_counts_once(world: World) -> None:
    """A retry that counted anew would outlive a lift, or undo what the member said since."""
    world.processor()
    client = world.client()
    event_id = uuid.uuid4()
    with open_producer(world) as producer:
        for _ in range(3):
            producer.opt_out("anna", PURPOSE, event_id=event_id, effective_at=MOMENT)
        event = chose("anna", Choice.UNKNOWN)
        producer.send(event)
        producer.send(event)
    wait_for(
        lambda: (
            b"anna" in client.snapshot.records and version_of(client.snapshot.records[b"anna"]) == 2
        ),
        "two events",
    )
    world.assert_all_agree(client)
    assert reason(client, "anna") != "QUARANTINED"


def test_an_event_id_without_its_time_is_refused(world: World) -> None:
    """Repeated with another time it would be another content under the same id, and hold the
    member.
    """
    with open_producer(world) as producer:
        with pytest.raises(InvalidInput, match=r"producer\.id_without_time"):
            producer.opt_out("anna", PURPOSE, event_id=uuid.uuid4())
        with pytest.raises(InvalidInput, match=r"producer\.naive_time"):
            producer.erase("anna", effective_at=datetime(2024, 1, 1))  # noqa: DTZ001 - what is refused
    assert world.log() == []


def test_what_no_reader_would_take_is_refused_before_it_is_sent(world: World) -> None:
    """Sent all the same it would hold the member until an operator comes."""
    with open_producer(world) as producer:
        statements: list[Callable[[], object]] = [
            lambda: producer.opt_out("a@example.org", PURPOSE),
            lambda: producer.opt_out("anna", "Gen AI"),
            lambda: producer.opt_in("anna", PURPOSE, observed_version=-1),
            lambda: producer.relocate("anna", "EEA"),
            lambda: producer.erase("anna", effective_at=Micros(1_750_000_000)),
        ]
        for refused in statements:
            with pytest.raises(InvalidInput, match=r"event\.") as refusal:
                refused()
            assert "example.org" not in str(refusal.value)
            assert "anna" not in str(refusal.value)
    assert world.log() == []


def test_many_events_are_accepted_in_order_and_waited_for_where_the_queue_is_short(
    world: World,
) -> None:
    """An import that overruns its own queue would lose the opt-outs at its end."""
    events = [opted_out(f"m{number % 50}") for number in range(3000)]
    with open_producer(world, queue_messages=100) as producer:
        accepted = producer.send_all(iter(events))
    assert [acceptance.identity for acceptance in accepted] == [event.event_id for event in events]
    by_place = {(stored.partition, stored.offset): stored.key for stored in world.log()}
    assert len(by_place) == 3000
    for event, acceptance in zip(events, accepted, strict=True):
        assert by_place[acceptance.partition, acceptance.offset] == event.member.encode()
        assert acceptance.partition == partition_of(event.member.encode(), PARTITIONS)
    for member in range(50):
        offsets = [acceptance.offset for acceptance in accepted[member::50]]
        assert offsets == sorted(offsets)


def test_an_unreadable_event_among_many_stops_after_those_before_it(world: World) -> None:
    """Dropped in silence it would be a choice that nobody heeds."""
    events = [
        opted_out("a"),
        opted_out("b"),
        replace(opted_out("c"), purpose="Gen AI"),
        opted_out("d"),
    ]
    with open_producer(world) as producer:
        with pytest.raises(InvalidInput, match=r"event\.purpose") as refusal:
            producer.send_all(events)
        assert refusal.value.__notes__ == ["2 events before it were accepted."]
    assert sorted(stored.key or b"" for stored in world.log()) == [b"a", b"b"]


def test_while_the_broker_stands_still_nothing_is_accepted_and_the_very_same_event_is_right_afterwards(
    world: World,
) -> None:
    """*Accepted* for an event that is not in the log is a member who believes to have opted out and
    has not.
    """
    world.processor().wait_ready()  # one that starts on a frozen broker ends, for its supervisor
    client = world.client()
    with open_producer(world, delivery_timeout_seconds=5) as producer:
        producer.relocate("anna", "US", age_band=AgeBand.ADULT)
        with frozen_broker(world):
            with pytest.raises(EventUndelivered) as failure:
                producer.opt_out("anna", PURPOSE)
            many = [opted_out("bo"), opted_out("cy")]
            with pytest.raises(EventUndelivered) as failures:
                producer.send_all(many)
        assert failure.value.is_unknown
        assert "anna" not in str(failure.value)
        assert failures.value.unacknowledged == tuple(many)
        assert failures.value.accepted == ()
        again = producer.send(failure.value.event)
        assert again.event_id.bytes == failure.value.event.event_id
        producer.send_all(failures.value.unacknowledged)
    wait_for(lambda: reason(client, "anna") in ("OPTED_OUT", "NO_TERMS"), "anna", seconds=40)
    wait_for(lambda: {b"anna", b"bo", b"cy"} <= client.snapshot.records.keys(), "all three")
    world.assert_all_agree(client)
    assert version_of(client.snapshot.records[b"anna"]) == 2


def test_a_full_queue_is_told_and_nothing_is_taken(world: World) -> None:
    """A request that waited for ever, or was lost in silence, would leave the member without an
    answer.
    """
    with open_producer(world, queue_messages=1, delivery_timeout_seconds=3) as producer:
        producer.relocate("anna", "US")
        wait_for(lambda: producer._sender.waiting == 0, "an empty queue")
        with frozen_broker(world):
            waiting = threading.Thread(target=lambda: _ignore_undelivered(producer, "bo"))
            waiting.start()
            wait_for(lambda: producer._sender.waiting == 1, "one in the queue")
            with pytest.raises(QueueFull):
                producer.opt_out("anna", PURPOSE)
        waiting.join(20)
        wait_for(lambda: producer._sender.waiting == 0, "an empty queue again")
        assert producer.opt_out("anna", PURPOSE).offset > 0


def _ignore_undelivered(producer: ConsentProducer, member: str) -> None:
    with suppress(EventUndelivered):
        producer.opt_out(member, PURPOSE)


def test_threads_may_share_a_producer(world: World) -> None:
    """Each request of a web service has to be told the place of its own event."""
    accepted: dict[str, tuple[int, int]] = {}

    def work(first: int) -> None:
        for number in range(first, first + 40):
            acceptance = producer.opt_out(f"m{number}", PURPOSE)
            accepted[f"m{number}"] = (acceptance.partition, acceptance.offset)

    with open_producer(world) as producer:
        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert accepted == {
        (stored.key or b"").decode(): (stored.partition, stored.offset) for stored in world.log()
    }
    assert len(accepted) == 80


def test_a_closed_producer_and_one_of_a_parent_process_are_refused(world: World) -> None:
    """Both would take the event and never send it."""
    with open_producer(world) as producer:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # newer Pythons warn of exactly this
            child = os.fork()
        if child == 0:
            status = 1
            try:
                producer.opt_out("anna", PURPOSE)
            except Refused as error:
                status = 42 if error.code == "kafka.forked" else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    with pytest.raises(Refused, match=r"kafka\.sender_closed"):
        producer.opt_out("anna", PURPOSE)
    assert world.log() == []


def test_nothing_is_registered_and_no_topic_made_by_sending(bare: World) -> None:
    """A producer that registers whatever it has can break every reader, and one that makes topics
    makes them wrong.
    """
    with pytest.raises(Refused, match="consentry schemas register"):
        open_producer(bare)
    with pytest.raises(Refused, match="topics apply"):
        open_producer(bare, catalog=_foreign_catalog())
    with pytest.raises(InvalidInput, match=r"producer\.no_registry"):
        open_producer(bare, registry_url=None)
    assert bare.topics() == set()
    with pytest.raises(Refused, match="consentry schemas register"):
        open_producer(bare)


def _foreign_catalog() -> Any:
    from tests.strategies import new_catalog

    return new_catalog()


def test_the_headers_are_a_cloud_event_and_none_names_the_member(world: World) -> None:
    """Headers are what consoles, routers and logs show: who reads them there must not learn who
    chose.
    """
    with open_producer(world) as producer:
        producer.opt_out("anna:secret", PURPOSE, traceparent=TRACE)
        producer.send_all([lives_in("bo")], traceparent="no-trace")
    anna, bo = sorted(messages(world, 2), key=lambda message: message.key() or b"")
    headers = headers_of(anna)
    assert headers["traceparent"] == TRACE.encode()
    assert "traceparent" not in headers_of(bo)
    for message in (anna, bo):
        assert not any((message.key() or b"") in value for value in headers_of(message).values())
    event = cloudevents_kafka.from_binary_event(
        cloudevents_kafka.KafkaMessage(headers=headers, key=None, value=anna.value() or b"")
    )
    sent = read_event(anna.value(), b"anna:secret", world.catalog)
    assert event.get_specversion() == "1.0"
    assert event.get_id() == str(uuid.UUID(bytes=sent.event_id))
    assert event.get_type() == "consentry.ConsentChanged"
    assert event.get_source() == "/settings-web"
    assert event.get_datacontenttype() == "application/avro"
    assert event.get_extension("partitionkey") is None


def test_an_import_without_headers_is_the_same_to_whoever_reads_it(world: World) -> None:
    """A header that decided something would make two kinds of events."""
    events = [opted_out(f"m{number}") for number in range(5)]
    with open_producer(world, with_headers=False) as producer:
        producer.send_all(events)
    found = messages(world, 5)
    assert [headers_of(message) for message in found] == [{}] * 5
    assert {message.key(): message.value() for message in found} == {
        event.member.encode(): write_event(event, world.catalog) for event in events
    }


def test_what_fails_while_events_are_made_waits_for_those_on_their_way(world: World) -> None:
    """A reader of a file that breaks in the middle leaves its caller not knowing what was sent."""

    def read() -> Iterator[ConsentChanged]:
        for number in range(100):
            yield opted_out(f"m{number}")
        raise OSError("the file ends here")

    with open_producer(world) as producer:
        with pytest.raises(OSError, match="ends here") as failure:
            producer.send_all(read())
        assert failure.value.__notes__ == ["100 events before it were accepted."]
        assert producer._sender.waiting == 0
    assert len(world.log()) == 100


def test_the_current_span_is_what_the_event_belongs_to(world: World) -> None:
    """Without it nobody finds the request that made an event."""
    from opentelemetry import trace

    context = trace.SpanContext(
        trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736,
        span_id=0x00F067AA0BA902B7,
        is_remote=False,
        trace_flags=trace.TraceFlags(1),
    )
    with open_producer(world) as producer:
        with trace.use_span(trace.NonRecordingSpan(context)):
            producer.opt_out("anna", PURPOSE)
        producer.opt_out("anna", PURPOSE)
    with_span, without = messages(world, 2)
    assert headers_of(with_span)["traceparent"] == TRACE.encode()
    assert "traceparent" not in headers_of(without)


def test_the_asyncio_producer_does_the_same_without_making_the_loop_wait(world: World) -> None:
    """A settings service that stands still during each acknowledgement would serve one member at a
    time.
    """

    async def work() -> list[Any]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.002)
                beats += 1

        async with AsyncConsentProducer(
            world.kafka,
            source="settings-web",
            registry_url=world.stack.addresses.registry_url,
            namespace=world.namespace,
        ) as producer:
            beating = asyncio.create_task(beat())
            one = await producer.opt_out("anna", PURPOSE)
            some = await asyncio.gather(
                *(producer.opt_out(f"m{number}", PURPOSE) for number in range(100))
            )
            many = await producer.send_all([opted_out(f"n{number}") for number in range(1000)])
            cancelled = asyncio.create_task(producer.erase("bo"))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            with pytest.raises(InvalidInput):
                await producer.opt_out("not a member", PURPOSE)
            beating.cancel()
        assert beats > 0
        with pytest.raises(Refused, match=r"kafka\.sender_closed"):
            await producer.opt_out("anna", PURPOSE)
        return [one, *some, *many]

    accepted = asyncio.run(work())
    by_place = {(stored.partition, stored.offset): stored for stored in world.log()}
    for acceptance in accepted:
        stored = by_place.pop((acceptance.partition, acceptance.offset))
        event = read_event(stored.value, stored.key or b"", world.catalog)
        assert event.event_id == acceptance.identity
    assert [stored.key for stored in by_place.values()] in ([], [b"bo"])


def test_an_asyncio_producer_that_was_not_opened_is_refused() -> None:
    """Whoever forgets `async with` is told, instead of waiting for nothing."""
    producer = AsyncConsentProducer({}, source="settings-web", registry_url="http://127.0.0.1:1")
    with pytest.raises(Refused, match=r"producer\.not_open"):
        asyncio.run(producer.opt_out("anna", PURPOSE))
