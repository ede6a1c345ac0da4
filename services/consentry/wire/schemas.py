"""The Avro schemas of the data package, parsed once, and the topics declared beside them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form
from ruamel.yaml import YAML

NAMESPACE: Final = "consentry"

MEMBER_EVENTS: Final = "member-events"
CONTROLS: Final = "controls"
RECORDS: Final = "records"
FRONTIERS: Final = "frontiers"
PURGE_ORDERS: Final = "purge-orders"
RECEIPTS: Final = "receipts"
QUARANTINE: Final = "quarantine"


@dataclass(frozen=True, slots=True)
class Schema:
    """One record schema: its short name, the text that is registered, and what fastavro makes of
    it.
    """

    name: str
    text: str
    parsed: Any
    fingerprint: str

    def encode(self, value: Mapping[str, Any]) -> bytes:
        """Avro bytes of `value`, without a frame."""
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, self.parsed, value, strict=True)
        return buffer.getvalue()


def canonical_fingerprint(text: str) -> str:
    """SHA-256 of the parsing canonical form: equal for schemas that read and write the same
    bytes.
    """
    return str(fingerprint(to_parsing_canonical_form(json.loads(text)), "sha256"))


@cache
def schema(name: str) -> Schema:
    """The schema `name`, such as ConsentChanged. KeyError for a name that does not exist."""
    return schemas()[name]


@cache
def schemas() -> Mapping[str, Schema]:
    """Every schema of the package by short name."""
    found = {}
    for entry in sorted(
        (files("consentry_schemas") / "avro").iterdir(), key=lambda entry: entry.name
    ):
        if entry.name.endswith(".avsc"):
            text = json.dumps(json.loads(entry.read_text()))
            name = entry.name.removesuffix(".avsc")
            found[name] = Schema(
                name, text, fastavro.parse_schema(json.loads(text)), canonical_fingerprint(text)
            )
    return found


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as declared:

    `name` is short (without namespace), `records` are the schemas it may carry.
    """

    name: str
    key: str
    partitions: Mapping[str, int]
    records: tuple[str, ...]
    config: Mapping[str, str | Mapping[str, str]]
    same_partitions_as: str | None = None

    def config_for(self, profile: str) -> dict[str, str]:
        """The broker's topic settings for a profile; a rehearsal is like `local` where nothing else
        is said.
        """
        return {
            name: value if isinstance(value, str) else str(value.get(profile, value["local"]))
            for name, value in self.config.items()
        }

    def partitions_for(self, profile: str) -> int:
        """The declared partition count for a profile."""
        return self.partitions.get(profile, self.partitions["local"])


@cache
def topics() -> Mapping[str, Topic]:
    """Every declared topic by short name."""
    yaml = YAML(typ="safe")
    found = {}
    for entry in sorted(
        (files("consentry_schemas") / "topics").iterdir(), key=lambda entry: entry.name
    ):
        if entry.name.endswith(".yaml"):
            data = yaml.load(entry.read_text())
            found[data["name"]] = Topic(
                name=data["name"],
                key=data["key"],
                partitions=data["partitions"],
                records=tuple(data["records"]),
                config=data["config"],
                same_partitions_as=data.get("same_partitions_as"),
            )
    return found


def topic_name(namespace: str, topic: str) -> str:
    """The name on the broker, such as consentry.member-events."""
    return f"{namespace}.{topic}"


def subject(namespace: str, topic: str, record: str) -> str:
    """The registry subject by TopicRecordNameStrategy."""
    return f"{topic_name(namespace, topic)}-{NAMESPACE}.{record}"
