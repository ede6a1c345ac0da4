"""A world in which every bad message has been sent once, and what it then looks like to
everybody.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import fastavro
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.faults.inputs.attacks import TAINTED, Attack
from tests.faults.inputs.counting import CountingRegistry
from tests.stack import World, allowed, lives_in, member_of, reason, wait_for

from consentry.kafka.clients import end_offsets, follower_config, producer_config
from consentry.kafka.headers import headers_of
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.headers import Header, Headers
from consentry.wire.schemas import MEMBER_EVENTS, QUARANTINE, schema

OURS: Final = (
    "orig.topic",
    "orig.partition",
    "orig.offset",
    "orig.timestamp",
    "error_class",
    "app_version",
)


class Kept(NamedTuple):
    """One message of quarantine: what its value says, and its headers."""

    fields: dict[str, Any]
    headers: Headers


class Scene:
    """A world with a processor, a policy that allows by default, and a trainer's client."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.registry = CountingRegistry(world.stack.addresses.registry_url)
        try:
            self.worker = world.processor(REGISTRY_URL=self.registry.address).wait_ready()
        except BaseException:
            self.registry.close()
            raise
        world.open_policy()
        self.client = world.client()
        self._large = Producer(
            producer_config(world.kafka, "attacker") | {"message.max.bytes": 2_000_000}
        )
        self.sent: dict[str, tuple[bytes | None, bytes | None, int, int]] = {}
        """By member: key, value, partition and offset of the bad message."""
        self.in_tainted = member_of(TAINTED)
        self._kept: list[Kept] | None = None

    def close(self) -> None:
        """End what was started here; the world ends the rest."""
        self.registry.close()

    def attack(self, attacks: Sequence[Attack]) -> None:
        """Every member is allowed first; then come the bad messages, each with a good event of
        another behind it.
        """
        self.world.produce(
            *(lives_in(attack.member) for attack in attacks), lives_in(self.in_tainted)
        )
        everybody = [*(attack.member for attack in attacks), self.in_tainted]
        wait_for(
            lambda: all(allowed(self.client, member) for member in everybody),
            "all allowed",
            seconds=40,
        )
        for attack in attacks:
            member = attack.member.encode()
            key = member if attack.key is None else attack.key or None
            value = attack.value(self.world.catalog, member)
            offset = self.send(key, value, attack.partition, attack.headers)
            self.sent[attack.member] = (key, value, attack.partition, offset)
        self.world.produce(*(lives_in(attack.after) for attack in attacks))
        records = self.client.snapshot.records
        wait_for(
            lambda: all(attack.after.encode() in records for attack in attacks),
            "the events behind",
            seconds=40,
        )

    def send(
        self, key: bytes | None, value: bytes | None, partition: int, headers: Sequence[Header] = ()
    ) -> int:
        """Send one message to member-events; its offset."""
        offsets: list[int | None] = []
        told: Any = list(headers) or None
        self._large.produce(
            self.world.topic(MEMBER_EVENTS),
            value,
            key,
            partition,
            headers=told,
            on_delivery=lambda error, message: offsets.append(None if error else message.offset()),
        )
        assert self._large.flush(30) == 0
        [offset] = offsets
        assert offset is not None
        return offset

    def reason(self, member: str) -> str:
        """Why the trainer may not use the member's data, once its answer is settled."""
        return reason(self.client, member)

    def quarantine(self, *, again: bool = False) -> list[Kept]:
        """Every message in quarantine; read once, unless `again`."""
        if self._kept is None or again:
            self._kept = read_quarantine(self.world)
        return self._kept

    def assert_refused(self, attack: Attack) -> None:
        """What is promised for each bad message: held or tainted, kept, passed, excluded."""
        key, value, partition, offset = self.sent[attack.member]
        place = {"topic": self.world.topic(MEMBER_EVENTS), "partition": partition, "offset": offset}
        [kept] = [one for one in self.quarantine() if place.items() <= one.fields.items()]
        assert (kept.fields["key"], kept.fields["value"]) == (key, value), (
            "the bytes are kept as they were sent"
        )
        assert kept.fields["error_class"] == attack.error_class
        self._assert_headers(attack, kept)
        if attack.taints:
            assert self.reason(self.in_tainted) == self.reason(attack.after) == "QUARANTINED", (
                "the partition allows nobody"
            )
        else:
            assert self.reason(attack.member) == "QUARANTINED"
            assert allowed(self.client, attack.after), "the partition went on behind it"

    def _assert_headers(self, attack: Attack, kept: Kept) -> None:
        ours = dict(kept.headers[len(attack.headers[:32]) :])
        assert tuple(kept.headers[: len(attack.headers[:32])]) == attack.headers[:32]
        fields = kept.fields
        assert set(OURS) <= set(ours) <= {*OURS, "schema_id"}
        assert ours["orig.topic"] == fields["topic"].encode()
        assert ours["orig.partition"] == str(fields["partition"]).encode()
        assert ours["orig.offset"] == str(fields["offset"]).encode()
        assert ours["orig.timestamp"] == str(fields["appended_at"] // 1000).encode()
        assert ours["error_class"] == attack.error_class.encode()
        assert ours.get("schema_id") == (
            None if fields["schema_id"] is None else str(fields["schema_id"]).encode()
        )


def read_quarantine(world: World) -> list[Kept]:
    """Every message in quarantine, with headers."""
    topic, parsed = world.topic(QUARANTINE), schema("Quarantined").parsed
    consumer = Consumer(follower_config(world.kafka, "quarantine-reader"))
    admin_places = [(topic, partition) for partition in range(8)]
    from confluent_kafka.admin import AdminClient

    ends = end_offsets(AdminClient(dict(world.kafka)), admin_places)
    left = sum(ends.values())
    consumer.assign([TopicPartition(topic, partition, 0) for _, partition in admin_places])
    found: list[Kept] = []
    try:
        while len(found) < left:
            for message in consumer.consume(500, 5.0):
                if message.error() is not None:
                    continue
                value = message.value() or b""
                fields: Any = fastavro.schemaless_reader(
                    io.BytesIO(value[FRAME_LENGTH:]), parsed, None
                )
                found.append(Kept(fields, headers_of(message) or ()))
    finally:
        consumer.close()
    return found
