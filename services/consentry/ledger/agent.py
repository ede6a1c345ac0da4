"""The ledger of purge orders as a Faust agent: pauses open purge orders, receipts settle them.

Each of its effects may happen twice without harm. All three of its topics have one partition, so
one worker reads all messages. When that worker changes, the new one first reads their history. An
effect that fails is repeated in place, and at last the process ends, because Faust acknowledges an
event whose agent raised (docs/decisions/0001).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final

import faust
import structlog
from confluent_kafka import ConsumerGroupState, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from consentry.domain.controls import Controls
from consentry.domain.errors import ConsentryError, UndecodableEvent
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import Micros
from consentry.kafka.clients import client_config, producer_config, read_all, send
from consentry.ledger.book import Book
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.purge_orders import read_order, read_receipt, write_order
from consentry.wire.schemas import CONTROLS, PURGE_ORDERS, RECEIPTS, topic_name

ATTEMPTS_MAX: Final = 8
UNASSIGNED_SECONDS_MAX: Final = 15.0
_LOG = structlog.get_logger(__name__)


class Ledger:
    """Keeps the ledger's Book of purge orders and publishes those that follow.

    For one thread at a time.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        *,
        namespace: str,
        catalog: Catalog,
        declared: Iterable[tuple[str, str]],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._kafka = kafka
        self._topics = {
            name: topic_name(namespace, name) for name in (CONTROLS, PURGE_ORDERS, RECEIPTS)
        }
        self._catalog = catalog
        self._declared = tuple(declared)
        self._clock = clock
        self._metrics = metrics
        self._producer = Producer(producer_config(kafka, "consentry-ledger"))
        self._book: Book | None = None

    @property
    def topics(self) -> list[str]:
        """The topics that the ledger of purge orders reads."""
        return list(self._topics.values())

    def forget(self) -> None:
        """Drop the ledger's book, so that the history is read anew.

        Another worker may have gone on.
        """
        self._book = None

    def take_in(self, topic: str, value: bytes | None, offset: int, appended_at: Micros) -> None:
        """Take one message into the ledger; publish the purge order that follows, if any.

        Raises Unavailable: give the same message again.
        """
        book = self._load_book()
        order = self._read(book, topic, value, offset, appended_at)
        if topic == self._topics[RECEIPTS]:
            self._count_receipt(value)
        if order is not None:
            self._publish([order])

    def report(self) -> None:
        """Set the ledger's gauges of open and overdue purge orders."""
        counts = self._load_book().open_and_overdue(self._clock())
        for subscriber, (open_orders, overdue) in counts.items():
            self._metrics.gauge("consentry_purge_orders_open", subscriber).set(open_orders)
            self._metrics.gauge("consentry_purge_orders_overdue", subscriber).set(overdue)

    def is_abandoned(self, group: str) -> bool:
        """Return True if the ledger's consumer group is at rest and nobody reads the controls.

        Nobody opens orders then. Returns False where the broker does not answer: call again.
        """
        admin = AdminClient(client_config(self._kafka, "consentry-ledger"))
        try:
            state = admin.describe_consumer_groups([group], request_timeout=5)[group].result()
        except KafkaException as error:
            _LOG.warning("ledger_group_unknown", detail=str(error))
            return False
        assigned_topics: set[str] = set()
        for member in state.members:
            for topic_partition in member.assignment.topic_partitions:
                assigned_topics.add(topic_partition.topic)
        is_at_rest = state.state == ConsumerGroupState.STABLE
        return is_at_rest and self._topics[CONTROLS] not in assigned_topics

    def _load_book(self) -> Book:
        """Return the book; the first time it is read from the history of all three topics.

        Orders that the history should hold, open or settled, and does not hold are published then.
        """
        if self._book is not None:
            return self._book
        book = Book(Controls(iso_jurisdictions()), self._declared)
        missing: dict[str, PurgeOrder] = {}
        # Orders first: a pause whose order is open already opens no other.
        for name in (PURGE_ORDERS, CONTROLS, RECEIPTS):
            topic = self._topics[name]
            for message in read_all(self._kafka, topic):
                order = self._read(book, topic, message.value, message.offset, message.appended_at)
                if order is not None:
                    missing[order.order_id] = order
        self._publish(list(missing.values()))
        self._book = book
        _LOG.info("ledger_loaded", orders=len(book.orders), published=len(missing))
        return book

    def _read(
        self, book: Book, topic: str, value: bytes | None, offset: int, appended_at: Micros
    ) -> PurgeOrder | None:
        try:
            if topic == self._topics[CONTROLS]:
                control = read_control_or_pause(
                    value, offset=offset, appended_at=appended_at, catalog=self._catalog
                )
                return book.read_control(control)
            if topic == self._topics[PURGE_ORDERS]:
                return book.read_order(read_order(value, self._catalog))
            return book.read_receipt(read_receipt(value, self._catalog))
        except UndecodableEvent as error:
            # An unreadable receipt settles nothing, and an unreadable order changes nothing.
            self._metrics.counter("consentry_quarantined_total", error.error_class).inc()
            _LOG.error(
                "ledger_unreadable", topic=topic, offset=offset, error_class=error.error_class
            )
            return None

    def _count_receipt(self, value: bytes | None) -> None:
        try:
            receipt = read_receipt(value, self._catalog)
        except UndecodableEvent:
            return
        # Only declared names become labels: anybody may write a receipt.
        declared = {subscriber for subscriber, _ in self._declared}
        subscriber = receipt.subscriber if receipt.subscriber in declared else "undeclared"
        self._metrics.counter("consentry_receipts_total", subscriber, receipt.result.value).inc()

    def _publish(self, orders: list[PurgeOrder]) -> None:
        if not orders:
            return
        messages: list[tuple[bytes, bytes]] = []
        for order in orders:
            messages.append((order.order_id.encode(), write_order(order, self._catalog)))
        send(self._producer, self._topics[PURGE_ORDERS], messages)
        for order in orders:
            _LOG.info("purge_order", because=order.because.value, settled=order.is_settled)


def add_ledger(app: faust.App, ledger: Ledger) -> None:
    """Give a Faust app the agent and the timer of the ledger of purge orders."""
    channel = app.topic(*ledger.topics, value_type=bytes, key_type=bytes)
    lock = asyncio.Lock()
    unassigned_since: float | None = None

    async def in_thread(call: Callable[..., None], *args: Any) -> None:
        async with lock:
            await _run_until_done(call, *args)

    @app.agent(channel, name="ledger")
    async def take_in(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            await in_thread(
                ledger.take_in,
                message.topic,
                event.value,
                message.offset,
                Micros(int(message.timestamp * 1_000_000)),
            )

    @app.timer(1.0)  # type: ignore[untyped-decorator]  # Faust's timer has no types
    async def report() -> None:
        nonlocal unassigned_since
        assigned_topics = {partition.topic for partition in app.consumer.assignment()}
        if assigned_topics.intersection(ledger.topics):
            unassigned_since = None
            await in_thread(ledger.report)
            return
        # After a broker was away, Faust's assignor may settle on giving the topics to nobody, and
        # stay there.
        unassigned_since = unassigned_since or monotonic()
        if monotonic() - unassigned_since > UNASSIGNED_SECONDS_MAX:
            loop = asyncio.get_running_loop()
            if await loop.run_in_executor(None, ledger.is_abandoned, str(app.conf.id)):
                _LOG.critical("worker_ends", why="no worker is given the ledger's topics")
                os._exit(1)
            unassigned_since = None

    async def forget(_app: Any, *_args: Any, **_kwargs: Any) -> None:
        ledger.forget()

    app.on_partitions_assigned.connect(forget)  # type: ignore[arg-type]  # its callback type names a keyword we take


async def _run_until_done(call: Callable[..., None], *args: Any) -> None:
    """Run `call` on a thread, and again while Kafka is away.

    After the last attempt, or an error of another kind, the process ends.
    """
    loop = asyncio.get_running_loop()
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            return await loop.run_in_executor(None, call, *args)
        except ConsentryError as error:
            _LOG.warning("ledger_retried", attempt=attempt, code=error.code, detail=str(error))
            await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
        except Exception as error:  # noqa: BLE001 - logged, and the process ends
            _LOG.critical("ledger_failed", exc_info=error)
            break
    # Raising would acknowledge the event; a new process reads it again.
    os._exit(1)
