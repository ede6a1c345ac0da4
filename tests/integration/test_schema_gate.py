"""What a real registry lets pass, and that our gate stands before it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext
from tests.schemas.pairs import B17, OLD, Json, Refusal
from tests.stack import World, wait_for

from consentry.domain.errors import Refused
from consentry.domain.values import Micros
from consentry.kafka.clients import follower_config
from consentry.processor.ports import Refusal as QuarantinedMessage
from consentry.processor.publisher import KafkaPublisher
from consentry.schema_gate.asyncapi import asyncapi_document
from consentry.schema_gate.evolution import compare
from consentry.schema_gate.lint import lint_schema
from consentry.wire.catalog import load_catalog
from consentry.wire.schemas import (
    MEMBER_EVENTS,
    QUARANTINE,
    Schema,
    canonical_fingerprint,
    schema,
    subject,
    topics,
)

pytestmark = pytest.mark.stack

SERIALIZER_SETTINGS = {"auto.register.schemas": False, "use.latest.version": False}
"""What a producer of another make sets, as docs/schemas.md says."""


def as_schema(text: Json) -> Schema:
    """A schema for the registry; what fastavro would make of it is not asked."""
    return Schema(text["name"], json.dumps(text), None, canonical_fingerprint(json.dumps(text)))


def is_taken(world: World, name: str, new: Json) -> bool:
    """Whether the registry, FULL_TRANSITIVE, takes `new` after OLD."""
    of = f"{world.namespace}.{name}-consentry.Thing"
    world.registry.register(of, as_schema(OLD))
    world.registry.set_compatibility(of, "FULL_TRANSITIVE")
    try:
        world.registry.register(of, as_schema(new))
    except Refused as error:
        if error.code != "registry.refused.409":  # 409: it is a schema, but not a compatible one
            raise
        return False
    return True


class TestB17:
    @pytest.mark.parametrize("case", B17, ids=lambda case: case.name)
    def test_our_gate_refuses_what_the_registry_may_take(self, bare: World, case: Refusal) -> None:
        """Compatibility is readability: a registry takes a schema by which a withdrawal is read as
        a grant.
        """
        findings = [
            *lint_schema(case.new, is_member_event=True),
            *compare(OLD, case.new, is_member_event=True),
        ]

        assert case.code in {finding.code for finding in findings}
        assert is_taken(bare, case.name.replace(" ", "_"), case.new) is not case.by_registry

    def test_register_refuses_before_anything_is_registered(
        self, bare: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half of the schemas registered would be a system that half of the producers cannot write
        to.
        """
        monkeypatch.setenv("PYTHONPATH", str(broken_package(tmp_path).parent))

        refused = bare.cli("schemas", "register")

        assert refused.returncode == 2
        assert "schemas.gate" in refused.stderr
        assert all(
            bare.registry.find(subject(bare.namespace, topic.name, name), schema(name)) is None
            for topic in topics().values()
            for name in topic.records
        )

    def test_register_takes_the_schemas_as_they_are(self, bare: World) -> None:
        """Hurt when this breaks: whoever trusts that the refusal above was for the schemas'
        sake.
        """
        done = bare.cli("schemas", "register")

        assert done.returncode == 0, done.stderr
        assert load_catalog(bare.registry, bare.namespace).id_of("ConsentChanged") > 0


def broken_package(directory: Path) -> Path:
    """A copy of the data package in which an opt-in is what nobody said."""
    package = directory / "consentry_schemas"
    shutil.copytree(str(files("consentry_schemas")), package)
    file = package / "avro" / "ConsentChanged.avsc"
    text = json.loads(file.read_text())
    next(field for field in text["fields"] if field["name"] == "choice")["default"] = "OPT_IN"
    file.write_text(json.dumps(text))
    return package


@pytest.fixture
def client(bare: World) -> Iterator[SchemaRegistryClient]:
    """A registry client as any producer has it."""
    client = SchemaRegistryClient(
        {"url": bare.stack.addresses.registry_url, "timeout": 5, "max.retries": 1}
    )
    yield client
    client.close()


class TestB18:
    def test_a_producer_with_our_settings_registers_nothing(
        self, bare: World, client: SchemaRegistryClient
    ) -> None:
        """The client's own default is to register whatever it is given, and everybody could then
        change the schemas.
        """
        topic = bare.topic(MEMBER_EVENTS)
        of = subject(bare.namespace, MEMBER_EVENTS, "MemberErased")
        with pytest.raises(SchemaRegistryError) as caught:
            send_erasure(client, topic, SERIALIZER_SETTINGS)

        assert caught.value.http_status_code == 404
        assert bare.registry.find(of, schema("MemberErased")) is None

    def test_without_our_settings_it_would_have(
        self, bare: World, client: SchemaRegistryClient
    ) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        send_erasure(client, bare.topic(MEMBER_EVENTS), {})

        assert bare.registry.find(
            subject(bare.namespace, MEMBER_EVENTS, "MemberErased"), schema("MemberErased")
        )

    def test_our_own_clients_register_nothing(self, bare: World) -> None:
        """A worker started against the wrong registry must say so, not make it the right one."""
        with pytest.raises(Refused, match="registry does not hold"):
            load_catalog(bare.registry, bare.namespace)

        assert (
            bare.registry.find(
                subject(bare.namespace, MEMBER_EVENTS, "MemberErased"), schema("MemberErased")
            )
            is None
        )


def send_erasure(
    client: SchemaRegistryClient, topic: str, settings: Mapping[str, object]
) -> bytes | None:
    """What a plain serializer makes of an erasure."""
    config: dict[str, object] = {
        "subject.name.strategy": lambda _context, record: f"{topic}-{record}"
    }
    config |= settings
    serializer = AvroSerializer(client, schema("MemberErased").text, conf=config)
    event = {
        "event_id": bytes(16),
        "effective_at": 1_762_128_000_000_000,
        "recorded_at": 1_762_128_000_000_000,
        "source": "a-test",
        "member_id": "urn:li:member:4711",
    }
    found: bytes | None = serializer(event, SerializationContext(topic, MessageField.VALUE))
    return found


def test_what_is_quarantined_carries_the_headers_that_the_document_tells(world: World) -> None:
    """An operator finds the original message by them; a tool made from the document looks for
    nothing else.
    """
    told = asyncapi_document()["components"]["messageTraits"]["quarantined"]["headers"]
    publisher = KafkaPublisher(
        world.kafka, namespace=world.namespace, catalog=world.catalog, version="1.2.3"
    )
    value = world.catalog.frame_of("MemberErased") + b"no erasure"
    publisher.quarantine(
        [QuarantinedMessage(0, 17, b"a-member", value, Micros(1_762_128_000_000_000), "avro", None)]
    )
    publisher.settle()
    publisher.close()

    sent = headers_of_first(world, world.topic(QUARANTINE))

    assert sent.keys() == told["properties"].keys()
    assert set(told["required"]) == sent.keys() - {"schema_id"}
    for name, text in sent.items():
        assert re.fullmatch(told["properties"][name].get("pattern", ".+"), text), name


def headers_of_first(world: World, topic: str) -> dict[str, str]:
    """The headers of the first message of partition 0."""
    consumer = Consumer(follower_config(world.kafka, "a-test"))
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    try:
        message = wait_for(lambda: consumer.poll(0.5), "the quarantined message")
        assert message is not None
        assert message.error() is None
        found: Any = message.headers() or []
        return {name: value.decode() for name, value in found}
    finally:
        consumer.close()
