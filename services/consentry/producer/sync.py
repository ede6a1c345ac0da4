"""The producer that a service embeds: one call, one acknowledged event."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from confluent_kafka import KafkaError

from consentry.domain.errors import ConsentryError, InvalidInput
from consentry.domain.events import SentEvent
from consentry.domain.values import Micros
from consentry.ops.clock import Clock, system_clock
from consentry.producer.acceptance import Acceptance, EventUndelivered, Signer
from consentry.producer.statements import Statements
from consentry.producer.tracing import traceparent_of
from consentry.wire.catalog import Catalog, load_catalog
from consentry.wire.envelopes import event_headers
from consentry.wire.kafka import log_identity
from consentry.wire.registry import HttpRegistry
from consentry.wire.schemas import MEMBER_EVENTS, NAMESPACE, topic_name
from consentry.wire.sending import CLOSE_SECONDS, QUEUE_MESSAGES, Place, QueueFull, Sender, Undelivered
from consentry.wire.tokens import TokenKeys
from consentry.wire.writing import EventWriter

IN_FLIGHT_MAX: Final = 20_000
"""How many events send_all sends ahead of the oldest unacknowledged one."""
DELIVERY_TIMEOUT_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 10.0
_FULL_PAUSE_SECONDS: Final = 0.005


class Slot:
    """One event on its way, and what became of it. Told on the sender's thread, awaited on another."""

    __slots__ = ("_clock", "_waiter", "accepted_at", "event", "outcome")

    def __init__(self, event: SentEvent, clock: Clock) -> None:
        self.event = event
        self.outcome: Place | Undelivered | None = None
        self.accepted_at = Micros(0)
        self._clock = clock
        self._waiter: threading.Lock | None = None

    def told(self, outcome: Place | Undelivered) -> None:
        """Keep what became of it."""
        self.accepted_at = self._clock()
        self.outcome = outcome
        if self._waiter is not None:
            self._waiter.release()

    def wait(self, topic: str, timeout_seconds: float) -> Place | Undelivered:
        """What became of it, once that is told."""
        if self.outcome is None:
            waiter = threading.Lock()
            waiter.acquire()
            self._waiter = waiter
            # It may have been told between the first look and now; then nobody releases, and nobody has to.
            if self.outcome is None:
                waiter.acquire(timeout=timeout_seconds)
        return self.outcome or Undelivered(topic, KafkaError(KafkaError._TIMED_OUT))


class ConsentProducer(Statements[Acceptance]):
    """Sends events and waits for the broker's acknowledgement of each. Threads may share one; forked children may not.

    `kafka` holds librdkafka's settings for addresses and security; `registry` more settings of the registry client,
    unless a `catalog` is given. `source` names the service. With `token_keys` the tokens are signed.
    Raises Refused (topic or schemas missing; nothing is ever registered from here), Unavailable.
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
        queue_messages: int = QUEUE_MESSAGES,
        delivery_timeout_seconds: float = DELIVERY_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(source=source, clock=clock)
        self._topic = topic_name(namespace, MEMBER_EVENTS)
        self._writer = EventWriter(catalog or catalog_of(registry_url, registry, namespace))
        self._signer = Signer(log_identity(kafka, self._topic), token_keys or TokenKeys())
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, event: SentEvent, *, traceparent: str | None = None) -> Acceptance:
        """Send an event and wait until it is accepted; an event that was sent before counts once.

        Raises InvalidInput, and nothing was sent; QueueFull, and nothing was sent; EventUndelivered, which holds the
        event: it may count already if `is_unknown`, and sending the very same again is right in every case.
        """
        slot = self._start(event, traceparent_of(traceparent))
        outcome = slot.wait(self._topic, self._wait_seconds)
        if isinstance(outcome, Undelivered):
            raise EventUndelivered(outcome, [event], is_unknown=outcome.is_unknown)
        return self._acceptance(slot, outcome)

    def send_all(self, events: Iterable[SentEvent], *, traceparent: str | None = None) -> list[Acceptance]:
        """Send many events without waiting for each; their acceptances, in order. Waits where the broker lags.

        Takes no further event after the first that is not acknowledged, waits for those on their way, and raises
        EventUndelivered with all that were not. An event that nobody could read raises InvalidInput, after those
        before it were acknowledged. Sending all of them again is right in both cases.
        """
        trace = traceparent_of(traceparent)
        batch = _Batch(self._topic, self._wait_seconds, self._acceptance)
        try:
            for event in events:
                slot = self._start_patiently(event, trace, batch)
                if slot is None:
                    break
                batch.add(slot)
        except ConsentryError as error:
            batch.settle()
            error.add_note(f"{len(batch.accepted)} events before it were accepted.")
            raise
        batch.settle()
        return batch.accepted

    def start(self, event: SentEvent, told: Callable[[Slot], None], *, traceparent: str | None = None) -> None:
        """Queue an event; `told` is called on the sender's thread once its slot holds what became of it."""
        slot = Slot(event, self._clock)

        def note(outcome: Place | Undelivered) -> None:
            slot.told(outcome)
            told(slot)

        self._queue(event, traceparent_of(traceparent), note)

    def answer(self, slot: Slot) -> Acceptance:
        """The acceptance in a slot that was told. Raises EventUndelivered."""
        outcome = slot.wait(self._topic, 0)
        if isinstance(outcome, Undelivered):
            raise EventUndelivered(outcome, [slot.event], is_unknown=outcome.is_unknown)
        return self._acceptance(slot, outcome)

    def flush(self, timeout_seconds: float) -> int:
        """Wait until everything queued is acknowledged, at most so long; how many are not."""
        return self._sender.flush(timeout_seconds)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Wait a while for what other threads have sent, then end. Whatever is sent later is refused."""
        self._sender.close(timeout_seconds)

    def _take(self, event: SentEvent, traceparent: str | None) -> Acceptance:
        return self.send(event, traceparent=traceparent)

    def _start(self, event: SentEvent, traceparent: str | None) -> Slot:
        slot = Slot(event, self._clock)
        self._queue(event, traceparent, slot.told)
        return slot

    def _queue(self, event: SentEvent, traceparent: str | None, told: Callable[[Place | Undelivered], None]) -> None:
        value = self._writer.write(event)
        headers = event_headers(event, traceparent=traceparent)
        self._sender.send(self._topic, event.member.encode(), value, headers, told)

    def _start_patiently(self, event: SentEvent, traceparent: str | None, batch: _Batch) -> Slot | None:
        """Queue an event as soon as there is room; None once an earlier one was not acknowledged."""
        while batch.has_room():
            try:
                return self._start(event, traceparent)
            except QueueFull:
                batch.wait_for_room()
        return None

    def _acceptance(self, slot: Slot, place: Place) -> Acceptance:
        return Acceptance(slot.event.event_id, place.partition, place.offset, slot.accepted_at, self._signer)


class _Batch:
    """The events of one send_all: those on their way in order, those accepted, those that were not."""

    def __init__(self, topic: str, wait_seconds: float, accept: Callable[[Slot, Place], Acceptance]) -> None:
        self._topic = topic
        self._wait_seconds = wait_seconds
        self._accept = accept
        self._waiting: deque[Slot] = deque()
        self._failed: list[tuple[SentEvent, Undelivered]] = []
        self.accepted: list[Acceptance] = []

    def add(self, slot: Slot) -> None:
        """One more on its way."""
        self._waiting.append(slot)

    def has_room(self) -> bool:
        """Take in what was told; False once something was not acknowledged."""
        waiting = self._waiting
        while waiting and (waiting[0].outcome is not None or len(waiting) >= IN_FLIGHT_MAX):
            self._finish(waiting.popleft())
        return not self._failed

    def wait_for_room(self) -> None:
        """The queue is full, of ours or of another thread's."""
        if self._waiting:
            self._finish(self._waiting.popleft())
        else:
            time.sleep(_FULL_PAUSE_SECONDS)

    def settle(self) -> None:
        """Wait for all on their way. Raises EventUndelivered."""
        while self._waiting:
            self._finish(self._waiting.popleft())
        if self._failed:
            raise EventUndelivered(
                self._failed[0][1],
                [event for event, _ in self._failed],
                is_unknown=any(failure.is_unknown for _, failure in self._failed),
                accepted=self.accepted,
            )

    def _finish(self, slot: Slot) -> None:
        outcome = slot.wait(self._topic, self._wait_seconds)
        if isinstance(outcome, Undelivered):
            self._failed.append((slot.event, outcome))
        else:
            self.accepted.append(self._accept(slot, outcome))


def catalog_of(registry_url: str | None, registry: Mapping[str, Any] | None, namespace: str) -> Catalog:
    """The schema ids of a namespace, asked once. Raises InvalidInput without an address, Refused, Unavailable."""
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
