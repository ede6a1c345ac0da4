"""The producer that a service embeds: one call, one acknowledged event."""

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
"""How many events send_all sends ahead of the oldest unacknowledged one."""
DELIVERY_TIMEOUT_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 10.0
_FULL_PAUSE_SECONDS: Final = 0.005
_LOOK_EVENTS: Final = 64
_new_tuple: Final = tuple.__new__


class Slot:
    """One event on its way, and what became of it. Told on the sender's thread, awaited on
    another.
    """

    __slots__ = ("_waiter", "error", "event", "is_told", "offset", "partition")

    def __init__(self, event: SentEvent) -> None:
        self.event = event
        self.is_told = False
        self._waiter: threading.Lock | None = None

    def note(self, error: KafkaError | None, message: Message) -> None:
        """Keep what became of it."""
        if error is None:
            self.partition = message.partition()
            self.offset = message.offset()
        self.error = error
        self.is_told = True
        if self._waiter is not None:
            self._waiter.release()

    def wait(self, timeout_seconds: float) -> None:
        """Return once it is told what became of it; at the latest, as unknown, after that time."""
        if self.is_told:
            return
        waiter = threading.Lock()
        waiter.acquire()
        self._waiter = waiter
        # It may have been told between the first look and now; then nobody releases, and nobody has
        # to.
        if not self.is_told and not waiter.acquire(timeout=timeout_seconds):
            self.error = KafkaError(KafkaError._TIMED_OUT)


class ConsentProducer(Statements[Acceptance]):
    """Sends events and waits for the broker's acknowledgement of each.

    Threads may share one; forked children may not.

    `kafka` holds librdkafka's settings for addresses and security; `registry` more settings of the
    registry client, unless a `catalog` is given. `source` names the service. With `token_keys` the
    tokens are signed. Headers decide nothing; an import may leave them out. Raises Refused (topic
    or schemas missing; nothing is ever registered from here), Unavailable.
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
                fix="pass TokenKeys.read(path), from consentry.wire.tokens",
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

        Raises InvalidInput, QueueFull, Unavailable, and nothing was sent; EventUndelivered, which
        holds the event: it may count already if `is_unknown`, and sending the very same again is
        right in every case.
        """
        slot = Slot(event)
        self._queue(event, traceparent_of(traceparent), slot.note)
        slot.wait(self._wait_seconds)
        return self.answer(slot)

    def send_all(
        self, events: Iterable[SentEvent], *, traceparent: str | None = None
    ) -> list[Acceptance]:
        """Send many events without waiting for each; their acceptances, in order.

        Waits where the broker lags.

        Once one is not acknowledged it soon takes no more, waits for those on their way, and raises
        EventUndelivered with all that were not. An event that nobody could read raises
        InvalidInput, after those before it were acknowledged. Sending all of them again is right in
        both cases.
        """
        trace = traceparent_of(traceparent)
        batch = _Batch(self._wait_seconds, self._accept, self._clock)
        queue = self._queue
        try:
            for event in events:
                if batch.is_due and not batch.make_room():
                    break
                slot = Slot(event)
                while True:
                    try:
                        queue(event, trace, slot.note)
                        break
                    except QueueFull:
                        batch.wait_a_while()
                batch.add(slot)
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
        self, event: SentEvent, told: Callable[[Slot], None], *, traceparent: str | None = None
    ) -> None:
        """Queue an event;

        `told` is called on the sender's thread once its slot holds what became of it.
        """
        slot = Slot(event)

        def note(error: KafkaError | None, message: Message) -> None:
            slot.note(error, message)
            told(slot)

        self._queue(event, traceparent_of(traceparent), note)

    def answer(self, slot: Slot) -> Acceptance:
        """The acceptance in a slot that was told. Raises EventUndelivered."""
        if slot.error is not None:
            raise self._undelivered([slot], [])
        return self._accept(slot, self._clock())

    def flush(self, timeout_seconds: float) -> int:
        """Wait until everything queued is acknowledged, at most so long; how many are not."""
        return self._sender.flush(timeout_seconds)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Wait a while for what other threads have sent, then end.

        Whatever is sent later is refused.
        """
        self._sender.close(timeout_seconds)

    def _take(self, event: SentEvent, traceparent: str | None) -> Acceptance:
        return self.send(event, traceparent=traceparent)

    def _queue(self, event: SentEvent, traceparent: str | None, note: Note) -> None:
        value = self._writer.write(event)
        headers = event_headers(event, traceparent=traceparent) if self._with_headers else []
        self._sender.produce(self._topic, event.member.encode(), value, headers, note)

    def _accept(self, slot: Slot, accepted_at: Micros) -> Acceptance:
        # The constructor of a NamedTuple is a Python function; this is what it does.
        return _new_tuple(
            Acceptance,
            (slot.event.event_id, slot.partition, slot.offset, accepted_at, self._signer),
        )

    def _undelivered(
        self, slots: Sequence[Slot], accepted: Sequence[Acceptance]
    ) -> EventUndelivered:
        failures = [
            Undelivered(self._topic, slot.error) for slot in slots if slot.error is not None
        ]
        return EventUndelivered(
            failures[0],
            [slot.event for slot in slots],
            is_unknown=any(failure.is_unknown for failure in failures),
            accepted=accepted,
        )


class _Batch:
    """The events of one send_all: those on their way in order, those accepted, those that were
    not.
    """

    def __init__(
        self, wait_seconds: float, accept: Callable[[Slot, Micros], Acceptance], clock: Clock
    ) -> None:
        self._wait_seconds = wait_seconds
        self._accept = accept
        self._clock = clock
        self._waiting: deque[Slot] = deque()
        self._added = 0
        self.is_due = False
        self.accepted: list[Acceptance] = []
        self.failed: list[Slot] = []

    def add(self, slot: Slot) -> None:
        """One more on its way."""
        self._waiting.append(slot)
        self._added += 1
        # To look at every event would cost as much as the sending.
        self.is_due = self._added % _LOOK_EVENTS == 0

    def make_room(self) -> bool:
        """Take in what was told; False once something was not acknowledged."""
        self._take_in()
        if len(self._waiting) >= IN_FLIGHT_MAX:
            self.wait_a_while()
        return not self.failed

    def wait_a_while(self) -> None:
        """Too many are on their way, ours or another thread's: wait for a good part of ours at
        once.

        Waiting for one at a time would hand the interpreter to and fro for each event.
        """
        if self._waiting:
            self._waiting[len(self._waiting) // 4].wait(self._wait_seconds)
            self._take_in(at_least=1)
        else:
            time.sleep(_FULL_PAUSE_SECONDS)

    def settle(self) -> None:
        """Wait for all on their way."""
        self._take_in(at_least=len(self._waiting))

    def _take_in(self, at_least: int = 0) -> None:
        waiting = self._waiting
        patience_seconds = self._wait_seconds
        if at_least > 0:
            waiting[at_least - 1].wait(patience_seconds)
        accepted_at = self._clock()
        while waiting and (at_least > 0 or waiting[0].is_told):
            at_least -= 1
            slot = waiting.popleft()
            slot.wait(patience_seconds)
            if not slot.is_told:
                patience_seconds = 0.0  # one that waits in vain has waited for all
            if slot.error is None:
                self.accepted.append(self._accept(slot, accepted_at))
            else:
                self.failed.append(slot)


def catalog_of(
    registry_url: str | None, registry: Mapping[str, Any] | None, namespace: str
) -> Catalog:
    """The schema ids of a namespace, asked once.

    Raises InvalidInput without an address, Refused, Unavailable.
    """
    if registry_url is None:
        raise InvalidInput(
            "Neither registry_url nor catalog was given, so no event can be written.",
            code="producer.no_registry",
            fix="give registry_url, the address of the registry's Confluent-compatible API",
        )
    opened = HttpRegistry(registry_url, settings=registry)
    try:
        return load_catalog(opened, namespace)
    finally:
        opened.close()
