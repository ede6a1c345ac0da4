"""The real registry and the real broker under the contracts that the in-memory ones keep."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import fastavro
import pytest
from tests.contract.publisher_contract import PublisherContract, Readable
from tests.contract.registry_contract import RegistryContract
from tests.stack import World

from consentry.kafka.clients import read_all
from consentry.kafka.schema_registry import HttpRegistry
from consentry.processor.ports import Published, Refusal
from consentry.processor.publisher import KafkaPublisher
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.schemas import QUARANTINE, RECORDS, schema

pytestmark = pytest.mark.stack


class TestHttpRegistry(RegistryContract):
    """A registry that behaves otherwise would give ids that mean something else."""

    @pytest.fixture
    def namespace(self, bare: World) -> str:
        """Nothing is registered under it."""
        return bare.namespace

    @pytest.fixture
    def registry(self, bare: World) -> HttpRegistry:
        """The stack's registry."""
        return bare.registry


class TestKafkaPublisher(PublisherContract):
    """What trainers read is what the worker published, partition by partition, in order."""

    @pytest.fixture
    def publisher(self, world: World) -> Iterator[KafkaPublisher]:
        """A publisher on the stack's broker."""
        publisher = KafkaPublisher(
            world.kafka, namespace=world.namespace, catalog=world.catalog, version="test"
        )
        yield publisher
        publisher.close()

    @pytest.fixture
    def readable(self, world: World) -> Callable[[], Readable]:
        """What stands in the topics."""

        def read() -> Readable:
            records = [
                (
                    one.partition,
                    Published(one.key or b"", one.value or b"", one.appended_at // 1000),
                )
                for one in read_all(world.kafka, world.topic(RECORDS))
            ]
            refusals = [
                refusal(one.value or b"") for one in read_all(world.kafka, world.topic(QUARANTINE))
            ]
            return Readable(records, refusals)

        return read


def refusal(value: bytes) -> Refusal:
    """A refused message as it stands in quarantine."""
    fields = fastavro.schemaless_reader(
        io.BytesIO(value[FRAME_LENGTH:]), schema("Quarantined").parsed, None
    )
    assert isinstance(fields, dict)
    names = ("partition", "offset", "key", "value", "appended_at", "error_class")
    return Refusal(*(fields[name] for name in names))
