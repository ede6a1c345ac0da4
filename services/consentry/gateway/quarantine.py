"""Unreadable messages at the gateway: shown, replayed, or left while their member is released.

A release and a replay need a second person, and go the way of every event. A release ends only the
quarantines that were looked at. A replay sends the original bytes, oldest first; it is refused
where a later event of the member matters more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from consentry.domain.decisions import member_state
from consentry.domain.errors import ConsentryError, UndecodableEvent
from consentry.domain.events import (
    ConsentChanged,
    Fact,
    FactKind,
    MemberErased,
    MemberEvent,
    MemberReleased,
    MemberRelocated,
)
from consentry.domain.records import Record
from consentry.domain.values import Choice, Micros
from consentry.domain.wording import iso_text
from consentry.gateway.http.models import Json
from consentry.gateway.kafka_submit import Submitter
from consentry.gateway.proposals import Proposal, both_persons
from consentry.kafka.clients import read_all, read_partition
from consentry.kafka.sender import TopicPosition
from consentry.ops.http.problems import Problem
from consentry.wire.catalog import Catalog
from consentry.wire.events import admit, read_event
from consentry.wire.headers import HEADERS_MAX
from consentry.wire.messages import StoredMessage
from consentry.wire.quarantine import QuarantineEntry, read_entry
from consentry.wire.schemas import MEMBER_EVENTS, QUARANTINE, topic_name

LISTED_MAX: Final = 500
_THREADS: Final = 2
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_LATEST: Final = Micros((1 << 62) - 1)


class QuarantinedMessages:
    """The gateway's view of the quarantine topic; sends the release that two persons agreed on.

    Calls that read block; `run` puts them on a thread.
    """

    def __init__(
        self, kafka: Mapping[str, str], *, namespace: str, catalog: Catalog, submitter: Submitter
    ) -> None:
        self._kafka = kafka
        self._catalog = catalog
        self._submitter = submitter
        self._quarantine = topic_name(namespace, QUARANTINE)
        self._events = topic_name(namespace, MEMBER_EVENTS)
        # Threads of its own: reading a long topic must not keep decisions waiting.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="quarantine")

    async def run(
        self,
        read: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Return the result of a call that reads the topic, made on a thread."""
        call = partial(read, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """End the threads, without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def entries(self) -> list[QuarantineEntry]:
        """Return the newest LISTED_MAX quarantined messages, newest first.

        Each message has one entry, however often it was quarantined.
        """
        entries: dict[str, QuarantineEntry] = {}
        for message in read_all(self._kafka, self._quarantine):
            entry = read_entry(message, self._catalog)
            if entry is not None:
                entries[entry.name] = entry
        newest_first = sorted(entries.values(), key=lambda entry: -entry.appended_at)
        return newest_first[:LISTED_MAX]

    def of_partition(self, partition: int) -> Iterator[QuarantineEntry]:
        """Yield every quarantined message of a partition, oldest first.

        Some of them come more than once.
        """
        for message in read_partition(self._kafka, self._quarantine, partition, with_headers=True):
            entry = read_entry(message, self._catalog)
            if entry is not None:
                yield entry

    def find(self, partition: int, offset: int) -> QuarantineEntry | None:
        """Return the quarantine's entry of one message of member-events."""
        for entry in self.of_partition(partition):
            if entry.offset == offset:
                return entry
        return None

    def open_before(self, entry: QuarantineEntry, record: Record | None) -> list[QuarantineEntry]:
        """Return the member's earlier quarantined messages that are still open."""
        open_entries: dict[str, QuarantineEntry] = {}
        for other in self.of_partition(entry.partition):
            is_earlier = other.key == entry.key and other.offset < entry.offset
            if is_earlier and is_open(other, record):
                open_entries[other.name] = other
        return list(open_entries.values())

    def why_not_replayed(self, entry: QuarantineEntry, now: Micros) -> str:
        """Return the reason against a replay of the bytes; empty without one.

        Sent again, bytes may no longer mean what they meant.
        """
        try:
            event = admit(read_event(entry.value, entry.key or b"", self._catalog), now)
        except UndecodableEvent as error:
            return f"it still cannot be read ({error.error_class})"
        return overtaken(event, entry, self._since(entry), self._catalog)

    def _since(self, entry: QuarantineEntry) -> Iterator[StoredMessage]:
        yield from read_partition(
            self._kafka, self._events, entry.partition, start=entry.offset + 1
        )

    def describe(self, entry: QuarantineEntry) -> str:
        """Return what a replay would send, in words; empty for bytes that cannot be read."""
        try:
            return described(read_event(entry.value, entry.key or b"", self._catalog))
        except UndecodableEvent:
            return ""

    async def carry_out(
        self, entry: QuarantineEntry, proposal: Proposal
    ) -> tuple[bytes, list[TopicPosition]]:
        """Send what two persons approved; return the release's id and all positions."""
        positions = []
        if proposal.kind == "replay":
            assert entry.key is not None
            assert entry.value is not None
            # One more than a message may carry would be refused again.
            headers = [
                *entry.headers[: HEADERS_MAX - 1],
                ("consentry-replay-of", entry.name.encode()),
            ]
            positions.append(await self._submitter.replay(entry.key, entry.value, headers))
        assert entry.member is not None
        release = MemberReleased(
            event_id=proposal.event_id,
            member=entry.member,
            effective_at=proposal.decided_at,
            recorded_at=proposal.decided_at,
            observed_version=proposal.form["observed_version"],
            source=both_persons(proposal),
        )
        positions.append(await self._submitter.submit(release))
        return release.event_id, positions


def overtaken(
    event: MemberEvent, entry: QuarantineEntry, since: Iterable[StoredMessage], catalog: Catalog
) -> str:
    """Return why the gateway may not replay a quarantined event; empty where it may.

    A message after the entry forbids it.

    Sent again, the event would be the member's last word about where they live, or that they opted
    in, and it is not.
    """
    if isinstance(event, MemberRelocated):
        reason = (
            "the member was relocated again since, and the order of relocations decides where "
            "they live"
        )
    elif isinstance(event, ConsentChanged) and event.choice is Choice.OPT_IN:
        reason = (
            "the member chose again since, or may have, and an opt-in that comes last would stand"
        )
    else:
        return ""  # what excludes may always be said again
    for message in since:
        # The same bytes are this very event: a replay of it that was sent, and not acknowledged, is
        # not another one.
        is_other = message.key == entry.key and message.value != entry.value
        if is_other and _may_follow(event, message, catalog):
            return reason
    return ""


def _may_follow(
    event: MemberRelocated | ConsentChanged, message: StoredMessage, catalog: Catalog
) -> bool:
    """Return whether the message says, or may say, something about the event's subject."""
    try:
        later = read_event(message.value, message.key or b"", catalog)
    except UndecodableEvent:
        return True  # it might be one
    if isinstance(event, MemberRelocated):
        return isinstance(later, MemberRelocated)
    return isinstance(later, ConsentChanged) and later.purpose == event.purpose


def described(event: MemberEvent) -> str:
    """Return a member event in words, for a replay at the gateway, without its member."""
    if isinstance(event, ConsentChanged):
        return (
            f"a consent change: {event.choice.value} for {event.purpose}, effective "
            f"{iso_text(event.effective_at)}"
        )
    if isinstance(event, MemberRelocated):
        band = event.age_band.value
        return (
            f"a relocation: {event.jurisdiction}, age band {band}, effective "
            f"{iso_text(event.effective_at)}"
        )
    if isinstance(event, MemberErased):
        return f"an erasure, effective {iso_text(event.effective_at)}"
    return "a release of the member"


def is_open(entry: QuarantineEntry, record: Record | None) -> bool:
    """Return if an unreadable message at the gateway still keeps its member in quarantine."""
    if record is None:
        return False
    if member_state(record, purpose="", at=_LATEST, known_at=_LATEST).quarantine is None:
        return False
    quarantined = entry.quarantine(record)
    if quarantined is None:
        # Folded away, or a quarantine of another kind: it counts as open for as long as the member
        # is quarantined.
        return True
    return not any(_ends(fact, quarantined.version) for fact in record.facts)


def _ends(fact: Fact, version: int) -> bool:
    """Return whether the fact is a release that ends the quarantine of this version."""
    if fact.kind is not FactKind.RELEASED or fact.version <= version:
        return False
    return fact.observed_version is None or version <= fact.observed_version < fact.version


def observed_version(entry: QuarantineEntry, record: Record | None) -> int:
    """Return the version up to which a release at the gateway ends a member's quarantines.

    It is the release of this unreadable message.

    Raises Problem 409 where the member is not quarantined on account of it.
    """
    if entry.member is None:
        raise Problem(
            409,
            "The message names no member, so its whole partition is tainted; there is nobody to "
            "release.",
            code="quarantine.tainted",
            fix="see deploy/runbooks/ConsentryPartitionTainted.md",
        )
    if record is None or not is_open(entry, record):
        raise Problem(
            409,
            "The member is not quarantined on account of this message.",
            code="quarantine.not_quarantined",
            fix="nothing is to be done, or the processor has not come to it yet",
        )
    quarantined = entry.quarantine(record)
    return record.version if quarantined is None else quarantined.version


def entry_data(
    entry: QuarantineEntry, record: Record | ConsentryError | None, *, whole: bool
) -> Json:
    """Return a quarantined message as the gateway shows it; its bytes only where `whole`."""
    if entry.member is None:
        state = "tainted"
    elif isinstance(record, ConsentryError):
        state = "unknown"
    else:
        state = "quarantined" if is_open(entry, record) else "released"
    data: Json = {
        "entry": entry.name,
        "member": entry.member,
        "state": state,
        "error_class": entry.error_class,
        "appended_at": iso_text(entry.appended_at),
        "schema_id": entry.schema_id,
        "bytes": None if entry.value is None else len(entry.value),
    }
    if whole:
        data["key_hex"] = None if entry.key is None else entry.key.hex()
        data["value_hex"] = None if entry.value is None else entry.value.hex()
        data["headers"] = [
            {"name": name, "value_hex": value.hex()} for name, value in entry.headers
        ]
    return data
