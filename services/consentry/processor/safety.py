"""What must hold of broker and topics before anything is consumed; each refusal names the
setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka.admin import AdminClient

from consentry.domain.errors import UnsafeSetting
from consentry.kafka.clients import client_config, partition_count
from consentry.kafka.topics import topic_configs
from consentry.wire.schemas import MEMBER_EVENTS, topic_name, topics

_MUST_MATCH = ("cleanup.policy", "message.timestamp.type", "compression.type")


def check_topics(kafka: Mapping[str, str], *, namespace: str, profile: str) -> int:
    """Raise UnsafeSetting or Refused unless all topics are as declared; the partition count of
    member-events.

    In production every topic needs three replicas and `min.insync.replicas` of two, so that an
    acknowledged event survives the loss of a broker.
    """
    admin = AdminClient(client_config(kafka, "consentry-safety"))
    counts = {name: partition_count(admin, topic_name(namespace, name)) for name in topics()}
    for topic in topics().values():
        paired = topic.same_partitions_as
        if paired is not None and counts[topic.name] != counts[paired]:
            raise _unsafe(
                namespace,
                topic.name,
                "partitions",
                counts[topic.name],
                f"{counts[paired]}, as {paired} has",
            )
        if topic.partitions["production"] == 1 and counts[topic.name] != 1:
            raise _unsafe(
                namespace,
                topic.name,
                "partitions",
                counts[topic.name],
                "1: its messages need one order",
            )
    found = topic_configs(admin, [topic_name(namespace, name) for name in topics()])
    for topic in topics().values():
        _check_config(namespace, topic.name, found[topic_name(namespace, topic.name)], profile)
    return counts[MEMBER_EVENTS]


def _check_config(namespace: str, name: str, found: Mapping[str, str], profile: str) -> None:
    declared = topics()[name].config_for(profile)
    for setting in _MUST_MATCH:
        if setting in declared and found.get(setting) != declared[setting]:
            raise _unsafe(namespace, name, setting, found.get(setting), declared[setting])
    if profile == "production":
        if int(found.get("min.insync.replicas", "1")) < 2:
            raise _unsafe(
                namespace,
                name,
                "min.insync.replicas",
                found.get("min.insync.replicas"),
                "2 or more",
            )
        if found.get("unclean.leader.election.enable") != "false":
            raise _unsafe(namespace, name, "unclean.leader.election.enable", "true", "false")
    if declared["cleanup.policy"] == "delete" and found.get("retention.ms") != declared.get(
        "retention.ms"
    ):
        # Long enough is for the operator to say; shorter than a year is a mistake more often than
        # not.
        kept = int(found.get("retention.ms", "0"))
        if 0 <= kept < 365 * 86_400_000:
            raise _unsafe(namespace, name, "retention.ms", kept, "-1, or at least a year")


def _unsafe(namespace: str, topic: str, setting: str, found: Any, wanted: str) -> UnsafeSetting:
    return UnsafeSetting(
        f"The topic {topic_name(namespace, topic)} has {setting} = {found}; it must be {wanted}.",
        code=f"topic.unsafe.{setting}",
        fix="`consentry topics diff` shows what differs, `consentry topics apply` mends what "
        "loses nothing",
    )
