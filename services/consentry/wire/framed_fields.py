"""Fields of framed Avro messages other than member events, from and to bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consentry.domain.errors import InvalidInput, UndecodableEvent
from consentry.wire.catalog import Catalog
from consentry.wire.events import read_strictly
from consentry.wire.frames import FRAME_LENGTH, schema_id_of
from consentry.wire.schemas import schema, topics

CONTROL_BYTES_MAX = 500_000
INT_MAX = 1 << 31


def read_fields(value: bytes | None, topic: str, catalog: Catalog) -> tuple[str, dict[str, Any]]:
    """Return the record name and fields in a message's Avro bytes. Raises UndecodableEvent."""
    name = catalog.name_of(schema_id_of(value), allowed=topics()[topic].records)
    assert value is not None  # schema_id_of refuses an empty value
    fields = read_strictly(name, value[FRAME_LENGTH:], bytes_max=CONTROL_BYTES_MAX)
    version = fields.get("version")
    if isinstance(version, int) and not 0 <= version < INT_MAX:
        raise UndecodableEvent("version", "The version is not an int of 32 bits.")
    return name, fields


def write_fields(name: str, fields: Mapping[str, Any], catalog: Catalog) -> bytes:
    """Return the framed Avro bytes of a record. Raises InvalidInput for one too large."""
    payload = schema(name).encode(fields)
    if len(payload) > CONTROL_BYTES_MAX:
        raise InvalidInput(
            f"The {name} takes {len(payload)} bytes; at most {CONTROL_BYTES_MAX} are read.",
            code="input.too_large",
            fix="split it, such as a policy into several purposes",
        )
    return catalog.frame_of(name) + payload


def as_tuple(values: list[str] | None) -> tuple[str, ...] | None:
    """Return an optional list decoded from Avro bytes as a tuple, as our values hold it."""
    return None if values is None else tuple(values)


def as_list(values: tuple[str, ...] | None) -> list[str] | None:
    """Return an optional tuple of a value as a list, as Avro encodes it."""
    return None if values is None else list(values)
