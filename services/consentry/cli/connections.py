"""A command's connections to Kafka as the settings say: registry, topics, log of controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka.admin import AdminClient

from consentry.domain.controls import Control
from consentry.kafka.clients import client_config, partition_count, read_all
from consentry.ops.settings import Settings
from consentry.wire.catalog import Catalog, load_catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, topic_name

if TYPE_CHECKING:
    from consentry.kafka.schema_registry import HttpRegistry


def open_registry(settings: Settings) -> HttpRegistry:
    """Return the schema registry for a command, as the settings say."""
    # Its client brings a whole HTTP and OAuth library, which `--help` and many commands never use.
    from consentry.kafka.schema_registry import HttpRegistry  # noqa: PLC0415

    return HttpRegistry(settings.registry_url, settings=settings.registry())


def open_catalog(settings: Settings) -> Catalog:
    """Return all schema ids from the registry, for a command. Raises Refused or Unavailable."""

    return load_catalog(open_registry(settings), settings.namespace)


def count_partitions(settings: Settings) -> int:
    """Return member-events' partition count, for a command. Raises Refused or Unavailable."""

    admin = AdminClient(client_config(settings.kafka(), "consentry-cli"))
    return partition_count(admin, topic_name(settings.namespace, MEMBER_EVENTS), timeout_seconds=8)


def read_controls(settings: Settings) -> list[Control]:
    """Return every control of the log to a command, in the log's order.

    Raises Refused or Unavailable.
    """
    catalog = open_catalog(settings)
    messages = read_all(settings.kafka(), topic_name(settings.namespace, CONTROLS))
    controls = []
    for message in messages:
        control = read_control_or_pause(
            message.value, offset=message.offset, appended_at=message.appended_at, catalog=catalog
        )
        controls.append(control)
    return controls
