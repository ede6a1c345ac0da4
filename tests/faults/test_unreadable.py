"""Events that nobody can read: their member is quarantined, their bytes are kept, and everybody
else goes on.
"""

from __future__ import annotations

import io
import time
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from tests.stack import World, allowed, lives_in, member_of, opted_out, reason, wait_for

from consentry.wire.events import write_event
from consentry.wire.frames import FRAME_LENGTH, frame
from consentry.wire.schemas import QUARANTINE, schema

pytestmark = pytest.mark.stack


def test_each_unreadable_event_holds_its_member_keeps_its_bytes_and_troubles_nobody_else(
    world: World,
) -> None:
    """An opt-out that cannot be read may still be one; and an import of thousands must not stop by
    it.
    """
    worker = world.processor()
    world.open_policy()
    client = world.client()
    whole = {
        name: write_event(opted_out(name), world.catalog)
        for name in ("frame", "after", "enum", "cut", "key")
    }
    bad: dict[str, bytes | None] = {
        "frame": b"\x01" + whole["frame"][1:],
        "after": whole["after"] + b"\x00",
        "enum": whole["enum"][: FRAME_LENGTH + 16] + b"\x03" + whole["enum"][FRAME_LENGTH + 17 :],
        "cut": whole["cut"][:-1],
        "key": write_event(opted_out("somebody-else"), world.catalog),
        "id": frame(999_999) + whole["cut"][FRAME_LENGTH:],
        "topic": frame(world.catalog.id_of("Receipt")) + whole["cut"][FRAME_LENGTH:],
        "empty": b"",
        "none": None,
    }
    world.produce(*(lives_in(member) for member in bad), lives_in("anna"))
    wait_for(lambda: all(allowed(client, member) for member in (*bad, "anna")), "all allowed")
    for member, value in bad.items():
        world.produce_raw(member.encode(), value)
    world.produce(lives_in("later"))
    wait_for(lambda: allowed(client, "later"), "the next event")
    wait_for(lambda: all(reason(client, member) == "QUARANTINED" for member in bad), "all held")
    assert allowed(client, "anna")
    parsed = schema("Quarantined").parsed
    kept = [_read(parsed, message.value or b"") for message in world.log(QUARANTINE)]
    assert {(one["key"], one["value"]) for one in kept} == {
        (name.encode(), value) for name, value in bad.items()
    }
    assert {one["error_class"] for one in kept} >= {
        "magic",
        "trailing",
        "schema_id",
        "wrong_type",
        "key_mismatch",
    }
    told = wait_for(
        lambda: worker.metric("consentry_events_total", outcome="quarantined"), "the count"
    )
    assert told == len(bad)
    world.assert_all_agree(client)
    for value in (value for value in whole.values()):
        assert repr(value) not in worker.text()


def _read(parsed: Any, value: bytes) -> dict[str, object]:
    found = fastavro.schemaless_reader(io.BytesIO(value[FRAME_LENGTH:]), parsed, None)
    assert isinstance(found, dict)
    return found


def test_a_negative_enum_index_is_never_read_as_an_opt_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python counts lists from their end: -2 of (OPT_OUT, OPT_IN, UNKNOWN) is OPT_IN, one byte away
    from an opt-out.

    A decoder that does not encode again to compare does read it so: strictness is what protects.
    """
    from consentry.domain.errors import UndecodableEvent
    from consentry.domain.events import ConsentChanged
    from consentry.domain.values import Choice
    from consentry.wire import events

    whole = write_event(opted_out("anna"), world.catalog)
    bad = whole[: FRAME_LENGTH + 16] + b"\x03" + whole[FRAME_LENGTH + 17 :]
    with pytest.raises(UndecodableEvent):
        events.read_event(bad, b"anna", world.catalog)

    def lax(name: str, payload: bytes) -> dict[str, object]:
        return _read(schema(name).parsed, frame(0) + payload)

    monkeypatch.setattr(events, "read_strictly", lax)
    found = events.read_event(bad, b"anna", world.catalog)
    assert isinstance(found, ConsentChanged)
    assert found.choice is Choice.OPT_IN


def test_an_event_without_a_readable_key_taints_its_partition_and_no_other(world: World) -> None:
    """It may be the opt-out of anyone in the partition: all of them would go on being trained
    on.
    """
    world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    inside, outside = member_of(2), member_of(5)
    world.produce(lives_in(inside), lives_in(outside))
    wait_for(lambda: allowed(client, inside) and allowed(client, outside), "both allowed")
    world.produce_raw(
        b"a person@example.org", write_event(opted_out(inside), world.catalog), partition=2
    )
    wait_for(lambda: reason(client, inside) == "QUARANTINED", "quarantined")
    assert allowed(client, outside)
    later = world.client("later")
    wait_for(lambda: allowed(later, outside), "another trainer")
    assert reason(later, inside) == "QUARANTINED"
    refused = world.cli("explain", inside)
    assert refused.returncode == 2
    assert "table.tainted" in refused.stderr
    world.produce(lives_in(member_of(2, 1)))
    wait_for(lambda: member_of(2, 1).encode() in client.snapshot.records, "the next event")
    assert reason(client, member_of(2, 1)) == "QUARANTINED"


def test_a_taint_outlives_the_worker_and_the_table(world: World) -> None:
    """A restart, or an operator who rebuilds, would allow members whose opt-out is still unread."""
    worker = world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    inside = member_of(2)
    world.produce(lives_in(inside))
    world.produce_raw(b"\xff", b"?", partition=2)
    wait_for(lambda: reason(client, inside) == "QUARANTINED", "quarantined")
    wait_for(lambda: client.is_fresh, "fresh")
    worker.kill()
    worker = world.processor().wait_ready()
    assert worker.metric("consentry_partitions_tainted") == 1
    connection = world.redis()
    connection.flushall()
    connection.close()
    wait_for(lambda: None not in world.generations().values(), "rebuilt")
    wait_for(lambda: worker.metric("consentry_partitions_tainted") == 1, "still tainted")
    wait_for(lambda: client.is_fresh, "fresh again")
    assert reason(client, inside) == "QUARANTINED"


def test_a_member_whose_events_came_by_a_foreign_partition_is_held(world: World) -> None:
    """A producer with another partitioner splits a member's events over two logs: their order is
    lost.
    """
    world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    member = member_of(2)
    world.produce(lives_in(member))
    wait_for(lambda: allowed(client, member), "allowed")
    world.produce_raw(member.encode(), write_event(opted_out(member), world.catalog), partition=3)
    wait_for(lambda: reason(client, member) == "QUARANTINED", "quarantined")
    refused = world.cli("explain", member)
    assert (refused.returncode, "member.misplaced" in refused.stderr) == (2, True)


def test_a_transaction_in_the_log_does_not_stop_the_frontier(world: World) -> None:
    """Its end is an offset that no consumer is ever given: every trainer would wait for it, and
    stand still.
    """
    world.processor()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")
    producer = Producer(
        {**world.kafka, "transactional.id": world.namespace, "partitioner": "murmur2_random"}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(
        world.topic("member-events"), write_event(opted_out("anna"), world.catalog), b"anna"
    )
    producer.commit_transaction(30)
    wait_for(lambda: reason(client, "anna") in ("OPTED_OUT", "STALE"), "excluded")
    time.sleep(7)
    assert reason(client, "anna") == "OPTED_OUT"
