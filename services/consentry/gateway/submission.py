"""Sending to Kafka from the event loop, and waiting for the broker's acknowledgement."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Final

from consentry.domain.controls import Control
from consentry.domain.errors import ConsentryError
from consentry.domain.events import SentEvent
from consentry.ops.http.problems import Problem
from consentry.wire.catalog import Catalog
from consentry.wire.controls import control_key, write_control
from consentry.wire.envelopes import event_headers
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, topic_name
from consentry.wire.sending import Headers, Place, QueueFull, Sender, Undelivered
from consentry.wire.writing import EventWriter

ANSWER_SECONDS: Final = 10.0
"""So long a caller is kept waiting for the broker; the message may still be acknowledged later."""

_SERVE_SECONDS: Final = 0.001
"""Between two looks for acknowledgements, while any are waited for."""

Answer = Place | Undelivered


def unknown(event_id: bytes | None) -> Problem:
    """The answer where nobody knows whether an event counts."""
    return Problem(
        504,
        "Kafka has not acknowledged it in time; it is not known whether it counts.",
        code="kafka.unknown",
        fix="send it again with the same Idempotency-Key, or with the same event_id and effective_at: it counts once",
        event_id=None if event_id is None else str(uuid.UUID(bytes=event_id)),
    )


class Submitter:
    """Queues messages and hands their acknowledgements to the event loop, many at a time."""

    def __init__(
        self, sender: Sender, catalog: Catalog, *, namespace: str, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._sender = sender
        self._catalog = catalog
        self._writer = EventWriter(catalog)
        self._events = topic_name(namespace, MEMBER_EVENTS)
        self._controls = topic_name(namespace, CONTROLS)
        self._answer_seconds = answer_seconds
        self._acknowledged: deque[tuple[asyncio.Future[Answer], Answer]] = deque()
        self._is_woken = False
        self._serving: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many messages wait for their acknowledgement."""
        return self._sender.waiting

    async def submit(self, event: SentEvent, *, traceparent: str | None = None) -> Place:
        """Send one member event; where it stands. Raises QueueFull, Undelivered, and Problem 504 where not known."""
        key, value = event.member.encode(), self._writer.write(event)
        return await self.send(
            self._events, key, value, event_headers(event, traceparent=traceparent), event_id=event.event_id
        )

    async def submit_control(self, control: Control) -> Place:
        """Send one control; where it stands. Raises as `submit`."""
        value = write_control(control, self._catalog)
        return await self.send(self._controls, control_key(control), value, [], event_id=control.event_id)

    async def replay(self, key: bytes, value: bytes, headers: Headers) -> Place:
        """Send the bytes of a member event as they are. Raises as `submit`."""
        return await self.send(self._events, key, value, headers, event_id=None)

    async def send(self, topic: str, key: bytes, value: bytes, headers: Headers, *, event_id: bytes | None) -> Place:
        """Send any message and wait for its acknowledgement."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._sender.send(topic, key, value, headers, partial(self._note, loop, future))
        self._serve()
        try:
            async with asyncio.timeout(self._answer_seconds):
                answer = await future
        except TimeoutError:
            raise unknown(event_id) from None
        return _place(answer, event_id)

    async def submit_all(
        self, events: Sequence[SentEvent], *, traceparent: str | None = None
    ) -> list[Place | ConsentryError | None]:
        """Send many events, in order; for each its place, why it was refused, or None where it is not known.

        Waits while the queue is full, as long as for the broker. From the first that does not get in by then on, all
        are refused: a later event of a member must not come before an earlier one.
        """
        batch, until = _Batch(len(events)), monotonic() + self._answer_seconds
        self._serve()
        for place, event in enumerate(events):
            full = self._take(event, traceparent, batch, place)
            while full is not None and monotonic() < until:
                await asyncio.sleep(0.005)
                full = self._take(event, traceparent, batch, place)
            if full is not None:
                for left in range(place, len(events)):
                    batch.refuse(left, full)
                break
            if place % 500 == 499:
                await asyncio.sleep(0)  # others want an answer too
        await batch.wait(self._answer_seconds)
        return batch.answers

    def _serve(self) -> None:
        """See to it that acknowledgements are told while any is waited for."""
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            self._sender.serve()
            await asyncio.sleep(_SERVE_SECONDS)
            if not self._sender.waiting:
                return

    def _take(self, event: SentEvent, traceparent: str | None, batch: _Batch, place: int) -> QueueFull | None:
        """Queue one event of a batch, or note why it is refused; what is returned means: not now."""
        try:
            value, headers = self._writer.write(event), event_headers(event, traceparent=traceparent)
            self._sender.send(self._events, event.member.encode(), value, headers, partial(batch.note, place))
        except QueueFull as error:
            return error
        except ConsentryError as error:
            batch.refuse(place, error)
        return None

    def _note(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Answer], answer: Answer) -> None:
        """On the sender's thread: one wake-up of the loop for all that is acknowledged until it runs."""
        self._acknowledged.append((future, answer))
        if not self._is_woken:
            self._is_woken = True
            loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._is_woken = False
        while self._acknowledged:
            future, answer = self._acknowledged.popleft()
            if not future.done():
                future.set_result(answer)


class _Batch:
    """The answers to many messages, and a wake-up when the last one has come."""

    def __init__(self, count: int) -> None:
        self.answers: list[Place | ConsentryError | None] = [None] * count
        self._count = count
        # Each is counted up by one thread alone.
        self._told = self._refused = 0
        self._loop = asyncio.get_running_loop()
        self._all = asyncio.Event()
        if not count:
            self._all.set()

    def note(self, place: int, answer: Answer) -> None:
        """On the sender's thread."""
        self.answers[place] = answer
        self._told += 1
        if self._told + self._refused == self._count:
            self._loop.call_soon_threadsafe(self._all.set)

    def refuse(self, place: int, error: ConsentryError) -> None:
        """On the event loop: this one was not even taken."""
        self.answers[place] = error
        self._refused += 1
        if self._told + self._refused == self._count:
            self._all.set()

    async def wait(self, seconds: float) -> None:
        """Return when every answer has come, or after that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._all.wait()
        except TimeoutError:
            return


def _place(answer: Answer, event_id: bytes | None) -> Place:
    if isinstance(answer, Place):
        return answer
    if answer.is_unknown:
        raise unknown(event_id) from answer
    raise answer
