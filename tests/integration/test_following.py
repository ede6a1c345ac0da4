"""A trainer that goes on from an earlier view instead of reading everything again."""

from __future__ import annotations

import pyarrow as pa
import pytest
import structlog
from tests.stack import PURPOSE, World, allowed, lives_in, opted_out, pause, reason, wait_for

from consentry.domain.controls import Reach
from consentry.trainer.client import Client

pytestmark = pytest.mark.stack


def test_a_client_goes_on_from_an_earlier_view_and_misses_nothing(world: World) -> None:
    """A restarted trainer that skipped what came in between would train on whoever opted out
    meanwhile.
    """
    world.processor()
    world.open_policy()
    first = world.client("first")
    world.produce(lives_in("anna"), lives_in("bert"))
    wait_for(lambda: allowed(first, "anna") and allowed(first, "bert"), "both allowed")
    first.stop()
    read_before = dict(first.snapshot.positions)

    world.produce(opted_out("anna"))
    world.control(pause("hk-2024", "HK", reach=Reach.PRIOR_AND_FUTURE))
    resumed = Client(
        world.kafka, world.catalog, name="again", namespace=world.namespace, resume=first.snapshot
    )
    resumed.start()
    try:
        wait_for(lambda: reason(resumed, "anna") == "OPTED_OUT", "the opt-out made in between")
        wait_for(
            lambda: [order.pause for order in resumed.open_orders()] == ["hk-2024"],
            "the order opened in between",
        )

        assert allowed(resumed, "bert")
        assert all(
            resumed.snapshot.positions[place] >= position for place, position in read_before.items()
        )
    finally:
        resumed.stop()


def test_a_purpose_that_no_policy_names_is_told_once(world: World) -> None:
    """A misspelt one leaves no rows, which looks like a data set of people who all opted out."""
    world.processor()
    world.open_policy()
    world.produce(lives_in("anna"))
    client = world.client()
    wait_for(lambda: allowed(client, "anna"), "allowed")
    rows = pa.table({"member_id": ["anna"]})

    with structlog.testing.capture_logs() as logs:
        for purpose in ("gen_training", PURPOSE, "gen_training"):
            client.decide_table(rows, purpose=purpose)

    told = [one for one in logs if one["event"] == "purpose_unknown"]
    assert [(one["purpose"], one["known"]) for one in told] == [("gen_training", PURPOSE)]


def test_a_stopped_client_allows_nobody(world: World) -> None:
    """Whoever forgets to start it again must not go on with what was true then."""
    world.processor()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")

    client.stop()

    assert reason(client, "anna") == "STALE"
