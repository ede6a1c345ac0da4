"""The producer SDK's transactional outbox: events as rows of the service's own database.

The event is written in the business transaction, and sent after that is committed. Table and
columns are Debezium's (deploy/outbox); `Relay` sends the rows where no Debezium runs.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from consentry.domain.errors import Unavailable
from consentry.domain.events import SentEvent
from consentry.kafka.sender import Sender, TopicPosition
from consentry.ops.clock import Clock, system_clock
from consentry.producer.statements import Statements
from consentry.producer.sync import DELIVERY_TIMEOUT_SECONDS, catalog_of
from consentry.wire.catalog import Catalog
from consentry.wire.event_writer import EventWriter
from consentry.wire.schemas import MEMBER_EVENTS, NAMESPACE, topic_name

INSERT: Final = (
    "INSERT INTO consent_outbox (id, aggregatetype, aggregateid, type, payload) "
    "VALUES (%s, %s, %s, %s, %s)"
)
BATCH_ROWS: Final = 500
IDLE_SECONDS: Final = 0.2
AWAY_SECONDS: Final = 1.0

# One relay at a time: a second one would overtake the first, and a member's events lose their
# order.
_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtext('consent_outbox'))"
_READ: Final = """
    SELECT position, id, aggregateid, payload FROM consent_outbox
    WHERE aggregatetype = %s ORDER BY position LIMIT %s
"""
_DELETE: Final = "DELETE FROM consent_outbox WHERE position = ANY(%s)"
_LOG: Final = logging.getLogger(__name__)


class OutboxRow(NamedTuple):
    """One event as a row of the producer's outbox table, consent_outbox.

    Its fields stand in the order of INSERT's parameters.

    """

    id: uuid.UUID
    aggregatetype: str
    aggregateid: str
    type: str
    payload: bytes


class Outbox(Statements[OutboxRow]):
    """Makes rows for the producer's outbox table instead of sending events.

    Use: `cursor.execute(INSERT, outbox.opt_out(member, purpose))`, and commit. See ConsentProducer
    for the arguments. Creating one raises Refused or Unavailable. A statement that nobody could
    read raises InvalidInput: then the transaction fails, and not the member's exclusion.
    """

    def __init__(
        self,
        *,
        source: str,
        registry_url: str | None = None,
        registry: Mapping[str, Any] | None = None,
        catalog: Catalog | None = None,
        namespace: str = NAMESPACE,
        clock: Clock = system_clock,
    ) -> None:
        super().__init__(source=source, clock=clock)
        self._writer = EventWriter(catalog or catalog_of(registry_url, registry, namespace))

    def row_for(self, event: SentEvent) -> OutboxRow:
        """Return an event as the outbox row to insert in its own transaction.

        Raises InvalidInput.
        """
        return OutboxRow(
            id=uuid.UUID(bytes=event.event_id),
            aggregatetype=MEMBER_EVENTS,
            aggregateid=event.member,
            type=f"{NAMESPACE}.{type(event).__name__}",
            payload=self._writer.write(event),
        )

    def _take(self, event: SentEvent, traceparent: str | None) -> OutboxRow:
        return self.row_for(event)


class Cursor(Protocol):
    """The part of a DB-API cursor that the producer's outbox relay uses."""

    def execute(self, query: Any, parameters: Any = ..., /) -> Any:
        """Run a statement with %s parameters."""
        ...

    def fetchone(self) -> Any:
        """Return the next row of the result."""
        ...

    def fetchall(self) -> Any:
        """Return all rows of the result that are left."""
        ...


class OutboxConnection(Protocol):
    """The part of a DB-API connection that the producer's outbox relay uses.

    It is one of PostgreSQL (psycopg), without autocommit.
    """

    def cursor(self) -> Any:
        """Return a new cursor of the outbox's database."""
        ...

    def commit(self) -> None:
        """Make the transaction's changes permanent."""
        ...

    def rollback(self) -> None:
        """Undo the transaction's changes."""
        ...


class Relay:
    """Sends the rows of the producer's outbox table in order, deletes each acknowledged row.

    The table is consent_outbox.

    At least once: a relay that ends in between sends a row again, and the same event counts once.
    At most one event of a member is on its way, so that none can overtake an earlier one that has
    to be sent again.
    """

    def __init__(
        self,
        connection: OutboxConnection,
        kafka: Mapping[str, str],
        *,
        namespace: str = NAMESPACE,
        batch_rows: int = BATCH_ROWS,
        delivery_timeout_seconds: float = DELIVERY_TIMEOUT_SECONDS,
    ) -> None:
        self._connection = connection
        self._topic = topic_name(namespace, MEMBER_EVENTS)
        self._batch_rows = batch_rows
        self._sender = Sender(
            kafka, "consentry-outbox", delivery_timeout_ms=int(delivery_timeout_seconds * 1000)
        )

    def run(self, stopping: threading.Event) -> None:
        """Relay outbox rows until `stopping` is set.

        It waits while there are no rows or the broker is away.
        """
        while not stopping.is_set():
            try:
                relayed = self.run_once()
            except Unavailable as error:
                _LOG.warning("the outbox waits: %s", error)
                stopping.wait(AWAY_SECONDS)
                continue
            if relayed == 0:
                stopping.wait(IDLE_SECONDS)

    def run_once(self) -> int:
        """Send a batch of outbox rows; return how many were sent and deleted.

        Returns 0 also while another relay is at work. Raises Unavailable for the first row that was
        not acknowledged, after deleting those that were.
        """
        cursor = self._connection.cursor()
        acknowledged: list[int] = []
        try:
            cursor.execute(_LOCK)
            if not cursor.fetchone()[0]:
                return 0
            cursor.execute(_READ, (MEMBER_EVENTS, self._batch_rows))
            failure = self._send(cursor.fetchall(), acknowledged.append)
            if acknowledged:
                cursor.execute(_DELETE, (acknowledged,))
            self._connection.commit()
        finally:
            # After the commit this ends nothing; before it, the lock must not stay with a failed
            # transaction.
            self._connection.rollback()
        if failure is not None:
            raise failure
        return len(acknowledged)

    def close(self) -> None:
        """Give the relay's connection to Kafka back; the one to the database is the caller's."""
        self._sender.close()

    def _send(self, rows: Sequence[Any], acknowledged: Callable[[int], None]) -> Unavailable | None:
        """Send the rows; return the first failure.

        Later events of a member wait after a failed one; other members' events do not.
        """
        first_failure: Unavailable | None = None
        stuck_members: set[str] = set()
        for wave in _waves(rows):
            sendable = [row for row in wave if row[2] not in stuck_members]
            outcomes = self._send_wave(sendable)
            is_broker_away = True
            for position, _, member, _ in sendable:
                outcome = outcomes[position]
                if isinstance(outcome, TopicPosition):
                    acknowledged(position)
                    is_broker_away = False
                else:
                    first_failure = first_failure or outcome
                    stuck_members.add(member)
            if is_broker_away:
                break  # the next wave would only wait as long again
        return first_failure

    def _send_wave(self, rows: Sequence[Any]) -> dict[int, TopicPosition | Unavailable]:
        """Send rows of different members; return the outcome of each, by the row's position."""
        outcomes: dict[int, TopicPosition | Unavailable] = {}
        answers = threading.Semaphore(0)
        for position, event_id, member, payload in rows:

            def on_answer(outcome: TopicPosition | Unavailable, position: int = position) -> None:
                outcomes[position] = outcome
                answers.release()

            headers = [("id", str(event_id).encode())]  # as Debezium does
            try:
                self._sender.send(self._topic, _bytes(member), bytes(payload), headers, on_answer)
            except Unavailable as error:
                on_answer(error)
        for _ in rows:
            answers.acquire()  # the client answers for every message within its delivery time-out
        return outcomes


def _waves(rows: Sequence[Any]) -> list[list[Any]]:
    """Cut the rows into waves, each with at most one event of a member.

    A member's first event goes into the first wave, their second into the second, and so on.
    """
    waves: list[list[Any]] = []
    next_wave: dict[str, int] = {}
    for row in rows:
        member = row[2]
        wave = next_wave.get(member, 0)
        next_wave[member] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(row)
    return waves


def _bytes(text: str | bytes) -> bytes:
    """Return a text column's value as bytes.

    psycopg gives bytes by itself in a database without an encoding (SQL_ASCII).
    """
    return text.encode() if isinstance(text, str) else text
