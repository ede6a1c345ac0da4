"""Frontier messages (the progress of each partition) from and to Avro bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import structlog

from consentry.domain.errors import UndecodableEvent
from consentry.domain.values import Micros
from consentry.wire.catalog import Catalog
from consentry.wire.framed_fields import read_fields, write_fields
from consentry.wire.messages import StoredMessage
from consentry.wire.schemas import FRONTIERS

_LOG = structlog.get_logger(__name__)


class Frontier(NamedTuple):
    """A partition's progress, as the bytes of a frontier message tell it.

    Times are in microseconds since 1970-01-01 UTC, offsets exclusive.

    `log` names the log of `next_offset` (kafka.log_identity, in hexadecimal digits; empty: not
    known).
    """

    partition: int
    generation: str
    frontier_at: Micros
    next_offset: int
    records_offset: int
    controls_offset: int
    tainted: bool
    log: str = ""


def read_frontier(value: bytes | None, catalog: Catalog) -> Frontier:
    """Decode one frontier (a partition's progress) from its bytes. Raises UndecodableEvent."""
    _, fields = read_fields(value, FRONTIERS, catalog)
    return Frontier(**fields)


def readable_frontiers(messages: Iterable[StoredMessage], catalog: Catalog) -> Iterator[Frontier]:
    """Decode the frontiers of a topic from their bytes; leaves unreadable ones out.

    Those prove nothing.
    """
    for message in messages:
        try:
            yield read_frontier(message.value, catalog)
        except UndecodableEvent as error:
            _LOG.error("frontier_unreadable", offset=message.offset, error_class=error.error_class)


def write_frontier(frontier: Frontier, catalog: Catalog) -> bytes:
    """Return the framed Avro bytes of a frontier; its key is the partition's number."""
    return write_fields("Frontier", frontier._asdict(), catalog)
