"""The transactional outbox on a real PostgreSQL: what is committed is sent, and what is rolled back
is not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.postgres import address_of, postgres_server
from tests.stack import PURPOSE, World, chose, opted_out, reason, wait_for

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.events import ConsentChanged
from consentry.domain.values import Choice
from consentry.producer import ConsentProducer
from consentry.producer.outbox import INSERT, Outbox, OutboxRow, Relay
from consentry.wire.events import read_event
from consentry.wire.records import version_of
from consentry.wire.schemas import MEMBER_EVENTS

pytestmark = pytest.mark.stack

TABLE = Path(__file__).parents[2] / "deploy" / "outbox" / "postgres.sql"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database of our own; ended with the module."""
    with postgres_server() as directory:
        yield address_of(directory)


@pytest.fixture
def business(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the service, with an empty outbox and the service's own table."""
    with psycopg.connect(database) as connection:
        connection.execute(TABLE.read_bytes())
        connection.execute("TRUNCATE consent_outbox")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS settings (member text PRIMARY KEY, opted_out boolean NOT "
            "NULL)"
        )
        connection.execute("TRUNCATE settings")
        connection.commit()
        yield connection


@pytest.fixture
def outbox(world: World) -> Outbox:
    """What the service makes rows with."""
    return Outbox(
        source="settings-web",
        registry_url=world.stack.addresses.registry_url,
        namespace=world.namespace,
    )


@pytest.fixture
def relay(world: World, database: str) -> Iterator[Relay]:
    """A relay with a connection of its own."""
    with psycopg.connect(database) as connection:
        relay = Relay(connection, world.kafka, namespace=world.namespace)
        try:
            yield relay
        finally:
            relay.close()


def waiting(business: psycopg.Connection[Any]) -> int:
    """How many rows are in the outbox."""
    [count] = business.execute("SELECT count(*) FROM consent_outbox").fetchone() or [-1]
    business.commit()
    return int(count)


def change(business: psycopg.Connection[Any], row: OutboxRow) -> None:
    """The business transaction, not committed yet."""
    business.execute(
        "INSERT INTO settings VALUES (%s, true) ON CONFLICT (member) DO UPDATE SET opted_out = "
        "true",
        (row.aggregateid,),
    )
    business.execute(INSERT, row)


def test_what_is_rolled_back_is_never_sent_and_what_is_committed_is_sent_once(
    world: World, business: psycopg.Connection[Any], outbox: Outbox, relay: Relay
) -> None:
    """An opt-out in the database and not in the log, or the other way round, is a broken promise to
    a member.
    """
    change(business, outbox.opt_out("anna", PURPOSE))
    assert relay.run_once() == 0
    business.rollback()
    assert relay.run_once() == 0
    row = outbox.opt_out("bo", PURPOSE, notice_version="2025-11")
    change(business, row)
    business.commit()
    assert relay.run_once() == 1
    assert relay.run_once() == 0
    [stored] = world.log()
    assert (stored.key, stored.value) == (b"bo", row.payload)
    event = read_event(stored.value, b"bo", world.catalog)
    assert event.event_id == row.id.bytes
    assert isinstance(event, ConsentChanged)
    assert (event.choice, event.source, event.notice_version) == (
        Choice.OPT_OUT,
        "settings-web",
        "2025-11",
    )


def test_what_nobody_could_read_fails_the_transaction_and_not_the_member(outbox: Outbox) -> None:
    """A row that the processor cannot read would hold its member until an operator comes."""
    with pytest.raises(InvalidInput, match=r"event\.purpose"):
        outbox.opt_out("anna", "Gen AI")
    with pytest.raises(InvalidInput, match=r"event\.member_id"):
        outbox.row_for(opted_out("anna@example.org"))


def test_a_relay_killed_between_sending_and_deleting_sends_twice_and_it_counts_once(
    world: World, database: str, business: psycopg.Connection[Any], outbox: Outbox, relay: Relay
) -> None:
    """Deleting first would lose the opt-outs of the crash; counting twice would let a retry outlive
    what came since.
    """
    world.processor()
    client = world.client()
    for member in ("anna", "bo"):
        change(business, outbox.opt_out(member, PURPOSE))
    business.commit()
    program = textwrap.dedent(
        """
        import json, sys, time, psycopg
        from consentry.producer.outbox import Relay

        class Stuck:
            def __init__(self, cursor): self.cursor = cursor
            def __getattr__(self, name): return getattr(self.cursor, name)
            def execute(self, query, parameters=None):
                if query.startswith("DELETE"):
                    print("sent", flush=True)
                    time.sleep(600)
                return self.cursor.execute(query, parameters)

        class Connection:
            def __init__(self, connection): self.connection = connection
            def __getattr__(self, name): return getattr(self.connection, name)
            def cursor(self): return Stuck(self.connection.cursor())

        kafka, namespace, database = json.loads(sys.argv[1])
        Relay(Connection(psycopg.connect(database)), kafka, namespace=namespace).run_once()
        """
    )
    import json

    arguments = json.dumps([world.kafka, world.namespace, database])
    killed = subprocess.Popen(
        [sys.executable, "-c", program, arguments], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    try:
        assert killed.stdout.readline() == "sent\n"
        assert relay.run_once() == 0, "a second relay goes on while the first is at it"
    finally:
        killed.kill()
        killed.wait(10)
        killed.stdout.close()
    assert waiting(business) == 2
    wait_for(lambda: relay.run_once() == 2, "the lock of the killed relay is given back")
    assert waiting(business) == 0
    assert sorted(stored.key or b"" for stored in world.log()) == [b"anna", b"anna", b"bo", b"bo"]
    wait_for(lambda: {b"anna", b"bo"} <= client.snapshot.records.keys(), "both")
    world.assert_all_agree(client)
    assert [version_of(client.snapshot.records[member]) for member in (b"anna", b"bo")] == [1, 1]


def test_the_same_event_by_outbox_and_by_sdk_counts_once(
    world: World, business: psycopg.Connection[Any], outbox: Outbox, relay: Relay
) -> None:
    """A service that moves from one way to the other sends some events by both."""
    world.processor()
    client = world.client()
    event = opted_out("anna")
    change(business, outbox.row_for(event))
    business.commit()
    with ConsentProducer(
        world.kafka, source="settings-web", catalog=world.catalog, namespace=world.namespace
    ) as producer:
        producer.send(event)
        assert relay.run_once() == 1
        # Accepted a second time by another gateway: another recorded_at, the same id and effective_at.
        producer.send(replace(event, recorded_at=chose("anna", Choice.OPT_OUT).recorded_at))
        producer.erase("bo")
    wait_for(lambda: {b"anna", b"bo"} <= client.snapshot.records.keys(), "both")
    world.assert_all_agree(client)
    assert version_of(client.snapshot.records[b"anna"]) == 1
    assert reason(client, "anna") != "QUARANTINED"


def test_a_members_events_keep_their_order_through_the_outbox(
    world: World, business: psycopg.Connection[Any], outbox: Outbox, relay: Relay
) -> None:
    """An opt-out that overtakes the opt-in before it is undone by that opt-in."""
    rows = [
        outbox.clear_choice(f"m{number % 7}", PURPOSE, notice_version=str(number))
        for number in range(100)
    ]
    for row in rows:
        change(business, row)
        business.commit()
    assert relay.run_once() == 100
    seen: dict[bytes, list[int]] = {}
    for stored in sorted(world.log(), key=lambda stored: (stored.partition, stored.offset)):
        event = read_event(stored.value, stored.key or b"", world.catalog)
        assert isinstance(event, ConsentChanged)
        seen.setdefault(stored.key or b"", []).append(int(event.notice_version))
    assert seen == {f"m{member}".encode(): list(range(member, 100, 7)) for member in range(7)}


def test_a_row_that_the_broker_refuses_holds_back_its_member_and_nobody_else(
    world: World, business: psycopg.Connection[Any], outbox: Outbox, relay: Relay
) -> None:
    """Going on past it mixes up the member's order; waiting for it keeps everybody else's opt-outs
    back.
    """
    change(business, outbox.clear_choice("anna", PURPOSE))
    too_large = OutboxRow(
        uuid.uuid4(), MEMBER_EVENTS, "anna", "consentry.ConsentChanged", os.urandom(2_000_000)
    )
    business.execute(INSERT, too_large)
    last = outbox.opt_out("anna", PURPOSE)
    change(business, last)
    change(business, outbox.opt_out("bo", PURPOSE))
    change(business, outbox.clear_choice("bo", PURPOSE))
    business.commit()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"[Mm]essage size") as failure:
            relay.run_once()
        assert "anna" not in str(failure.value)
    left = business.execute("SELECT id FROM consent_outbox ORDER BY position").fetchall()
    assert left == [(too_large.id,), (last.id,)]
    assert sorted(stored.key or b"" for stored in world.log()) == [b"anna", b"bo", b"bo"]
    business.execute("DELETE FROM consent_outbox WHERE id = %s", (too_large.id,))
    business.commit()
    assert relay.run_once() == 1


def test_while_the_broker_stands_still_the_rows_stay(
    world: World, database: str, business: psycopg.Connection[Any], outbox: Outbox
) -> None:
    """A relay that deletes what was not acknowledged loses an opt-out that the member was told
    of.
    """
    change(business, outbox.opt_out("anna", PURPOSE))
    business.commit()
    broker = world.stack.processes["kafka"]
    with psycopg.connect(database) as connection:
        relay = Relay(
            connection, world.kafka, namespace=world.namespace, delivery_timeout_seconds=1
        )
        os.kill(broker, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match=r"kafka\.unavailable"):
                relay.run_once()
            assert waiting(business) == 1
        finally:
            os.kill(broker, signal.SIGCONT)
        wait_for(lambda: _relayed(relay), "the row is sent once the broker answers", seconds=40)
        relay.close()
    assert waiting(business) == 0


def _relayed(relay: Relay) -> bool:
    try:
        return relay.run_once() == 1
    except Unavailable:
        return False


def test_a_running_relay_sends_what_is_committed_meanwhile(
    world: World, business: psycopg.Connection[Any], outbox: Outbox, relay: Relay
) -> None:
    """A relay that has to be woken by hand is one that somebody forgets."""
    stopping = threading.Event()
    thread = threading.Thread(target=relay.run, args=(stopping,))
    thread.start()
    try:
        time.sleep(0.3)
        change(business, outbox.opt_out("anna", PURPOSE))
        business.commit()
        wait_for(lambda: waiting(business) == 0, "the row sent")
    finally:
        stopping.set()
        thread.join(20)
    assert [stored.key for stored in world.log()] == [b"anna"]


def test_a_message_as_debezium_makes_it_is_applied(world: World, outbox: Outbox) -> None:
    """Shops that run Debezium already would otherwise have their members held."""
    world.processor()
    client = world.client()
    row = outbox.opt_out("anna", PURPOSE)
    world.producer.produce(
        world.topic(row.aggregatetype),
        key=row.aggregateid.encode(),
        value=row.payload,
        headers=[("id", str(row.id).encode())],
    )
    assert world.producer.flush(30) == 0
    wait_for(lambda: b"anna" in client.snapshot.records, "anna")
    assert version_of(client.snapshot.records[b"anna"]) == 1
    wait_for(
        lambda: reason(client, "anna") in ("JURISDICTION_UNKNOWN", "OPTED_OUT"), "applied, not held"
    )


def test_the_connectors_settings_name_the_columns_of_the_table() -> None:
    """A connector that looks for another column stops at the first opt-out."""
    import json

    config = json.loads((TABLE.parent / "debezium.json").read_text())["config"]
    columns = TABLE.read_text()
    for setting, value in config.items():
        if (
            setting.startswith("transforms.outbox.table.field.")
            or setting == "transforms.outbox.route.by.field"
        ):
            assert f"\n    {value} " in columns, setting
    assert config["transforms.outbox.route.topic.replacement"] == "consentry.${routedByValue}"
    assert all(column in columns for column in OutboxRow._fields)
