"""A client that begins with a bundle: ready at once, and never less careful than one that read
everything.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from tests.stack import World, allowed, lives_in, now, opted_out, reason, wait_for

from consentry.bundler.build import build
from consentry.bundles import BundleRefused, BundleStore, PublicKeys, SigningKey
from consentry.domain.errors import InvalidInput, Refused
from consentry.trainer.sharing import SharedSnapshot

pytestmark = pytest.mark.stack

KEY = SigningKey.generate()
KEYS = PublicKeys([KEY.public])


def bundle(world: World, directory: Path) -> str:
    """A bundle of everything that is there now."""
    build(
        BundleStore(directory),
        world.kafka,
        world.catalog,
        key=KEY,
        namespace=world.namespace,
        clock=now,
    )
    return str(directory)


def test_a_client_with_a_bundle_knows_all_and_goes_on(world: World, tmp_path: Path) -> None:
    """The opt-outs of the bundle, those that came since, and those that come later: none may be
    missed.
    """
    world.open_policy()
    world.processor()
    world.produce(*(lives_in(f"m:{number}") for number in range(50)), opted_out("m:1"))
    reader = world.client("reader")
    reader.wait_until_ready(40)
    wait_for(
        lambda: len(reader.snapshot.records) == 50 and not allowed(reader, "m:1"), "the members"
    )
    url = bundle(world, tmp_path / "bundles")
    world.produce(opted_out("m:2"), lives_in("m:new"))
    wait_for(lambda: reason(reader, "m:2") == "OPTED_OUT", "the opt-out since")

    client = world.client("cold", bundles=url, bundle_keys=KEYS, cache=tmp_path)

    assert len(client.snapshot.records) == 50, "from the bundle alone"
    assert reason(client, "m:3") == "STALE"
    client.wait_until_ready(20)
    assert [reason(client, f"m:{number}") for number in (1, 2, 3)] == [
        "OPTED_OUT",
        "OPTED_OUT",
        "DEFAULT_ON",
    ]
    world.produce(opted_out("m:3"))
    wait_for(lambda: reason(client, "m:3") == "OPTED_OUT", "an opt-out later")
    assert client.snapshot.digests() == reader.snapshot.digests()
    assert client.snapshot_id == reader.snapshot_id
    token = client.token()
    assert token is not None
    reader.wait_for(token, 10)
    world.assert_all_agree(reader, client)


def test_bundles_that_must_not_be_believed_are_refused_before_anything_is_followed(
    world: World, tmp_path: Path
) -> None:
    """Whoever can write to a store could take every opt-out back."""
    world.open_policy()
    world.processor()
    world.produce(opted_out("m:1"))
    reader = world.client("reader")
    reader.wait_until_ready(40)
    url = bundle(world, tmp_path / "bundles")

    with pytest.raises(InvalidInput, match="without the keys"):
        world.client("a", bundles=url)
    with pytest.raises(BundleRefused) as caught:
        world.client("b", bundles=url, bundle_keys=PublicKeys([SigningKey.generate().public]))
    assert caught.value.code == "bundle.key_unknown"
    with pytest.raises(BundleRefused) as caught:
        world.client("c", bundles=url, bundle_keys=KEYS, bundle_age_seconds=0.001)
    assert caught.value.code == "bundle.expired"
    file = next(path for path in (tmp_path / "bundles").rglob("records*"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleRefused):
        world.client("d", bundles=url, bundle_keys=KEYS)


def test_a_bundle_of_topics_that_were_made_anew_is_refused(world: World, tmp_path: Path) -> None:
    """Its offsets mean nothing there: whatever lies before them in the new log would never be
    read.
    """
    world.open_policy()
    world.processor()
    world.produce(opted_out("m:1"))
    world.client("reader").wait_until_ready(40)
    url = bundle(world, tmp_path / "bundles")
    other = World(world.stack, tmp_path / "other")
    try:
        with pytest.raises((Refused, BundleRefused)):
            other.client("a", bundles=url, bundle_keys=KEYS)
    finally:
        other.close()


def test_workers_see_what_their_client_sees_until_it_stops(world: World, tmp_path: Path) -> None:
    """The workers of a data loader have no Kafka; an opt-out has to reach them all the same."""
    world.open_policy()
    world.processor()
    world.produce(lives_in("m:1"), lives_in("m:2"))
    client = world.client("trainer")
    client.wait_until_ready(40)
    wait_for(lambda: allowed(client, "m:1") and allowed(client, "m:2"), "both members")
    client.share(tmp_path / "view")
    worker = SharedSnapshot(tmp_path / "view", staleness_seconds=5.0)
    table = pa.table({"member_id": ["m:1", "m:2"]})

    assert worker.decide_table(table, purpose="genai_training").mask.tolist() == [True, True]
    world.produce(opted_out("m:1"))
    wait_for(
        lambda: not worker.decide_table(table, purpose="genai_training").mask[0], "the opt-out"
    )
    assert worker.decide_table(
        table, purpose="genai_training", at_least=client.token()
    ).mask.tolist() == [
        False,
        True,
    ]

    client.stop()

    assert worker.decide_table(table, purpose="genai_training").mask.tolist() == [False, False]
    assert "stopped" in worker.stale_detail
    shutil.rmtree(tmp_path / "view")
    assert worker.stale_detail
