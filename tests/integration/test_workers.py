"""What operators see of running workers: the ledger on another worker, metrics, logs, a damaged
table.
"""

from __future__ import annotations

import re

import pytest
from tests.stack import (
    PURPOSE,
    Running,
    World,
    allowed,
    erased,
    lives_in,
    member_of,
    now,
    opted_in,
    opted_out,
    pause,
    reason,
    samples,
    wait_for,
)
from tests.table import load_partition, store_partition

from consentry.cli.gateway_client import GatewayClient
from consentry.domain.controls import Reach
from consentry.domain.orders import Receipt, Result
from consentry.kafka.clients import send
from consentry.ops.metrics import DEFINITIONS
from consentry.wire.purge_orders import read_order, write_receipt
from consentry.wire.schemas import PURGE_ORDERS, RECEIPTS

pytestmark = pytest.mark.stack

OF_TRAINERS = {
    "consentry_event_to_trainer_seconds",
    "consentry_pause_to_trainer_seconds",
    "consentry_staleness_seconds",
    "consentry_decisions_total",
    "consentry_members",
    "consentry_follower_regressions_total",
}
OF_THE_BUNDLER = {name for name in DEFINITIONS if name.startswith("consentry_bundle")} | {
    "consentry_members_quarantined"
}
ONLY_AFTER_A_FAULT = {
    "consentry_gateway_bulk_lines_total",  # after a bulk request: its own unit test counts it
    "consentry_follower_regressions_total",
    "consentry_table_refusals_total",
    "consentry_table_generation_changes_total",
}


def states(world: World) -> dict[str, bool]:
    """Each purge order's id, and whether it is settled, by its last message."""
    orders = (read_order(message.value, world.catalog) for message in world.log(PURGE_ORDERS))
    return {order.order_id: order.is_settled for order in orders}


def answer(world: World, order_id: str) -> None:
    """A receipt of the only subscriber."""
    receipt = Receipt(
        order_id=order_id,
        subscriber="ranker",
        dataset="posts",
        result=Result.DELETED,
        rows_removed=1,
        version_before="a",
        version_after="b",
        completed_at=now(),
    )
    send(
        world.producer, world.topic(RECEIPTS), [(b"ranker", write_receipt(receipt, world.catalog))]
    )


def test_the_ledger_goes_on_where_a_killed_worker_left_it(world: World) -> None:
    """Duties to delete would be forgotten with the machine that knew of them, or be asked for again
    for ever.
    """
    settings = {"SUBSCRIBERS": "ranker=posts"}
    first = world.processor("first", **settings).wait_ready()
    world.control(pause("ca-2024", "CA", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: states(world) == {"pause:ca-2024:1": False}, "the first order")
    second = world.processor("second", **settings)
    second.wait_ready()
    world.control(pause("hk-2024", "HK", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: states(world).get("pause:hk-2024:1") is False, "the second order")
    first.kill()
    answer(world, "pause:ca-2024:1")
    wait_for(lambda: states(world)["pause:ca-2024:1"], "settled by the other", seconds=30)
    world.control(pause("uk-2024", "GB", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: states(world).get("pause:uk-2024:1") is False, "the third order")

    def still_open() -> float:
        return second.metric("consentry_purge_orders_open", subscriber="ranker")

    wait_for(lambda: still_open() == 2, "two orders open by the gauge")
    told = [read_order(message.value, world.catalog) for message in world.log(PURGE_ORDERS)]
    of_first = [order.is_settled for order in told if order.order_id == "pause:ca-2024:1"]
    assert of_first == sorted(of_first), "a settled order is never opened again"


def test_every_metric_is_exported_with_exactly_its_labels_and_no_member_stands_in_one(
    world: World,
) -> None:
    """Alerts would watch a metric that nobody sends, and pseudonyms would be kept by the monitoring
    for years.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    dataset = world.directory / "posts"
    dataset.mkdir()
    pq.write_table(pa.table({"member_id": ["marked-anna", "marked-bo"]}), dataset / "all.parquet")
    worker = world.processor(SUBSCRIBERS="ranker=posts", LOG_LEVEL="debug")
    trainer = world.start(
        *("trainer", "--dataset", str(dataset), "--name", "ranker", "--every", "0.5"),
        LOG_LEVEL="debug",
    )
    worker.wait_ready()
    trainer.wait_ready()
    world.open_policy()
    world.produce(
        lives_in("marked-anna"),
        lives_in("marked-bo"),
        opted_in("marked-bo"),
        opted_out("marked-bo"),
    )
    world.produce(erased("marked-anna"))
    world.produce_raw(b"marked-cy", b"marked-payload")
    wait_for(lambda: worker.metric("consentry_receipts_total", subscriber="ranker"), "a receipt")
    wait_for(
        lambda: worker.metric("consentry_events_total", outcome="quarantined"),
        "a quarantined event",
    )
    wait_for(lambda: trainer.metric("consentry_decisions_total", outcome="excluded"), "decisions")
    wait_for(lambda: trainer.metric("consentry_members", subscriber="ranker") == 3, "three members")
    gateway = world.start("gateway", "--dev", "--port", "0", name="gateway", LOG_LEVEL="debug")
    client = GatewayClient(
        str(wait_for(lambda: gateway.lines("gateway"), "the gateway")[0]["url"]), "dev:web:producer"
    )
    client.post(
        "/v1/consent-changes", {"member_id": "marked-dee", "purpose": PURPOSE, "choice": "OPT_OUT"}
    )
    client.get(f"/v1/members/marked-dee/decision?purpose={PURPOSE}")
    of_gateway = {name for name in DEFINITIONS if name.startswith("consentry_gateway_")}
    for running, expected in (
        (worker, DEFINITIONS.keys() - OF_TRAINERS - OF_THE_BUNDLER - of_gateway),
        (trainer, OF_TRAINERS),
        (gateway, of_gateway | {"consentry_decisions_total"}),
    ):
        assert_exported(running, {*expected, "consentry_build_info"} - ONLY_AFTER_A_FAULT)
        assert "marked-" not in running.page("/metrics")[1]
        assert "marked-" not in running.text(), "no member and no payload in a log line"
        assert running.page("/healthz")[0] == 200
        assert running.page("/nowhere")[0] == 404


def assert_exported(running: Running, expected: set[str]) -> None:
    """All of `expected` are there, nothing that is not declared, and every sample has the declared
    labels.
    """
    text = running.page("/metrics")[1]
    found: dict[str, set[tuple[str, ...]]] = {}
    for name, labels, _ in samples(text):
        base = name if name in DEFINITIONS else re.sub(r"_(bucket|count|sum|created)$", "", name)
        if base not in DEFINITIONS and f"{base}_total" in DEFINITIONS:
            base = f"{base}_total"
        found.setdefault(base, set()).add(tuple(label for label in labels if label != "le"))
    assert found.keys() <= DEFINITIONS.keys()
    assert not expected - found.keys()
    for name, seen in found.items():
        assert {frozenset(labels) for labels in seen} == {frozenset(DEFINITIONS[name].labels)}, name


def test_a_damaged_record_in_the_table_is_replaced_by_what_the_trainers_hold(world: World) -> None:
    """One flipped bit on a disk would spread from the table to every trainer with the member's next
    event.
    """
    worker = world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    member, neighbour = member_of(3), member_of(3, 1)
    world.produce(lives_in(member), opted_out(member), lives_in(neighbour))
    wait_for(
        lambda: reason(client, member) == "OPTED_OUT" and allowed(client, neighbour), "answers"
    )
    with world.table() as table:
        found, key = table.meta(3), member.encode()
        assert found.epoch is not None
        [record] = load_partition(table, 3, [key])
        assert record is not None
        damaged = record[:20] + bytes([record[20] ^ 4]) + record[21:]
        offset = found.next_offset
        store_partition(
            table, 3, {key: damaged}, epoch=found.epoch, expected_offset=offset, next_offset=offset
        )
    refused = world.cli("explain", member)
    assert (refused.returncode, "record.damaged" in refused.stderr) == (2, True)
    world.produce(lives_in(member, "HK"))
    wait_for(
        lambda: client.snapshot.records[key] == world.expected_records()[key], "the next event"
    )
    world.assert_all_agree(client)
    assert worker.metric("consentry_table_generation_changes_total") == 1
    assert reason(client, member) == "OPTED_OUT"
