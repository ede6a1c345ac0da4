"""The Avro schemas that bytes are read and written with, parsed once, and the declared topics.

Both are data of the package `consentry_schemas`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
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
    """One Avro record schema to encode with: its short name, registered text, and parsed form.

    fastavro parsed it.
    """

    name: str
    text: str
    parsed: Any
    fingerprint: str

    def encode(self, value: Mapping[str, Any]) -> bytes:
        """Return the Avro bytes of `value` by this schema, without a frame."""
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, self.parsed, value, strict=True)
        return buffer.getvalue()


def canonical_fingerprint(text: str) -> str:
    """Return the SHA-256 of a schema's canonical form: equal where the Avro bytes are."""
    return str(fingerprint(to_parsing_canonical_form(json.loads(text)), "sha256"))


@cache
def schema(name: str) -> Schema:
    """Return the Avro schema `name`, such as ConsentChanged. Raises KeyError if unknown."""
    return schemas()[name]


@cache
def schemas() -> Mapping[str, Schema]:
    """Return every Avro schema of the data package, parsed, by short name."""
    by_name: dict[str, Schema] = {}
    for name, content in _package_files("avro", ".avsc"):
        text = json.dumps(json.loads(content))
        parsed = fastavro.parse_schema(json.loads(text))
        by_name[name] = Schema(name, text, parsed, canonical_fingerprint(text))
    return by_name


def _package_files(folder: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Yield name without suffix and text of the data package's files, sorted by name."""
    entries = (files("consentry_schemas") / folder).iterdir()
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name.endswith(suffix):
            yield entry.name.removesuffix(suffix), entry.read_text()


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic declared beside the Avro schemas, with the records that its messages may carry.

    `name` is without namespace, `records` are the names of those schemas.
    """

    name: str
    key: str
    partitions: Mapping[str, int]
    records: tuple[str, ...]
    config: Mapping[str, str | Mapping[str, str]]
    same_partitions_as: str | None = None

    def config_for(self, profile: str) -> dict[str, str]:
        """Return the broker's settings of a declared topic for a profile (default: local)."""
        settings: dict[str, str] = {}
        for name, value in self.config.items():
            if isinstance(value, str):
                settings[name] = value
            else:
                settings[name] = str(value.get(profile, value["local"]))
        return settings

    def partitions_for(self, profile: str) -> int:
        """Return the declared partition count of a topic for a profile."""
        return self.partitions.get(profile, self.partitions["local"])


@cache
def topics() -> Mapping[str, Topic]:
    """Return every topic declared beside the Avro schemas, by short name."""
    yaml = YAML(typ="safe")
    by_name: dict[str, Topic] = {}
    for _, content in _package_files("topics", ".yaml"):
        data = yaml.load(content)
        by_name[data["name"]] = Topic(
            name=data["name"],
            key=data["key"],
            partitions=data["partitions"],
            records=tuple(data["records"]),
            config=data["config"],
            same_partitions_as=data.get("same_partitions_as"),
        )
    return by_name


def topic_name(namespace: str, topic: str) -> str:
    """Return a declared topic's name on the broker, such as consentry.member-events."""
    return f"{namespace}.{topic}"


def subject(namespace: str, topic: str, record: str) -> str:
    """Return the registry subject of an Avro schema by TopicRecordNameStrategy."""
    return f"{topic_name(namespace, topic)}-{NAMESPACE}.{record}"
