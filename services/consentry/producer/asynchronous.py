"""The producer SDK for asyncio: sends events and never blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from consentry.domain.errors import Refused
from consentry.domain.events import SentEvent
from consentry.kafka.sender import CLOSE_SECONDS, QUEUE_MESSAGES
from consentry.ops.clock import Clock, system_clock
from consentry.producer.acceptance import Acceptance
from consentry.producer.statements import Statements
from consentry.producer.sync import DELIVERY_TIMEOUT_SECONDS, ConsentProducer, PendingEvent
from consentry.producer.trace_context import traceparent_of
from consentry.wire.catalog import Catalog
from consentry.wire.schemas import NAMESPACE
from consentry.wire.tokens import TokenKeys


class AsyncConsentProducer(Statements[Coroutine[Any, Any, Acceptance]]):
    """The producer SDK for asyncio: sends events as ConsentProducer does; calls are awaited.

    See ConsentProducer; opened by `async with`, which asks registry and broker on a thread.

    The event of a cancelled send may have been sent: as after EventUndelivered, nobody knows.
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
        self._open = partial(
            ConsentProducer,
            kafka,
            source=source,
            registry_url=registry_url,
            registry=registry,
            catalog=catalog,
            namespace=namespace,
            token_keys=token_keys,
            clock=clock,
            with_headers=with_headers,
            queue_messages=queue_messages,
            delivery_timeout_seconds=delivery_timeout_seconds,
        )
        self._opened: ConsentProducer | None = None

    async def __aenter__(self) -> AsyncConsentProducer:
        self._opened = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def send(self, event: SentEvent, *, traceparent: str | None = None) -> Acceptance:
        """Send an event and await its acceptance; see ConsentProducer.send."""
        producer = self._producer()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[PendingEvent] = loop.create_future()

        def set_answer(pending: PendingEvent) -> None:
            if not answer.done():  # the caller may have been cancelled
                answer.set_result(pending)

        def on_answer(pending: PendingEvent) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody waits any more
                loop.call_soon_threadsafe(set_answer, pending)

        producer.start(event, on_answer, traceparent=traceparent)
        return producer.acceptance_of(await answer)

    async def send_all(
        self, events: Iterable[SentEvent], *, traceparent: str | None = None
    ) -> list[Acceptance]:
        """Send many events and await their acceptances; see ConsentProducer.send_all.

        `events` is iterated on another thread.
        """
        trace = traceparent_of(traceparent)
        return await asyncio.to_thread(self._producer().send_all, events, traceparent=trace)

    async def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Await the events that were sent, then end; see ConsentProducer.close."""
        if self._opened is not None:
            await asyncio.to_thread(self._opened.close, timeout_seconds)

    def _take(self, event: SentEvent, traceparent: str | None) -> Coroutine[Any, Any, Acceptance]:
        return self.send(event, traceparent=traceparent)

    def _producer(self) -> ConsentProducer:
        if self._opened is None:
            raise Refused(
                "This producer is not open yet.",
                code="producer.not_open",
                fix="write `async with AsyncConsentProducer(…) as producer:` around its use",
            )
        return self._opened
