"""Messages of the quarantine topic from bytes: unreadable ones, with the original bytes.

Their headers are kept too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import EventUnreadable, Fact, FactKind
from consentry.domain.records import Record
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId, Micros
from consentry.wire.catalog import Catalog
from consentry.wire.events import read_strictly
from consentry.wire.frames import FRAME_LENGTH, schema_id_of
from consentry.wire.messages import StoredMessage
from consentry.wire.schemas import QUARANTINE, topics

_OUR_HEADERS: Final = frozenset({"schema_id", "error_class", "app_version"})
"""The headers that the processor adds, beside those that begin with `orig.`."""
_BYTES_MAX: Final = 2_000_000


def unreadable_event_id(partition: int, offset: int) -> bytes:
    """Return the event id that stands for a message with unreadable bytes, by its position.

    It is the event id of the quarantine.
    """
    return hashlib.blake2b(f"{partition}:{offset}".encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEntry:
    """One decoded message of the quarantine topic: an unreadable one with its original bytes.

    `partition` and `offset` are those in member-events.
    """

    partition: int
    offset: int
    appended_at: Micros
    error_class: str
    schema_id: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def name(self) -> str:
        """The name that operators use for this quarantined message."""
        return f"{self.partition}-{self.offset}"

    @property
    def member(self) -> MemberId | None:
        """The member in the key of the unreadable message; None if it is no member id.

        Then the partition is tainted.
        """
        text = (self.key or b"").decode("latin-1")
        return MemberId(text) if MEMBER_ID_PATTERN.fullmatch(text) else None

    def quarantine(self, record: Record | None) -> Fact | None:
        """Return the quarantine that this unreadable message caused, if still in the record."""
        if record is None or self.member is None:
            return None
        event_id = unreadable_event_id(self.partition, self.offset)
        event = EventUnreadable(event_id=event_id, member=self.member, recorded_at=self.appended_at)
        tag = event.fact().tag
        for fact in record.facts:
            if fact.kind is FactKind.QUARANTINED and fact.tag == tag:
                return fact
        return None


def read_entry(message: StoredMessage, catalog: Catalog) -> QuarantineEntry | None:
    """Decode a message of the quarantine topic from its bytes; None if it is not one."""
    try:
        value = message.value
        name = catalog.name_of(schema_id_of(value), allowed=topics()[QUARANTINE].records)
        fields = read_strictly(name, (value or b"")[FRAME_LENGTH:], bytes_max=_BYTES_MAX)
    except UndecodableEvent:
        return None
    headers = tuple(
        (name, value or b"")
        for name, value in message.headers
        if name not in _OUR_HEADERS and not name.startswith("orig.")
    )
    return QuarantineEntry(
        partition=fields["partition"],
        offset=fields["offset"],
        appended_at=Micros(fields["appended_at"]),
        error_class=fields["error_class"],
        schema_id=fields["schema_id"],
        key=fields["key"],
        value=fields["value"],
        headers=headers,
    )
