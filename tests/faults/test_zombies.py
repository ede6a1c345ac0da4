"""Workers that share partitions, die, or wake up after they were replaced."""

from __future__ import annotations

import time

import pytest
from tests.stack import PARTITIONS, Load, Watch, World, allowed, lives_in, opted_out, wait_for

pytestmark = pytest.mark.stack


def test_a_worker_that_wakes_after_it_was_replaced_writes_nothing(world: World) -> None:
    """An owner that does not know that it was replaced would put old records over newer
    opt-outs.
    """
    world.open_policy()
    world.produce(lives_in("in"), lives_in("out"))
    world.produce(opted_out("out"))
    client = world.client()
    first = world.processor("first").wait_ready()
    second = world.processor("second").wait_ready()
    wait_for(lambda: allowed(client, "in"), "answers")
    both = (first, second)
    wait_for(
        lambda: sum(one.told("/readyz")["partitions"] for one in both) == PARTITIONS,
        "all partitions shared",
    )
    watch, load = Watch(client, ["out"], "in"), Load(world)
    watch.start()
    load.start()
    load.wait_acknowledged(300)
    first.freeze()
    wait_for(
        lambda: second.told("/readyz")["partitions"] == PARTITIONS,
        "the other took over",
        seconds=30,
    )
    load.wait_acknowledged(300)
    refused_before = second.metric("consentry_table_refusals_total")
    first.thaw()
    wait_for(
        lambda: sum(one.told("/readyz")["partitions"] for one in both) == PARTITIONS,
        "shared again",
        seconds=30,
    )
    load.wait_acknowledged(300)
    load.finish()
    assert second.metric("consentry_table_refusals_total") == refused_before, (
        "the zombie took a partition back"
    )
    world.assert_all_agree(client)
    watch.finish()
    assert watch.allowed


@pytest.mark.long
def test_two_workers_share_the_partitions_and_one_goes_on_alone(world: World) -> None:
    """The loss of a machine would stop the exclusions of its half of the members."""
    client = world.client()
    first, second = world.processor("first"), world.processor("second")
    first.wait_ready()
    second.wait_ready()

    def shares() -> list[int]:
        return sorted(int(one.told("/readyz")["partitions"]) for one in (first, second))

    wait_for(lambda: shares() == [PARTITIONS // 2] * 2, "half each", seconds=30)
    load = Load(world)
    load.start()
    load.wait_acknowledged(200)
    first.kill()
    killed_at = time.monotonic()
    wait_for(lambda: second.told("/readyz")["partitions"] == PARTITIONS, "taken over", seconds=30)
    assert time.monotonic() - killed_at < 15
    load.wait_acknowledged(200)
    load.finish()
    world.assert_all_agree(client)


def test_a_worker_id_that_is_used_twice_ends_the_first_user_with_a_reason(world: World) -> None:
    """Two deployments with one name would push each other out for ever, and nobody would know
    why.
    """
    client = world.client()
    first = world.processor("same").wait_ready()
    second = world.processor("same")
    assert first.wait_end() == 1
    assert "fenced" in first.text()
    second.wait_ready()
    world.produce(lives_in("anna"))
    world.assert_all_agree(client)
