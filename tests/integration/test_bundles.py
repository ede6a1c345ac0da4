"""Bundles of a real log: what the commands write is what the table, the log and the followers
hold.
"""

from __future__ import annotations

import json

import pytest
from tests.stack import (
    PARTITIONS,
    World,
    erased,
    lives_in,
    now,
    opted_in,
    opted_out,
    pause,
    wait_for,
)

from consentry.bundler.follower import BundleFollower
from consentry.bundles import BundleState, BundleStore, PublicKeys, Regression, open_bundle, restore
from consentry.domain.errors import Refused
from consentry.wire.partitions import partition_of
from consentry.wire.schemas import RECORDS

pytestmark = pytest.mark.stack


def keys(world: World) -> tuple[str, str]:
    """The files of a signing key and of its public half."""
    made = json.loads(world.ok("bundle", "keys", "init", "bundles.key", "--json"))
    return made["private"], made["public"]


def test_a_bundle_holds_what_the_log_holds_and_its_delta_what_came_since(world: World) -> None:
    """A trainer that starts from it leaves out the very same members as one that read
    everything.
    """
    world.processor().wait_ready()
    world.open_policy()
    world.produce(
        *(lives_in(f"m:{number}") for number in range(20)), opted_out("m:1"), opted_out("4711")
    )
    world.produce(erased("m:2"), opted_in("m:3"))
    client = world.client()
    records = world.assert_all_agree(client)
    private, public = keys(world)
    built = json.loads(world.ok("bundle", "build", "bundles", "--key", private, "--json"))
    assert built["members"] == len(records)
    told = json.loads(
        world.ok("bundle", "verify", "bundles", "--key", public, "--max-age", "60", "--json")
    )
    assert (told["ok"], told["kind"], told["manifest_sha256"]) == (
        True,
        "snapshot",
        built["manifest_sha256"],
    )
    store, believed = (
        BundleStore(world.directory / "bundles"),
        PublicKeys.read(world.directory / public),
    )
    bundle = open_bundle(
        store, keys=believed, namespace=world.namespace, now=now(), max_age_seconds=60
    )
    assert dict(restore(bundle).items()) == records
    assert (
        dict(enumerate(one.digest for one in bundle.manifest.partitions))
        == client.snapshot.digests()
    )
    assert bundle.positions.items() <= dict(client.snapshot.positions).items()
    assert list(bundle.own_exclusions("genai_training")) == [4711]

    world.produce(opted_out("m:4"), opted_out("4712"))
    world.control(pause("hk", "HK"))
    records = world.assert_all_agree(client)
    first = f"bundles/{built['bundle_id']}"
    built = json.loads(
        world.ok("bundle", "build", "bundles", "--key", private, "--delta", "--json")
    )
    assert (built["kind"], built["sequence"]) == ("delta", 2)
    bundle = open_bundle(store, keys=believed, namespace=world.namespace, now=now())
    assert dict(restore(bundle).items()) == records
    assert restore(bundle).controls == client.snapshot.controls
    done = world.cli("bundle", "diff", first, "bundles", "--key", public, "--json")
    assert done.returncode == 1, done.stderr
    difference = json.loads(done.stdout)
    assert (difference["added"], difference["changed"], difference["controls added"]) == (1, 1, 1)
    assert difference["newly excluded from genai_training"] == 2
    assert world.cli("bundle", "diff", first, first, "--key", public).returncode == 0


def test_following_goes_on_where_a_bundle_ends_and_tells_what_went_back(world: World) -> None:
    """The bundler is restarted with every upgrade; a topic that was made anew must not be taken for
    the old one.
    """
    world.processor().wait_ready()
    world.open_policy()
    world.produce(lives_in("m:1"))
    before = world.assert_all_agree()
    private, public = keys(world)
    world.ok("bundle", "build", "bundles", "--key", private)
    believed = PublicKeys.read(world.directory / public)
    bundle = open_bundle(
        str(world.directory / "bundles"), keys=believed, namespace=world.namespace, now=now()
    )
    world.produce(opted_out("m:1"))
    after = world.assert_all_agree()
    # A frozen worker that wakes: it publishes the older record behind the newer one.
    world.producer.produce(
        world.topic(RECORDS), before[b"m:1"], b"m:1", partition_of(b"m:1", PARTITIONS)
    )
    assert world.producer.flush(10) == 0
    told: list[Regression] = []
    state = restore(bundle, world.catalog)
    with BundleFollower(
        world.kafka,
        world.catalog,
        namespace=world.namespace,
        state=state,
        on_regression=told.append,
    ) as one:
        one.catch_up(20)
        wait_for(
            lambda: one.step() and state.freshness.newest > bundle.manifest.proven_at,
            "a newer frontier",
        )
    assert dict(state.items()) == after
    assert [(found.member, found.newest) for found in told] == [(b"m:1", after[b"m:1"])]
    assert state.changed == [b"m:1"]
    other = BundleState(PARTITIONS, world.catalog, logs=dict(state.logs) | {RECORDS: "00" * 8})
    with pytest.raises(Refused, match=r"bundle\.other_log"):
        BundleFollower(world.kafka, world.catalog, namespace=world.namespace, state=other)


def test_what_cannot_be_built_or_verified_says_so_by_its_exit(world: World) -> None:
    """A pipeline goes by the exit status: refused is not the same as not known."""
    private, public = keys(world)
    assert world.cli("bundle", "verify", "bundles", "--key", public).returncode == 2, (
        "there is none"
    )
    assert world.cli("bundle", "build", "bundles", "--key", public).returncode == 2, (
        "that key does not sign"
    )
    assert world.cli("bundle", "build", "bundles", "--key", private, "--delta").returncode == 2, (
        "delta on what?"
    )
    world.ok("bundle", "build", "bundles", "--key", private)
    other = json.loads(world.ok("bundle", "keys", "init", "other.key", "--json"))
    assert world.cli("bundle", "verify", "bundles", "--key", other["public"]).returncode == 1
    expired = world.cli("bundle", "verify", "bundles", "--key", public, "--max-age", "60")
    assert (expired.returncode, "bundle.expired" in expired.stderr) == (1, True), (
        "no processor: nothing is proven"
    )
    assert (
        world.cli("bundle", "verify", "bundles", "--key", public, "--namespace", "x").returncode
        == 1
    )
    assert "signs" in world.ok("bundle", "keys", "init", "third.key")
    assert world.cli("bundle", "keys", "init", "third.key").returncode == 2
