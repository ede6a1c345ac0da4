"""Making a broker's topics equal to the declared ones, without ever losing data or order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Final, Literal

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from consentry.domain.errors import Refused, UnsafeSetting
from consentry.kafka.clients import client_config, partition_count, unavailable
from consentry.wire.schemas import Topic, topic_name, topics

REPLICAS = {"production": 3, "local": 1, "rehearsal": 1}
_SEEN_SECONDS: Final = 15.0
_SEEN_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Step:
    """One difference, and what mends it.

    `loses_data` ones are refused: data or order would be gone.
    """

    act: Literal["create", "set", "refuse"]
    topic: str
    detail: str
    declared: Topic
    setting: str = ""
    value: str = ""

    @property
    def loses_data(self) -> bool:
        """Whether mending it by machine would lose data or order."""
        return self.act == "refuse"

    def __str__(self) -> str:
        return f"{self.act:<7} {self.topic}: {self.detail}"


def plan_topics(kafka: Mapping[str, str], *, namespace: str, profile: str) -> list[Step]:
    """What differs between the declared topics and the broker's. Raises Unavailable."""
    admin = AdminClient(client_config(kafka, "consentry-topics"))
    try:
        found = admin.list_topics(timeout=10).topics
    except KafkaException as error:
        raise unavailable("answer", error) from error
    existing = {name: len(metadata.partitions) for name, metadata in found.items()}
    configs = topic_configs(
        admin, [name for topic in topics() if (name := topic_name(namespace, topic)) in existing]
    )
    plan: list[Step] = []
    for topic in topics().values():
        name = topic_name(namespace, topic.name)
        if name not in existing:
            plan.append(Step("create", name, f"{topic.partitions_for(profile)} partitions", topic))
            continue
        plan += _differences(topic, name, existing, configs[name], namespace, profile)
    return plan


def _differences(
    topic: Topic,
    name: str,
    existing: Mapping[str, int],
    config: Mapping[str, str],
    namespace: str,
    profile: str,
) -> Iterator[Step]:
    paired = topic.same_partitions_as
    wanted = existing.get(topic_name(namespace, paired)) if paired else None
    wanted = wanted or topic.partitions_for(profile)
    if existing[name] != wanted and (paired or topic.partitions["production"] == 1):
        detail = (
            f"{existing[name]} partitions, declared {wanted}: changing the count would move "
            "keys and break order"
        )
        yield Step("refuse", name, detail, topic)
    for setting, value in topic.config_for(profile).items():
        held = config.get(setting, "")
        if held == value:
            continue
        detail = f"{setting} is {held}, declared {value}"
        if _would_lose(setting, held, value):
            yield Step("refuse", name, f"{detail}: the broker would begin to delete", topic)
        else:
            yield Step("set", name, detail, topic, setting, value)


def _would_lose(setting: str, held: str, value: str) -> bool:
    """Whether the broker would drop messages, or stop being able to keep them, by the change."""
    if setting == "cleanup.policy":
        # from delete to compact drops all but the last event of a member; the reverse drops old
        # records
        return True
    if setting in ("retention.ms", "delete.retention.ms"):
        return value != "-1" and (held == "-1" or int(value) < int(held))
    return False


def apply_topics(kafka: Mapping[str, str], plan: Sequence[Step], *, profile: str) -> Iterator[Step]:
    """Carry out a plan, step by step.

    Raises UnsafeSetting before anything if a step would lose data.
    """
    refused = [step for step in plan if step.loses_data]
    if refused:
        raise UnsafeSetting(
            f"{refused[0].topic}: {refused[0].detail}. Nothing was changed.",
            code="topics.would_lose_data",
            fix="make a new topic (or another CONSENTRY_NAMESPACE), drain the old one into it, "
            "and switch over",
        )
    admin = AdminClient(client_config(kafka, "consentry-topics"))
    for step in plan:
        try:
            if step.act == "create":
                new = NewTopic(
                    step.topic,
                    num_partitions=step.declared.partitions_for(profile),
                    replication_factor=REPLICAS[profile],
                    config=step.declared.config_for(profile),
                )
                admin.create_topics([new], request_timeout=15)[step.topic].result()
                _wait_seen(admin, step.topic)
            else:
                entry = ConfigEntry(
                    step.setting, step.value, incremental_operation=AlterConfigOpType.SET
                )
                resource = ConfigResource(
                    ResourceType.TOPIC, step.topic, incremental_configs=[entry]
                )
                admin.incremental_alter_configs([resource])[resource].result()
        except KafkaException as error:
            raise unavailable(f"{step.act} {step.topic}", error) from error
        yield step


def _wait_seen(admin: AdminClient, topic: str) -> None:
    """Return when the broker tells clients of a new topic, which is a moment after it was made.

    Raises Refused then.
    """
    until = monotonic() + _SEEN_SECONDS
    while True:
        try:
            partition_count(admin, topic)
        except Refused:
            if monotonic() > until:
                raise
            sleep(_SEEN_PAUSE_SECONDS)
        else:
            return


def topic_configs(admin: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The broker's settings of each topic. Raises Unavailable."""
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    try:
        answers = admin.describe_configs(resources, request_timeout=10)
        return {
            str(resource.name): {name: str(entry.value) for name, entry in answer.result().items()}
            for resource, answer in answers.items()
        }
    except KafkaException as error:
        raise unavailable("tell its topics' settings", error) from error
