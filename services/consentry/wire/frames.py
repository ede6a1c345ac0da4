"""The Confluent frame: magic byte 0 and a four-byte schema id before the Avro bytes."""

from __future__ import annotations

from typing import Final

from consentry.domain.errors import UndecodableEvent

FRAME_LENGTH: Final = 5


def frame(schema_id: int) -> bytes:
    """Return the Confluent frame: the five bytes before Avro bytes of this schema id."""
    return b"\x00" + schema_id.to_bytes(4, "big")


def schema_id_of(value: bytes | None) -> int:
    """Return the schema id in the Confluent frame of a message's bytes.

    Raises UndecodableEvent for an absent, short or unframed one.
    """
    if not value:
        raise UndecodableEvent("empty", "The message has no value.")
    if len(value) <= FRAME_LENGTH:
        raise UndecodableEvent(
            "short", f"The value has {len(value)} bytes; a framed one has at least 6."
        )
    if value[0] != 0:
        raise UndecodableEvent(
            "magic", f"The value starts with byte {value[0]}, not with the magic byte 0."
        )
    return int.from_bytes(value[1:FRAME_LENGTH], "big")
