"""The producer SDK that a service embeds: one call, one acknowledged event."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from confluent_kafka import KafkaError, Message

from consentry.domain.errors import InvalidInput
from consentry.domain.events import SentEvent
from consentry.domain.values import Micros
from consentry.kafka.clients import log_identity
from consentry.kafka.schema_registry import HttpRegistry
from consentry.kafka.sender import (
    CLOSE_SECONDS,
    QUEUE_MESSAGES,
    Note,
    QueueFull,
    Sender,
    Undelivered,
)
from consentry.ops.clock import Clock, system_clock
from consentry.producer.acceptance import Acceptance, EventUndelivered, Signer
from consentry.producer.statements import Statements
from consentry.producer.trace_context import traceparent_of
from consentry.wire.catalog import Catalog, load_catalog
from consentry.wire.cloudevents import event_headers
from consentry.wire.event_writer import EventWriter
from consentry.wire.schemas import MEMBER_EVENTS, NAMESPACE, topic_name
from consentry.wire.tokens import TokenKeys

IN_FLIGHT_MAX: Final = 20_000
"""The number of events that send_all sends ahead of the oldest unacknowledged one."""
DELIVERY_TIMEOUT_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 10.0
_FULL_PAUSE_SECONDS: Final = 0.005
_CHECK_EVENTS: Final = 64
_new_tuple: Final = tuple.__new__


class PendingEvent:
    """One event that the producer SDK has sent, and the broker's answer once it has come.

    The answer is noted on the sender's thread and awaited on another. An event without an error
    has its partition and offset.
    """

    __slots__ = ("_waiter", "error", "event", "is_answered", "offset", "partition")

    def __init__(self, event: SentEvent) -> None:
        self.event = event
        self.is_answered = False
        self._waiter: threading.Lock | None = None

    def note(self, error: KafkaError | None, message: Message) -> None:
        """Note the broker's answer, and wake the thread that waits for it."""
        if error is None:
            self.partition = message.partition()
            self.offset = message.offset()
        self.error = error
        self.is_answered = True
        if self._waiter is not None:
            self._waiter.release()

    def wait(self, timeout_seconds: float) -> None:
        """Return when the broker's answer has come, or time is over: then it is timed out."""
        if self.is_answered:
            return
        waiter = threading.Lock()
        waiter.acquire()
        self._waiter = waiter
        # The answer may have come between the first check and now. Then nobody releases the lock,
        # and nobody has to.
        if not self.is_answered and not waiter.acquire(timeout=timeout_seconds):
            self.error = KafkaError(KafkaError._TIMED_OUT)


class ConsentProducer(Statements[Acceptance]):
    """The producer SDK: sends events and waits for the broker's acknowledgement of each.

    Threads may share one; forked children may not.

    `kafka` holds librdkafka's settings for addresses and security. `registry` holds more settings
    of the registry client, unless a `catalog` is given. `source` names the service. With
    `token_keys` the tokens are signed. Headers have no effect on decisions; an import may leave
    them out. Raises Refused (topic or schemas missing; nothing is ever registered from here),
    Unavailable.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        *,
        source: str,
        registry_url: str | None = None,
        registry: Mapping[str, Any] | None = None,
        catalog: Catalog | None = None,
        namespace: str = NAMESPACE,
        token_keys: TokenKeys | None = None,
        clock: Clock = system_clock,
        with_headers: bool = True,
        queue_messages: int = QUEUE_MESSAGES,
        delivery_timeout_seconds: float = DELIVERY_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(source=source, clock=clock)
        if token_keys is not None and not isinstance(token_keys, TokenKeys):
            raise InvalidInput(
                f"token_keys is a {type(token_keys).__name__}, not TokenKeys.",
                code="token.keys",
                fix="pass TokenKeys.read(path), from consentry.producer",
            )
        self._topic = topic_name(namespace, MEMBER_EVENTS)
        self._writer = EventWriter(catalog or catalog_of(registry_url, registry, namespace))
        self._signer = Signer(log_identity(kafka, self._topic), token_keys or TokenKeys())
        self._with_headers = with_headers
        self._wait_seconds = delivery_timeout_seconds + _GRACE_SECONDS
        self._sender = Sender(
            kafka,
            source or "consentry-producer",
            queue_messages=queue_messages,
            delivery_timeout_ms=int(delivery_timeout_seconds * 1000),
        )

    def __enter__(self) -> ConsentProducer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, event: SentEvent, *, traceparent: str | None = None) -> Acceptance:
        """Send an event and wait until it is accepted; an event that was sent before counts once.

        Raises InvalidInput, QueueFull or Unavailable when nothing was sent. Raises
        EventUndelivered, which holds the event, when it was not acknowledged: if `is_unknown` it
        may count already. Sending the very same event again is right in every case.
        """
        pending = PendingEvent(event)
        self._queue(event, traceparent_of(traceparent), pending.note)
        pending.wait(self._wait_seconds)
        return self.acceptance_of(pending)

    def send_all(
        self, events: Iterable[SentEvent], *, traceparent: str | None = None
    ) -> list[Acceptance]:
        """Send many events without waiting for each; return their acceptances, in order.

        Waits where the broker lags. Soon after one event is not acknowledged, no more are sent: it
        waits for those on their way, and raises EventUndelivered with all that were not
        acknowledged. An event that nobody could read raises InvalidInput, after those before it
        were acknowledged. Sending all of them again is right in both cases.
        """
        trace = traceparent_of(traceparent)
        batch = _Batch(self._wait_seconds, self._accept, self._clock)
        queue = self._queue
        try:
            for event in events:
                if batch.is_due and not batch.make_room():
                    break
                pending = PendingEvent(event)
                while True:
                    try:
                        queue(event, trace, pending.note)
                        break
                    except QueueFull:
                        batch.wait_for_room()
                batch.add(pending)
        except Exception as error:
            batch.settle()
            if batch.failed:
                raise self._undelivered(batch.failed, batch.accepted) from error
            error.add_note(f"{len(batch.accepted)} events before it were accepted.")
            raise
        batch.settle()
        if batch.failed:
            raise self._undelivered(batch.failed, batch.accepted)
        return batch.accepted

    def start(
        self,
        event: SentEvent,
        on_answer: Callable[[PendingEvent], None],
        *,
        traceparent: str | None = None,
    ) -> None:
        """Queue an event to send; `on_answer` is called once the broker has answered.

        The call is on the sender's thread.
        """
        pending = PendingEvent(event)

        def note(error: KafkaError | None, message: Message) -> None:
            pending.note(error, message)
            on_answer(pending)

        self._queue(event, traceparent_of(traceparent), note)

    def acceptance_of(self, pending: PendingEvent) -> Acceptance:
        """Return the acceptance of a sent event that is answered. Raises EventUndelivered."""
        if pending.error is not None:
            raise self._undelivered([pending], [])
        return self._accept(pending, self._clock())

    def flush(self, timeout_seconds: float) -> int:
        """Wait until every queued event is acknowledged, or the time is over.

        Returns the number of events that are still not acknowledged.
        """
        return self._sender.flush(timeout_seconds)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Wait for events that other threads have sent, or until time is over, then end.

        Events that are sent later are refused.
        """
        self._sender.close(timeout_seconds)

    def _take(self, event: SentEvent, traceparent: str | None) -> Acceptance:
        return self.send(event, traceparent=traceparent)

    def _queue(self, event: SentEvent, traceparent: str | None, note: Note) -> None:
        value = self._writer.write(event)
        headers: list[tuple[str, bytes]] = []
        if self._with_headers:
            headers = event_headers(event, traceparent=traceparent)
        self._sender.produce(self._topic, event.member.encode(), value, headers, note)

    def _accept(self, pending: PendingEvent, accepted_at: Micros) -> Acceptance:
        # The constructor of a NamedTuple is a Python function; this is what it does, faster.
        event_id = pending.event.event_id
        fields = (event_id, pending.partition, pending.offset, accepted_at, self._signer)
        return _new_tuple(Acceptance, fields)

    def _undelivered(
        self, failed: Sequence[PendingEvent], accepted: Sequence[Acceptance]
    ) -> EventUndelivered:
        failures: list[Undelivered] = []
        for pending in failed:
            if pending.error is not None:
                failures.append(Undelivered(self._topic, pending.error))
        return EventUndelivered(
            failures[0],
            [pending.event for pending in failed],
            is_unknown=any(failure.is_unknown for failure in failures),
            accepted=accepted,
        )


class _Batch:
    """The events of one send_all: on their way (in order), accepted, or failed."""

    def __init__(
        self,
        wait_seconds: float,
        accept: Callable[[PendingEvent, Micros], Acceptance],
        clock: Clock,
    ) -> None:
        self._wait_seconds = wait_seconds
        self._accept = accept
        self._clock = clock
        self._waiting: deque[PendingEvent] = deque()
        self._added = 0
        self.is_due = False
        self.accepted: list[Acceptance] = []
        self.failed: list[PendingEvent] = []

    def add(self, pending: PendingEvent) -> None:
        """Add an event that was sent."""
        self._waiting.append(pending)
        self._added += 1
        # To look for answers after every event would cost as much as the sending.
        self.is_due = self._added % _CHECK_EVENTS == 0

    def make_room(self) -> bool:
        """Sort the answered events; return False once an event was not acknowledged."""
        self._sort_answered()
        if len(self._waiting) >= IN_FLIGHT_MAX:
            self.wait_for_room()
        return not self.failed

    def wait_for_room(self) -> None:
        """Wait while too many events are on their way, ours or another thread's.

        Waits for a good part of ours at once: waiting for one at a time would hand the interpreter
        to and fro for each event.
        """
        if self._waiting:
            quarter = len(self._waiting) // 4
            self._waiting[quarter].wait(self._wait_seconds)
            self._sort_answered(at_least=1)
        else:
            time.sleep(_FULL_PAUSE_SECONDS)

    def settle(self) -> None:
        """Wait for the answers of all events."""
        self._sort_answered(at_least=len(self._waiting))

    def _sort_answered(self, at_least: int = 0) -> None:
        """Move answered events from the front to `accepted` or `failed`.

        Waits for the answers of the first `at_least` events.
        """
        waiting = self._waiting
        patience_seconds = self._wait_seconds
        if at_least > 0:
            waiting[at_least - 1].wait(patience_seconds)
        accepted_at = self._clock()
        while waiting and (at_least > 0 or waiting[0].is_answered):
            at_least -= 1
            pending = waiting.popleft()
            pending.wait(patience_seconds)
            if not pending.is_answered:
                patience_seconds = 0.0  # the others have had this time too
            if pending.error is None:
                self.accepted.append(self._accept(pending, accepted_at))
            else:
                self.failed.append(pending)


def catalog_of(
    registry_url: str | None, registry: Mapping[str, Any] | None, namespace: str
) -> Catalog:
    """Ask the registry once for the schema ids that a producer writes in a namespace.

    Raises InvalidInput without an address, Refused, Unavailable.
    """
    if registry_url is None:
        raise InvalidInput(
            "Neither registry_url nor catalog was given, so no event can be written.",
            code="producer.no_registry",
            fix="give registry_url, the address of the registry's Confluent-compatible API",
        )
    client = HttpRegistry(registry_url, settings=registry)
    try:
        return load_catalog(client, namespace)
    finally:
        client.close()
