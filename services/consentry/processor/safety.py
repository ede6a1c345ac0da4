"""The processor's demands on broker and topics, checked before it consumes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka.admin import AdminClient

from consentry.domain.errors import UnsafeSetting
from consentry.kafka.clients import client_config, partition_count
from consentry.kafka.topics import topic_configs
from consentry.wire.schemas import MEMBER_EVENTS, topic_name, topics

_MUST_MATCH = ("cleanup.policy", "message.timestamp.type", "compression.type")
_YEAR_MS = 365 * 86_400_000


def check_topics(kafka: Mapping[str, str], *, namespace: str, profile: str) -> int:
    """Check all topics before the processor starts; return member-events' partition count.

    Each topic is checked against its declaration. In production every topic needs three replicas
    and `min.insync.replicas` of two, so that an acknowledged event survives the loss of a broker.
    Raises UnsafeSetting, which names the setting, or Refused.
    """
    admin = AdminClient(client_config(kafka, "consentry-safety"))
    counts: dict[str, int] = {}
    for name in topics():
        counts[name] = partition_count(admin, topic_name(namespace, name))
    _check_partitions(namespace, counts)
    configs = topic_configs(admin, [topic_name(namespace, name) for name in topics()])
    for name in topics():
        _check_config(namespace, name, configs[topic_name(namespace, name)], profile)
    return counts[MEMBER_EVENTS]


def _check_partitions(namespace: str, counts: Mapping[str, int]) -> None:
    for topic in topics().values():
        count = counts[topic.name]
        paired = topic.same_partitions_as
        if paired is not None and count != counts[paired]:
            required = f"{counts[paired]}, as {paired} has"
            raise _unsafe(namespace, topic.name, "partitions", count, required)
        if topic.partitions["production"] == 1 and count != 1:
            required = "1: its messages need one order"
            raise _unsafe(namespace, topic.name, "partitions", count, required)


def _check_config(namespace: str, name: str, config: Mapping[str, str], profile: str) -> None:
    declared = topics()[name].config_for(profile)
    for setting in _MUST_MATCH:
        value = config.get(setting)
        if setting in declared and value != declared[setting]:
            raise _unsafe(namespace, name, setting, value, declared[setting])
    if profile == "production":
        replicas = config.get("min.insync.replicas")
        if int(replicas or "1") < 2:
            raise _unsafe(namespace, name, "min.insync.replicas", replicas, "2 or more")
        if config.get("unclean.leader.election.enable") != "false":
            raise _unsafe(namespace, name, "unclean.leader.election.enable", "true", "false")
    retention = config.get("retention.ms")
    if declared["cleanup.policy"] == "delete" and retention != declared.get("retention.ms"):
        # The operator decides how long is long enough; shorter than a year is a mistake more often
        # than not.
        retention_ms = int(retention or "0")
        if 0 <= retention_ms < _YEAR_MS:
            required = "-1, or at least a year"
            raise _unsafe(namespace, name, "retention.ms", retention_ms, required)


def _unsafe(namespace: str, topic: str, setting: str, value: Any, required: str) -> UnsafeSetting:
    return UnsafeSetting(
        f"The topic {topic_name(namespace, topic)} has {setting} = {value}; it must be {required}.",
        code=f"topic.unsafe.{setting}",
        fix="`consentry topics diff` shows what differs, `consentry topics apply` mends what "
        "loses nothing",
    )
