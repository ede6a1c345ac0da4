"""B-19 and B-20: small batches that inflate to more than anybody can hold, stopped by the broker.

The poison of a compressed batch lies below every decoder: a consumer that cannot inflate it never
moves on.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from tests.stack import World, allowed, lives_in, wait_for

from consentry.kafka.clients import end_offsets
from consentry.wire.schemas import MEMBER_EVENTS

pytestmark = pytest.mark.stack

ZEROS = bytes(400_000)
COUNT = 75
"""75 values of 400 kB: 30 MB of zeros, in a batch of a few kilobytes."""


def send_bomb(world: World, topic: str, codec: str) -> set[int | None]:
    """Send the batch, and say with which error codes the broker answered (None: it took it)."""
    attacker = Producer(
        {
            "bootstrap.servers": world.stack.addresses.kafka,
            "compression.type": codec,
            # An attacker's own limits are no limits.
            "message.max.bytes": 100_000_000,
            "batch.size": 100_000_000,
            "queue.buffering.max.kbytes": 200_000,
            "linger.ms": 500,
        }
    )
    answers: list[int | None] = []
    for _ in range(COUNT):
        attacker.produce(
            topic,
            ZEROS,
            b"bomb",
            0,
            on_delivery=lambda error, _message: answers.append(error.code() if error else None),
        )
    assert attacker.flush(40) == 0
    assert len(answers) == COUNT
    return set(answers)


def end_of(world: World, topic: str) -> int:
    """How many messages partition 0 of a topic holds."""
    admin = AdminClient(dict(world.kafka))
    return end_offsets(admin, [(topic, 0)])[topic, 0]


def make_topic(world: World, name: str, config: Mapping[str, str]) -> str:
    """A topic of the same broker with other settings."""
    topic = world.topic(name)
    new = NewTopic(topic, num_partitions=1, replication_factor=1, config=dict(config))
    admin = AdminClient(
        dict(world.kafka)
    )  # without a name of its own it would be gone before the answer is there
    admin.create_topics([new])[topic].result(15)
    return topic


def declared(world: World) -> dict[str, str]:
    """What the broker holds of the two settings that stop a bomb."""
    resource = ConfigResource(ResourceType.TOPIC, world.topic(MEMBER_EVENTS))
    admin = AdminClient(dict(world.kafka))
    answer = admin.describe_configs([resource])[resource].result(15)
    return {name: str(answer[name].value) for name in ("compression.type", "max.message.bytes")}


@pytest.mark.parametrize("codec", ["zstd"])
def test_b19_the_broker_refuses_a_zstd_bomb_and_the_next_event_is_applied(
    world: World, codec: str
) -> None:
    """A consumer that met one was seen to stand before it for ever: no opt-out behind it was
    heard.
    """
    assert_refused(world, codec)


@pytest.mark.parametrize("codec", ["lz4", "gzip", "snappy"])
def test_b20_the_broker_refuses_other_bombs_and_the_next_event_is_applied(
    world: World, codec: str
) -> None:
    """They inflate past every limit of the client: the worker is ended for its memory, and again
    after a restart.
    """
    assert_refused(world, codec)


def assert_refused(world: World, codec: str) -> None:
    topic = world.topic(MEMBER_EVENTS)
    assert declared(world) == {"compression.type": "uncompressed", "max.message.bytes": "1048576"}
    assert send_bomb(world, topic, codec) == {KafkaError.MSG_SIZE_TOO_LARGE}
    assert end_of(world, topic) == 0
    if codec in ("zstd", "gzip"):
        world.processor()
        world.open_policy()
        client = world.client()
        world.produce(lives_in("anna"))
        wait_for(lambda: allowed(client, "anna"), "the good event behind the bomb")


@pytest.mark.parametrize("codec", ["zstd", "lz4", "gzip"])
def test_b19_b20_without_recompression_the_broker_takes_the_bomb(world: World, codec: str) -> None:
    """It weighs what arrives; only where it has to store the batch uncompressed does it weigh what
    is in there.
    """
    topic = make_topic(
        world, "bombs", {"compression.type": "producer", "max.message.bytes": "1048576"}
    )
    assert send_bomb(world, topic, codec) == {None}
    assert end_of(world, topic) == COUNT


def test_b19_b20_without_the_limit_of_size_the_broker_takes_the_bomb_too(world: World) -> None:
    """Both settings are needed: stored uncompressed, thirty megabytes are still thirty
    megabytes.
    """
    topic = make_topic(
        world, "bombs", {"compression.type": "uncompressed", "max.message.bytes": "104857600"}
    )
    assert send_bomb(world, topic, "zstd") == {None}


def test_b19_b20_a_processor_refuses_to_start_where_the_topic_takes_compressed_batches(
    world: World,
) -> None:
    """The guard stands on the broker, so somebody could take it away without touching us."""
    entry = ConfigEntry("compression.type", "producer", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(
        ResourceType.TOPIC, world.topic(MEMBER_EVENTS), incremental_configs=[entry]
    )
    admin = AdminClient(dict(world.kafka))
    admin.incremental_alter_configs([resource])[resource].result(15)
    worker = world.processor()
    assert worker.wait_end() != 0
    assert "topic.unsafe.compression.type" in worker.text()
