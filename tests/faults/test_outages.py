"""What the processor stands on goes away and comes back: the table, the broker, the registry."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.sizes import PATIENCE
from tests.stack import (
    PARTITIONS,
    Load,
    Running,
    Watch,
    World,
    allowed,
    lives_in,
    opted_out,
    pause,
    reason,
    wait_for,
)

from consentry.domain.controls import Reach
from consentry.trainer.client import Client
from consentry.wire.schemas import PURGE_ORDERS

pytestmark = pytest.mark.stack

EXCLUDED = [f"out-{number}" for number in range(20)]


def kill(world: World, service: str) -> None:
    """End a service of our stack as by kill -9, and wait until it is gone."""
    os.kill(world.stack.processes[service], signal.SIGKILL)
    wait_for(lambda: service not in world.stack.processes, f"{service} gone")


@contextmanager
def under_load(world: World, worker_id: str = "w1") -> Iterator[tuple[Running, Client, Load]]:
    """A processor, a follower and a load; afterwards all agree, and no excluded member was ever
    allowed.
    """
    worker = world.processor(worker_id)
    world.open_policy()
    world.produce(*(lives_in(member) for member in EXCLUDED), lives_in("in"))
    world.produce(*(opted_out(member) for member in EXCLUDED))
    client = world.client()
    wait_for(lambda: allowed(client, "in"), "answers")
    watch, load = Watch(client, EXCLUDED, "in"), Load(world)
    watch.start()
    load.start()
    load.wait_acknowledged(200)
    yield worker, client, load
    load.finish()
    world.assert_all_agree(client, seconds=60)
    watch.finish()
    assert watch.allowed, "the watch would have seen an answer that allows"
    wait_for(lambda: allowed(client, "in"), "answers again")


def supervised(world: World, worker: Running, look: Callable[[], bool]) -> Running:
    """Wait for `look`, starting the worker anew whenever it ended, as a supervisor does; the worker
    that runs.
    """
    until = time.monotonic() + PATIENCE * 45
    while not look():
        assert time.monotonic() < until, worker.text()[-2000:]
        if not worker.is_running:
            assert worker.process.returncode == 1
            assert "Traceback" not in worker.text()
            worker = world.processor()
        time.sleep(0.1)
    return worker


def test_a_table_that_is_killed_and_comes_back_holds_what_the_log_says(world: World) -> None:
    """The last second of a table's writes is not on its disk: opt-outs of that second would be
    forgotten.
    """
    with under_load(world) as (_, client, load):
        kill(world, "redis")
        load.wait_acknowledged(200)
        world.stack.start_service("redis")
        wait_for(lambda: client.is_fresh, "fresh again", seconds=30)
        load.wait_acknowledged(200)


def test_a_table_that_is_wiped_under_load_is_rebuilt_and_never_allows_by_being_empty(
    world: World,
) -> None:
    """An empty table knows of no opt-out."""
    with under_load(world) as (worker, _, load):
        before = world.generations()
        connection = world.redis()
        connection.flushall()
        connection.close()
        load.wait_acknowledged(400)
        wait_for(lambda: None not in world.generations().values(), "rebuilt", seconds=30)
        assert not set(before.values()) & set(world.generations().values())
        assert worker.metric("consentry_table_generation_changes_total") >= PARTITIONS


@pytest.mark.parametrize("worker_id", [pytest.param("w1", marks=pytest.mark.long), ""])
def test_a_broker_that_is_killed_and_comes_back_costs_no_acknowledged_event(
    world: World, worker_id: str
) -> None:
    """The broker is the record of truth: what it acknowledged has to reach the trainers after it is
    back.
    """
    with under_load(world, worker_id) as (worker, client, load):
        kill(world, "kafka")
        time.sleep(1)
        world.stack.start_service("kafka")
        load.wait_acknowledged(300, seconds=45)
        supervised(world, worker, lambda: client.is_fresh)


def test_the_ledger_goes_on_after_the_broker_was_away(world: World) -> None:
    """A pause that takes stored data back would open no purge order, and receipts would settle
    none, unnoticed.

    Faust's assignor may give the ledger's topics to nobody after a restart; the worker then ends,
    and its supervisor (this test) starts it anew.
    """
    worker = world.processor("")
    worker.wait_ready()
    world.control(pause("hk-2024", "HK", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: has_order(world, b"pause:hk-2024:1"), "the ledger at work")
    kill(world, "kafka")
    time.sleep(1)
    world.stack.start_service("kafka")
    world.control(pause("ca-2024", "CA", reach=Reach.PRIOR_AND_FUTURE))
    supervised = [worker]

    def order_opened() -> bool:
        if not supervised[-1].is_running:
            supervised.append(world.processor(""))
        return has_order(world, b"pause:ca-2024:1")

    wait_for(order_opened, "the ledger at work again", seconds=75)


def has_order(world: World, order_id: bytes) -> bool:
    """Whether this purge order was opened."""
    return any(message.key == order_id for message in world.log(PURGE_ORDERS))


def test_a_registry_that_is_away_stops_nothing_that_is_known_and_holds_what_is_not(
    world: World,
) -> None:
    """Either every trainer would stand still with the registry, or an unknown form would be
    guessed.
    """
    with under_load(world) as (_, client, load):
        kill(world, "registry")
        load.wait_acknowledged(300)
        world.produce(lives_in("late"), lives_in("odd"))
        wait_for(lambda: allowed(client, "late") and allowed(client, "odd"), "known forms")
        world.produce_raw(b"odd", b"\x00\x00\x0f\x42\x40" + b"\x00" * 40)
        wait_for(lambda: reason(client, "odd") == "QUARANTINED", "quarantined")
        assert allowed(client, "late")


def test_without_a_processor_nothing_is_allowed_once_the_bound_has_passed(world: World) -> None:
    """New opt-outs lie unread in the log: whoever still answers *allowed* trains on them.

    With the bound set so high that it is off, the same client does allow: the bound is what
    protects.
    """
    worker = world.processor()
    world.open_policy()
    world.produce(lives_in("anna"))
    guarded, unguarded = world.client("guarded"), world.client("unguarded", staleness_seconds=3600)
    wait_for(lambda: allowed(guarded, "anna") and allowed(unguarded, "anna"), "answers")
    worker.freeze()
    frozen_at = time.monotonic()
    world.produce(opted_out("anna"))
    wait_for(lambda: reason(guarded, "anna") == "STALE", "stale", seconds=10)
    assert time.monotonic() - frozen_at < 5.0 + 1.5
    assert allowed(unguarded, "anna")
    worker.thaw()
    wait_for(lambda: reason(guarded, "anna") == "OPTED_OUT", "fresh again")


def test_a_trainer_that_was_frozen_reads_nothing_by_what_it_knew_before(world: World) -> None:
    """A suspended machine wakes up in the middle of a run, hours behind, and goes on training."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    world.processor()
    world.open_policy()
    world.produce(lives_in("anna"), lives_in("bo"))
    dataset, manifest = world.directory / "posts", world.directory / "manifest.parquet"
    dataset.mkdir()
    pq.write_table(pa.table({"member_id": ["anna", "bo"]}), dataset / "all.parquet")
    trainer = world.start(
        *(
            "trainer",
            "--dataset",
            str(dataset),
            "--name",
            "ranker",
            "--every",
            "0",
            "--manifest",
            str(manifest),
        )
    ).wait_ready()
    trainer.freeze()
    world.produce(opted_out("anna"))
    time.sleep(6)
    trainer.process.send_signal(signal.SIGUSR1)
    trainer.thaw()
    wait_for(manifest.exists, "an epoch")
    table = pq.read_table(manifest)
    found = dict(zip(table["member_id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert found == {"anna": "OPTED_OUT", "bo": "DEFAULT_ON"}
