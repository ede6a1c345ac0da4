"""AsyncAPI 3.0 document of our Kafka topics, made from the declared topics and schemas.

It says who sends what where, in which form.

It is made, never written by hand: `consentry schemas asyncapi` prints it, `--check FILE` tells when
a file is behind. Source: AsyncAPI 3.0.0; Kafka bindings 0.5.0 (channels, messages).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from consentry.domain.values import MEMBER_ID_PATTERN
from consentry.forms.yaml import document_text
from consentry.wire.cloudevents import CONTENT_TYPE, TRACEPARENT_PATTERN
from consentry.wire.schemas import (
    CONTROLS,
    FRONTIERS,
    MEMBER_EVENTS,
    NAMESPACE,
    PURGE_ORDERS,
    QUARANTINE,
    RECEIPTS,
    RECORDS,
    Topic,
    schemas,
    topics,
)

PROFILE: Final = "production"
AVRO: Final = "application/vnd.apache.avro;version=1.9.0"
BINDING_VERSION: Final = "0.5.0"


class Use(NamedTuple):
    """The use that one role (producer, trainer …) makes of a topic, in the AsyncAPI document."""

    role: str
    action: str
    topic: str


USES: Final = (
    Use("producer", "send", MEMBER_EVENTS),
    Use("gateway", "send", MEMBER_EVENTS),
    Use("gateway", "send", CONTROLS),
    Use("regulator desk", "send", CONTROLS),
    Use("processor", "receive", MEMBER_EVENTS),
    Use("processor", "receive", CONTROLS),
    Use("processor", "send", RECORDS),
    Use("processor", "send", FRONTIERS),
    Use("processor", "send", QUARANTINE),
    Use("trainer", "receive", RECORDS),
    Use("trainer", "receive", CONTROLS),
    Use("trainer", "receive", FRONTIERS),
    Use("trainer", "receive", PURGE_ORDERS),
    Use("trainer", "send", RECEIPTS),
    Use("ledger", "receive", CONTROLS),
    Use("ledger", "receive", PURGE_ORDERS),
    Use("ledger", "receive", RECEIPTS),
    Use("ledger", "send", PURGE_ORDERS),
    Use("gateway", "receive", CONTROLS),
    Use("gateway", "receive", QUARANTINE),
)

_MEMBER: Final = {"type": "string", "pattern": f"^{MEMBER_ID_PATTERN.pattern}$"}
KEYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "member id": {
        **_MEMBER,
        "description": "The member id, byte for byte; producers partition it by murmur2.",
    },
    "control id": {
        "type": "string",
        "description": "Kind, name, version and event id of the control: never twice.",
    },
    "partition": {
        "type": "string",
        "pattern": "^[0-9]+$",
        "description": "Number of the partition it tells of.",
    },
    "order id": {"type": "string", "description": "order_id of the purge order."},
    "subscriber": {"type": "string", "description": "Name of the subscriber that answers."},
    "original key": {
        "type": "string",
        "description": "The key of the message that could not be read; any bytes.",
    },
}
"""By the word that a topic's declaration has for its key: a JSON schema of it."""

_TRAITS: Final = {MEMBER_EVENTS: "cloudEvent", QUARANTINE: "quarantined"}
_PLACE: Final = ("topic", "partition", "offset", "timestamp")
_NUMBERS: Final = frozenset(
    {"retention.ms", "retention.bytes", "delete.retention.ms", "max.message.bytes"}
)
"""Topic settings that the binding wants as numbers; `cleanup.policy` it wants as a list."""


def asyncapi_text() -> str:
    """The AsyncAPI document as YAML, the same for the same topics and schemas."""
    made_by = (
        "Made by `consentry schemas asyncapi` from topics/*.yaml and avro/*.avsc; do not edit."
    )
    return document_text(asyncapi_document(), made_by)


def asyncapi_document() -> dict[str, Any]:
    """The AsyncAPI document of topics and schemas, as plain values."""
    messages: dict[str, Any] = {}
    for topic in topics().values():
        for name in topic.records:
            messages[name] = _message(topic, name)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Consentry",
            "version": "1.0.0",
            "description": "Every consent change, pause and policy, to every system that trains "
            "on member data. "
            "Whatever cannot be read excludes its member.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": CONTENT_TYPE.decode(),
        "channels": {topic.name: _channel(topic) for topic in topics().values()},
        "operations": {_operation_id(use): _operation(use) for use in USES},
        "components": {
            "messages": messages,
            "messageTraits": {"cloudEvent": _cloud_event(), "quarantined": _quarantined()},
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    settings = topic.config_for(PROFILE)
    channel: dict[str, Any] = {
        "address": f"{{namespace}}.{topic.name}",
        "parameters": {
            "namespace": {
                "default": NAMESPACE,
                "description": "CONSENTRY_NAMESPACE of the installation.",
            }
        },
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in topic.records},
        "bindings": {
            "kafka": {
                "partitions": topic.partitions_for(PROFILE),
                "topicConfiguration": {
                    name: _setting(name, value) for name, value in settings.items()
                },
                "bindingVersion": BINDING_VERSION,
            }
        },
        "x-key": topic.key,
    }
    if topic.same_partitions_as is not None:
        channel["x-same-partitions-as"] = topic.same_partitions_as
    return channel


def _setting(name: str, value: str) -> Any:
    if name == "cleanup.policy":
        return value.split(",")
    if name in _NUMBERS:
        return int(value)
    return value


def _message(topic: Topic, name: str) -> dict[str, Any]:
    known = schemas()[name]
    text = json.loads(known.text)
    message: dict[str, Any] = {
        "name": f"{NAMESPACE}.{name}",
        "title": name,
        "summary": text["doc"],
        "contentType": CONTENT_TYPE.decode(),
        "payload": {"schemaFormat": AVRO, "schema": text},
        "bindings": {
            "kafka": {
                "key": dict(KEYS[topic.key]),
                "schemaIdLocation": "payload",
                "schemaIdPayloadEncoding": "confluent",
                "schemaLookupStrategy": "TopicRecordNameStrategy",
                "bindingVersion": BINDING_VERSION,
            }
        },
        "x-subject": f"{{namespace}}.{topic.name}-{NAMESPACE}.{name}",
        "x-fingerprint-sha256": known.fingerprint,
    }
    if topic.name in _TRAITS:
        message["traits"] = [{"$ref": f"#/components/messageTraits/{_TRAITS[topic.name]}"}]
    return message


def _cloud_event() -> dict[str, Any]:
    """The headers of wire/cloudevents.py. None is required: nothing is decided by a header."""
    return {
        "headers": {
            "type": "object",
            "description": "CloudEvents 1.0 in Kafka's binary mode, and W3C trace context. For "
            "the tools of those who "
            "run the topics: nothing is decided by a header, and none names the member.",
            "properties": {
                "content-type": {"type": "string", "const": CONTENT_TYPE.decode()},
                "ce_specversion": {"type": "string", "const": "1.0"},
                "ce_type": {
                    "type": "string",
                    "description": "Full name of the record, such as consentry.MemberErased.",
                },
                "ce_source": {
                    "type": "string",
                    "description": "A slash and the event's source, such as /settings-web.",
                },
                "ce_id": {
                    "type": "string",
                    "format": "uuid",
                    "description": "The event's event_id.",
                },
                "traceparent": {"type": "string", "pattern": f"^{TRACEPARENT_PATTERN.pattern}$"},
            },
        }
    }


def _quarantined() -> dict[str, Any]:
    """The headers that the processor adds to what it could not read."""
    number = {"type": "string", "pattern": "^[0-9]+$"}
    place = [f"orig.{word}" for word in _PLACE]
    return {
        "headers": {
            "type": "object",
            "description": "Where the message came from and why it was refused, after its own "
            "first headers. Nothing "
            "of its content is in them; schema_id is left out where none was readable.",
            "properties": {
                "orig.topic": {"type": "string"},
                "orig.partition": number,
                "orig.offset": number,
                "orig.timestamp": {
                    **number,
                    "description": "The broker's append time in milliseconds.",
                },
                "schema_id": number,
                "error_class": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,63}$"},
                "app_version": {"type": "string"},
            },
            "required": [*place, "error_class", "app_version"],
        }
    }


def _operation_id(use: Use) -> str:
    words = f"{use.role} {use.action}s {use.topic}".replace("-", " ").split()
    return "".join(map(str.capitalize, words))


def _operation(use: Use) -> dict[str, Any]:
    channel = f"#/channels/{use.topic}"
    records = topics()[use.topic].records
    return {
        "action": use.action,
        "channel": {"$ref": channel},
        "title": f"{use.role.capitalize()} {use.action}s {use.topic}",
        "tags": [{"name": use.role}],
        "messages": [{"$ref": f"{channel}/messages/{name}"} for name in records],
    }
