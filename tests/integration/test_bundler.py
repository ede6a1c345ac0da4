"""The bundler on the real stack: bundles while all is fresh, through kills and rivals, and records
that are healed.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from confluent_kafka import Producer
from tests.gateway import Gateway
from tests.sizes import size
from tests.stack import Running, World, allowed, lives_in, opted_in, opted_out, wait_for

from consentry.bundles import (
    BundleRefused,
    BundleState,
    BundleStore,
    Manifest,
    PublicKeys,
    SigningKey,
    open_bundle,
    restore,
)
from consentry.bundles.http_store import open_store
from consentry.bundles.keys import make_key_files
from consentry.bundles.manifest import read_manifest
from consentry.domain.errors import Refused
from consentry.kafka.clients import producer_config
from consentry.ops.clock import system_clock
from consentry.ops.metrics import METRICS
from consentry.wire.partitions import partition_of
from consentry.wire.records import version_of
from consentry.wire.schemas import RECORDS

pytestmark = pytest.mark.stack


class Bundles:
    """A store, its keys, and bundlers on it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.directory / "bundles"
        self.key, self.public_key, _ = make_key_files(world.directory / "bundles.key")
        self.keys = PublicKeys.read(self.public_key)

    def bundler(
        self,
        worker_id: str = "b1",
        *,
        every: float = 0.3,
        snapshot_every: int = 5,
        keep: float = 60,
    ) -> Running:
        return self.world.start(
            *(
                "bundler",
                "--store",
                str(self.store),
                "--key",
                str(self.key),
                "--keep",
                str(keep),
                "--claim",
                "5",
            ),
            *("--every", str(every), "--snapshot-every", str(snapshot_every)),
            name=f"bundler-{worker_id}",
            WORKER_ID=worker_id,
        )

    def state(self, *, least: int = 0) -> tuple[Manifest, BundleState]:
        """The newest bundle, checked to the last byte, and what it holds."""
        bundle = open_bundle(
            BundleStore(self.store),
            keys=self.keys,
            namespace=self.world.namespace,
            now=system_clock(),
            least_sequence=least,
        )
        return bundle.manifest, restore(bundle)

    def newest(self, *, least: int = 0) -> Manifest:
        return open_bundle(
            BundleStore(self.store),
            keys=self.keys,
            namespace=None,
            now=system_clock(),
            least_sequence=least,
        ).manifest

    def wait_beyond(self, sequence: int, *, seconds: float = 30) -> Manifest:
        """The newest bundle, as soon as its number is above."""
        return wait_for(
            lambda: found if (found := self.newest()).sequence > sequence else None,  # type: ignore[return-value]
            f"a bundle after {sequence}",
            seconds=seconds,
        )


def told(running: Running) -> dict[str, Any]:
    return running.told("/readyz")


def last_in_log(world: World, member: str) -> bytes:
    """The record that a compaction of everything would keep."""
    values = [message.value for message in world.log(RECORDS) if message.key == member.encode()]
    assert values[-1] is not None
    return values[-1]


def append_by_hand(world: World, member: str, value: bytes) -> None:
    """As a worker that wakes up too late."""
    producer = Producer(producer_config(world.kafka, "frozen-worker"))
    key = member.encode()
    producer.produce(world.topic(RECORDS), value, key, partition_of(key, 8))
    assert producer.flush(20) == 0


def test_every_choice_is_in_a_bundle_a_moment_later_and_nothing_is_bundled_that_is_not_fresh(
    world: World,
) -> None:
    """A trainer that starts from a bundle without the last opt-outs, and believes it, trains on
    those members.
    """
    worker = world.processor().wait_ready()
    world.open_policy()
    world.produce(*(lives_in(f"m:{number}") for number in range(50)))
    bundles = Bundles(world)
    bundler = bundles.bundler(every=0.5, snapshot_every=4).wait_ready()
    first = bundles.newest()
    assert (first.kind, first.sequence) == ("snapshot", 1)
    world.produce(opted_out("m:7"))
    expected = world.expected_records

    def arrived() -> bool:
        return dict(bundles.state()[1].items()) == expected()

    wait_for(arrived, "the opt-out in a bundle", every=0.2)
    bundles.wait_beyond(4)
    assert {"snapshot", "delta"} == {
        name.split("-")[1] for name in BundleStore(bundles.store).bundle_ids()
    }
    world.ok("bundle", "verify", str(bundles.store), "--key", str(bundles.public_key))
    assert bundler.metric("consentry_bundle_age_seconds") < 5
    assert bundler.metric("consentry_bundles_total", outcome="delta") >= 2
    exported = bundler.page("/metrics")[1]
    wanted = {name for name in METRICS if name.startswith("consentry_bundle")} | {
        "consentry_members_quarantined"
    }
    assert {name for name in wanted if f"# HELP {name} " not in exported} == set(), (
        "alerts would watch nothing"
    )

    worker.kill()
    wait_for(lambda: bundler.page("/readyz")[0] == 503, "not ready without a processor")
    stopped_at = bundles.newest().sequence
    time.sleep(2)
    assert bundles.newest().sequence == stopped_at, "an unfresh state was published"
    assert bundler.metric("consentry_bundles_total", outcome="stale") > 0
    assert "m:7" not in bundler.text()
    world.processor().wait_ready()
    bundles.wait_beyond(stopped_at)
    assert bundler.stop() == 0


def test_a_gateway_hands_out_what_the_bundler_signed_and_a_trainer_starts_from_it(
    world: World,
) -> None:
    """A trainer without a way to the object store starts from what the gateway gives it, or not at
    all.
    """
    world.processor().wait_ready()
    world.open_policy()
    world.produce(*(lives_in(f"m:{number}") for number in range(30)))
    bundles = Bundles(world)
    bundles.bundler(every=1.0).wait_ready()
    gateway = Gateway(
        world, BUNDLE_STORE=str(bundles.store), BUNDLE_PUBLIC_KEY_FILES=str(bundles.public_key)
    )
    trainer = "dev:ranker:trainer"
    first = gateway.call("GET", "/v1/bundles/latest", who=trainer)
    content, _, signature = first.body.partition(b"\n")
    assert first.status == 200
    assert first.headers["etag"] == f'"{read_manifest(content, signature, bundles.keys).sha256}"'
    assert "private" in first.headers["cache-control"]
    gateway.choose("m:3", "OPT_OUT")

    def changed() -> bool:
        again = gateway.call(
            "GET", "/v1/bundles/latest", who=trainer, if_none_match=first.headers["etag"]
        )
        assert (again.status, again.body) == (304, b"") or again.status == 200
        return again.status == 200

    wait_for(changed, "another entity tag")
    store = open_store(f"{gateway.url}/v1/bundles", credential=trainer)

    def read() -> BundleState:
        return restore(
            open_bundle(store, keys=bundles.keys, namespace=world.namespace, now=system_clock())
        )

    wait_for(
        lambda: dict(read().items()) == world.expected_records(), "the opt-out by HTTP", every=0.3
    )
    for who, code in (("dev:x:producer", 403), ("dev:ranker:trainer:ads", 403), (None, 401)):
        assert gateway.call("GET", "/v1/bundles/latest", who=who).status == code
    with pytest.raises(Refused, match="credential"):
        open_bundle(
            open_store(f"{gateway.url}/v1/bundles"),
            keys=bundles.keys,
            namespace=None,
            now=system_clock(),
        )
    keys = PublicKeys([SigningKey.generate().public])
    with pytest.raises(BundleRefused) as forged:
        open_bundle(store, keys=keys, namespace=None, now=system_clock())
    assert forged.value.code == "bundle.key_unknown"
    assert "m:3" not in gateway.running.text()


@pytest.mark.sized
def test_a_bundler_that_is_killed_leaves_a_readable_bundle_and_the_next_goes_on(
    world: World,
) -> None:
    """A half-written bundle would keep every trainer from starting until somebody cleans up by
    hand.
    """
    world.processor().wait_ready()
    world.open_policy()
    world.produce(*(lives_in(f"m:{number}") for number in range(400)))
    bundles = Bundles(world)
    bundles.bundler(every=0.1, snapshot_every=2, keep=0).wait_ready().stop()
    sequence, chosen = bundles.newest().sequence, random.Random(7)
    for number in range(size(small=2, full=7)):
        running = bundles.bundler(every=0.1, snapshot_every=2, keep=0)
        world.produce(opted_out(f"m:{number}"))
        bundles.wait_beyond(sequence)
        time.sleep(chosen.random() * 0.4)
        running.kill()
        manifest, state = bundles.state(least=sequence + 1)
        sequence = manifest.sequence
        assert len(state) == 400
    last = bundles.bundler(every=0.1, snapshot_every=2, keep=0)
    wait_for(
        lambda: dict(bundles.state()[1].items()) == world.expected_records(),
        "all choices",
        every=0.2,
    )
    last.stop()
    assert len(BundleStore(bundles.store).bundle_ids()) <= 6, (
        "what the killed ones left is deleted in time"
    )


@pytest.mark.long
def test_two_bundlers_on_one_store_take_turns_and_never_fork_the_chain(world: World) -> None:
    """A trainer would follow one branch while opt-outs go into the other."""
    world.processor().wait_ready()
    world.open_policy()
    world.produce(*(lives_in(f"m:{number}") for number in range(20)))
    bundles = Bundles(world)
    first = bundles.bundler("b1", every=0.3).wait_ready()
    second = bundles.bundler("b2", every=0.3).wait_ready()
    wait_for(lambda: told(second)["outcome"] == "standby", "the second stands by")
    sequence = bundles.newest().sequence
    first.freeze()
    wait_for(
        lambda: told(second)["outcome"] in ("snapshot", "delta"), "the second took over", seconds=90
    )
    sequence = bundles.wait_beyond(sequence + 2).sequence
    world.produce(opted_out("m:3"))
    first.thaw()
    wait_for(lambda: told(first)["outcome"] == "standby", "the first stands by", seconds=20)
    sequence = bundles.wait_beyond(sequence + 2).sequence
    second.kill()
    wait_for(
        lambda: told(first)["outcome"] in ("snapshot", "delta"), "the first took over", seconds=90
    )
    manifest, state = bundles.state(least=sequence)
    assert dict(state.items()) == world.expected_records()
    assert manifest.sequence >= sequence
    numbers = [name[:10] for name in BundleStore(bundles.store).bundle_ids()]
    assert len(numbers) == len(set(numbers)), "no number was given twice"


def test_a_record_that_went_back_is_published_again_also_if_nobody_ran_when_it_did(
    world: World,
) -> None:
    """Compaction keeps the last message: who starts from the log an hour later would train on who
    opted out.
    """
    world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"), lives_in("bo"), opted_in("anna"), opted_in("bo"))
    wait_for(lambda: allowed(client, "anna") and allowed(client, "bo"), "answers")
    older = {member: client.snapshot.records[member.encode()] for member in ("anna", "bo")}
    world.produce(opted_out("anna"), opted_out("bo"))
    wait_for(lambda: not allowed(client, "anna") and not allowed(client, "bo"), "opted out")
    newest = {member: client.snapshot.records[member.encode()] for member in ("anna", "bo")}
    append_by_hand(world, "anna", older["anna"])
    time.sleep(1)
    assert last_in_log(world, "anna") == older["anna"], (
        "without a bundler the older record is what stays"
    )

    bundles = Bundles(world)
    bundler = bundles.bundler().wait_ready()
    wait_for(
        lambda: last_in_log(world, "anna") == newest["anna"], "healed by looking back", every=0.2
    )
    append_by_hand(world, "bo", older["bo"])
    wait_for(lambda: last_in_log(world, "bo") == newest["bo"], "healed live", seconds=5, every=0.2)

    versions = [version_of(one.value or b"") for one in world.log(RECORDS) if one.key == b"bo"]
    assert versions[-3:] == [3, 2, 3], "once, and nothing else"
    assert not allowed(client, "bo")
    assert bundler.metric("consentry_bundler_regressions_total") == 2
    assert bundler.metric("consentry_bundler_heals_total", outcome="appended") == 2
    assert bundler.metric("consentry_bundler_unhealed_seconds") == 0
    assert bundler.metric("consentry_bundler_divergences_total") == 0
    assert "anna" not in bundler.text()
    stop_and_look_again(bundles, bundler)


def stop_and_look_again(bundles: Bundles, bundler: Running) -> None:
    """What was healed is not healed once more by the next one."""
    assert bundler.stop() == 0
    length = len(bundles.world.log(RECORDS))
    again = bundles.bundler().wait_ready()
    wait_for(lambda: again.lines("looked_back"), "looked back")
    assert again.lines("looked_back")[0]["went_back"] == 0
    assert len(bundles.world.log(RECORDS)) == length
