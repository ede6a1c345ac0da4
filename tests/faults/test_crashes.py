"""The processor dies, anywhere: nothing is lost, nothing is applied twice, and nobody is wrongly
allowed.
"""

from __future__ import annotations

import random

import pytest
from tests.stack import Load, Watch, World, allowed, lives_in, opted_out, wait_for

from consentry.ops.failpoints import NAMES

pytestmark = pytest.mark.stack

KILLED = 137
SOON = {"after_store", "before_commit"}
"""The points that `make test` kills at; `make test-all` has every other one."""


@pytest.mark.parametrize(
    "name",
    [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in NAMES],
)
def test_a_worker_that_dies_here_under_load_loses_nothing_and_applies_nothing_twice(
    world: World, name: str
) -> None:
    """An opt-out that the broker acknowledged would be forgotten by a crash between two steps."""
    client = world.client()
    load = Load(world)
    load.start()
    first = world.processor(FAILPOINT=f"{name}:3")
    assert first.wait_end() == KILLED
    world.processor()
    load.wait_acknowledged(400)
    assert load.finish() > 400
    world.assert_all_agree(client)
    assert client.snapshot.regressions == 0


@pytest.mark.long
def test_a_worker_killed_again_and_again_at_random_moments_leaves_the_same_records_everywhere(
    world: World,
) -> None:
    """Out-of-memory kills and lost machines choose no failpoint."""
    draw = random.Random(11)
    world.open_policy()
    excluded = [f"out-{number}" for number in range(10)]
    world.produce(*(lives_in(member) for member in excluded), lives_in("in"))
    world.produce(*(opted_out(member) for member in excluded))
    client = world.client()
    worker = world.processor()
    wait_for(lambda: allowed(client, "in"), "answers")
    watch, load = Watch(client, excluded, "in"), Load(world)
    watch.start()
    load.start()
    for _ in range(4):
        load.wait_acknowledged(draw.randrange(50, 600))
        worker.kill()
        worker = world.processor()
        wait_for(lambda worker=worker: worker.lines("partition_opened"), "partitions again")  # type: ignore[misc]
    load.finish()
    world.assert_all_agree(client)
    watch.finish()
    assert watch.allowed, "the watch would have seen an answer that allows"
    verified = world.cli("table", "verify", "--follower", world.digest_address(client))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_worker_asked_to_end_finishes_its_batch_and_leaves_nothing_to_repeat(
    world: World,
) -> None:
    """Every deployment would make trainers read the last minutes again, or lose what was in
    hand.
    """
    load = Load(world)
    load.start()
    worker = world.processor().wait_ready()
    load.wait_acknowledged(300)
    assert worker.stop() == 0
    load.finish()
    assert "Traceback" not in worker.text()
    second = world.processor().wait_ready()
    world.assert_all_agree()
    assert second.metric("consentry_events_total", outcome="replayed") == 0
    assert second.metric("consentry_events_total", outcome="applied") > 0 or load.acknowledged


@pytest.mark.long
def test_a_worker_asked_to_end_while_it_still_starts_ends_too(world: World) -> None:
    """A rollout that is taken back within a second would wait for a worker that waits for its own
    start.
    """
    worker = world.processor()
    wait_for(
        lambda: "HotPathService]: Starting" in worker.text(), "it starts", seconds=40, every=0.01
    )
    assert worker.stop() == 0
    assert "Traceback" not in worker.text()
