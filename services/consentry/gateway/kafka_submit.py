"""The gateway's way to Kafka from the event loop: send, and wait for the acknowledgement."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Final, NamedTuple

from consentry.domain.controls import Control
from consentry.domain.errors import ConsentryError
from consentry.domain.events import SentEvent
from consentry.kafka.sender import Headers, QueueFull, Sender, TopicPosition, Undelivered
from consentry.ops.http.problems import Problem
from consentry.wire.catalog import Catalog
from consentry.wire.cloudevents import event_headers
from consentry.wire.controls import control_key, write_control
from consentry.wire.event_writer import EventWriter
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, topic_name

ANSWER_SECONDS: Final = 10.0
"""A caller waits at most this long for the broker; the message may be acknowledged later."""

_SERVE_SECONDS: Final = 0.001
"""Between two calls for acknowledgements, while any are outstanding."""

_FULL_SECONDS: Final = 0.005
"""Between two attempts while the queue is full."""

Delivery = TopicPosition | Undelivered
"""The outcome of a message: its position in the topic, or an error."""


class OutMessage(NamedTuple):
    """A member event as the gateway sends it to Kafka. `event_id` is the text of a UUID."""

    event_id: str
    key: bytes
    value: bytes
    headers: Headers


def unknown(event_id: bytes | None) -> Problem:
    """Return the gateway's problem for an event of which nobody knows if Kafka has it."""
    return Problem(
        504,
        "Kafka has not acknowledged it in time; it is not known whether it counts.",
        code="kafka.unknown",
        fix="send it again with the same Idempotency-Key, or with the same event_id and "
        "effective_at: it counts once",
        event_id=None if event_id is None else str(uuid.UUID(bytes=event_id)),
    )


class Submitter:
    """Sends the gateway's messages to Kafka and hands acknowledgements to the event loop.

    Acknowledgements are handed over many at a time.
    """

    def __init__(
        self,
        sender: Sender,
        catalog: Catalog,
        *,
        namespace: str,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._sender = sender
        self._catalog = catalog
        self.writer = EventWriter(catalog)
        self._events = topic_name(namespace, MEMBER_EVENTS)
        self._controls = topic_name(namespace, CONTROLS)
        self._answer_seconds = answer_seconds
        self._acknowledged: deque[tuple[asyncio.Future[Delivery], Delivery]] = deque()
        self._is_woken = False
        self._serving: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of messages that wait for their acknowledgement."""
        return self._sender.waiting

    async def submit(self, event: SentEvent, *, traceparent: str | None = None) -> TopicPosition:
        """Send one member event to Kafka, and return its position.

        Raises QueueFull, Undelivered, and Problem 504 where the outcome is not known.
        """
        key, value = event.member.encode(), self.writer.write(event)
        return await self.send(
            self._events,
            key,
            value,
            event_headers(event, traceparent=traceparent),
            event_id=event.event_id,
        )

    async def submit_control(self, control: Control) -> TopicPosition:
        """Send one control to Kafka, and return its position. Raises as `submit`."""
        value = write_control(control, self._catalog)
        return await self.send(
            self._controls, control_key(control), value, [], event_id=control.event_id
        )

    async def replay(self, key: bytes, value: bytes, headers: Headers) -> TopicPosition:
        """Send the bytes of a member event as they are. Raises as `submit`."""
        return await self.send(self._events, key, value, headers, event_id=None)

    async def send(
        self, topic: str, key: bytes, value: bytes, headers: Headers, *, event_id: bytes | None
    ) -> TopicPosition:
        """Send a message to Kafka; return its position once Kafka acknowledged it.

        Raises as `submit`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Delivery] = loop.create_future()
        self._sender.send(topic, key, value, headers, partial(self._note, loop, future))
        self.serve()
        try:
            async with asyncio.timeout(self._answer_seconds):
                delivery = await future
        except TimeoutError:
            raise unknown(event_id) from None
        return _position(delivery, event_id)

    def batch(self) -> BulkBatch:
        """Return a batch of messages whose outcomes are collected together."""
        return BulkBatch(self, self._events, self._answer_seconds)

    def offer(
        self, topic: str, message: OutMessage, delivered: Callable[[Delivery], None]
    ) -> QueueFull | None:
        """Queue one message without waiting; `delivered` is called once with its outcome.

        Returns the error where the queue is full now. Raises Unavailable and Refused where the
        message can never be queued.
        """
        try:
            self._sender.send(topic, message.key, message.value, message.headers, delivered)
        except QueueFull as error:
            return error
        return None

    def serve(self) -> None:
        """Collect acknowledgements for as long as any is outstanding."""
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve_all())

    async def _serve_all(self) -> None:
        while True:
            self._sender.serve()
            await asyncio.sleep(_SERVE_SECONDS)
            if not self._sender.waiting:
                return

    def _note(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Delivery], delivery: Delivery
    ) -> None:
        """Note an outcome, on the sender's thread.

        The event loop is woken once for all outcomes that come before it runs.
        """
        self._acknowledged.append((future, delivery))
        if not self._is_woken:
            self._is_woken = True
            loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._is_woken = False
        while self._acknowledged:
            future, delivery = self._acknowledged.popleft()
            if not future.done():
                future.set_result(delivery)


class BulkBatch:
    """The messages that the gateway sends to Kafka for one bulk request, and their outcomes.

    They are sent in order.

    It waits while the queue is full, for as long as for the broker. From the first message that is
    not queued by then on, all are refused: a later event of a member must not come before an
    earlier one.
    """

    def __init__(self, submitter: Submitter, topic: str, seconds: float) -> None:
        self._submitter = submitter
        self._topic = topic
        self._seconds = seconds
        self._until = monotonic() + seconds
        self._outcomes: list[TopicPosition | ConsentryError | None] = []
        self._refusal: ConsentryError | None = None
        self._queued = self._settled = 0
        self._loop = asyncio.get_running_loop()
        self._is_awaited = False
        self._all = asyncio.Event()

    async def send(self, messages: Iterable[OutMessage]) -> None:
        """Send these messages next, or note why they are refused."""
        self._submitter.serve()
        for message in messages:
            index = len(self._outcomes)
            self._outcomes.append(self._refusal)
            if self._refusal is None:
                try:
                    await self._queue(message, partial(self._note, index))
                except ConsentryError as error:
                    # Without its traceback, which leads back to here and would keep all of the
                    # request alive.
                    self._outcomes[index] = self._refusal = error.with_traceback(None)

    async def outcomes(self) -> list[TopicPosition | ConsentryError | None]:
        """Return for each message, in order, its position, or the error that refused it.

        None where the outcome is not known in time.
        """
        self._is_awaited = True
        if self._settled < self._queued:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._all.wait()
            except TimeoutError:
                pass  # each of them stays None
        return self._outcomes

    async def _queue(self, message: OutMessage, delivered: Callable[[Delivery], None]) -> None:
        full = self._submitter.offer(self._topic, message, delivered)
        while full is not None and monotonic() < self._until:
            await asyncio.sleep(_FULL_SECONDS)
            # It ends when nothing is outstanding, which may have happened by now.
            self._submitter.serve()
            full = self._submitter.offer(self._topic, message, delivered)
        if full is not None:
            raise full
        self._queued += 1

    def _note(self, index: int, delivery: Delivery) -> None:
        """Note an outcome, on the sender's thread, which may be this one."""
        self._outcomes[index] = delivery
        self._settled += 1
        if self._is_awaited and self._settled == self._queued:
            self._loop.call_soon_threadsafe(self._all.set)


def _position(delivery: Delivery, event_id: bytes | None) -> TopicPosition:
    if isinstance(delivery, TopicPosition):
        return delivery
    if delivery.is_unknown:
        raise unknown(event_id) from delivery
    raise delivery
