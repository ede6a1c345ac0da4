"""Kafka messages as plain values, so that code between bytes and domain needs no Kafka client."""

from __future__ import annotations

from typing import NamedTuple

from consentry.domain.values import Micros
from consentry.wire.headers import Header


class StoredMessage(NamedTuple):
    """One message of a topic as plain bytes and numbers, without a Kafka client.

    `appended_at` is in microseconds since 1970-01-01 UTC.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    appended_at: Micros
    headers: tuple[Header, ...] = ()
    """Only where they were asked for."""
