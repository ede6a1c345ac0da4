"""Make a Kafka broker's topics equal to the declared ones, without ever losing data or order."""

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
    """One difference between a Kafka topic and its declaration, and the step that removes it.

    A step with `loses_data` is refused: data or order would be lost.
    """

    act: Literal["create", "set", "refuse"]
    topic: str
    detail: str
    declared: Topic
    setting: str = ""
    value: str = ""

    @property
    def loses_data(self) -> bool:
        """True if the change of the Kafka topic would lose data or order."""
        return self.act == "refuse"

    def __str__(self) -> str:
        return f"{self.act:<7} {self.topic}: {self.detail}"


def plan_topics(kafka: Mapping[str, str], *, namespace: str, profile: str) -> list[Step]:
    """Return the steps that make Kafka's topics equal to those declared. Raises Unavailable."""
    admin = AdminClient(client_config(kafka, "consentry-topics"))
    try:
        metadata = admin.list_topics(timeout=10).topics
    except KafkaException as error:
        raise unavailable("answer", error) from error
    existing = {name: len(topic.partitions) for name, topic in metadata.items()}
    declared_names = [topic_name(namespace, topic) for topic in topics()]
    existing_names = [name for name in declared_names if name in existing]
    configs = topic_configs(admin, existing_names)
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
    declared_count = _declared_count(topic, existing, namespace, profile)
    is_fixed = bool(topic.same_partitions_as) or topic.partitions["production"] == 1
    if existing[name] != declared_count and is_fixed:
        detail = (
            f"{existing[name]} partitions, declared {declared_count}: changing the count would "
            "move keys and break order"
        )
        yield Step("refuse", name, detail, topic)
    for setting, value in topic.config_for(profile).items():
        current = config.get(setting, "")
        if current == value:
            continue
        detail = f"{setting} is {current}, declared {value}"
        if _would_lose(setting, current, value):
            yield Step("refuse", name, f"{detail}: the broker would begin to delete", topic)
        else:
            yield Step("set", name, detail, topic, setting, value)


def _declared_count(topic: Topic, existing: Mapping[str, int], namespace: str, profile: str) -> int:
    """Return how many partitions a topic shall have: as many as its pair, if that one exists."""
    paired = topic.same_partitions_as
    if paired:
        paired_count = existing.get(topic_name(namespace, paired))
        if paired_count:
            return paired_count
    return topic.partitions_for(profile)


def _would_lose(setting: str, current: str, value: str) -> bool:
    """Say whether the broker would drop messages by the change, or could not keep them."""
    if setting == "cleanup.policy":
        # Compacting drops all but the last event of a member; the reverse drops old records.
        return True
    if setting in ("retention.ms", "delete.retention.ms"):
        return value != "-1" and (current == "-1" or int(value) < int(current))
    return False


def apply_topics(kafka: Mapping[str, str], plan: Sequence[Step], *, profile: str) -> Iterator[Step]:
    """Carry out a plan of changes to the Kafka topics, step by step.

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
                _create(admin, step, profile)
            else:
                _set(admin, step)
        except KafkaException as error:
            raise unavailable(f"{step.act} {step.topic}", error) from error
        yield step


def _create(admin: AdminClient, step: Step, profile: str) -> None:
    """Make a topic, and return once clients see it. Raises KafkaException, Refused."""
    new = NewTopic(
        step.topic,
        num_partitions=step.declared.partitions_for(profile),
        replication_factor=REPLICAS[profile],
        config=step.declared.config_for(profile),
    )
    answers = admin.create_topics([new], request_timeout=15)
    answers[step.topic].result()
    _wait_seen(admin, step.topic)


def _set(admin: AdminClient, step: Step) -> None:
    """Change one setting of a topic. Raises KafkaException."""
    entry = ConfigEntry(step.setting, step.value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, step.topic, incremental_configs=[entry])
    answers = admin.incremental_alter_configs([resource])
    answers[resource].result()


def _wait_seen(admin: AdminClient, topic: str) -> None:
    """Return once clients see a new topic, a moment after it was made.

    Raises Refused where they do not within some seconds.
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
    """Return the Kafka broker's settings of each topic. Raises Unavailable."""
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    try:
        answers = admin.describe_configs(resources, request_timeout=10)
        entries_by_topic = {
            str(resource.name): answer.result() for resource, answer in answers.items()
        }
    except KafkaException as error:
        raise unavailable("report its topics' settings", error) from error
    configs: dict[str, dict[str, str]] = {}
    for topic, entries in entries_by_topic.items():
        configs[topic] = {name: str(entry.value) for name, entry in entries.items()}
    return configs
