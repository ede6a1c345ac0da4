"""What could not be read, and what may be done about it: release the member, or send the message
again.

Both need a second person, and go the way of every event. A release ends only the holds that were
looked at. A replay sends the original bytes, oldest first; where a later event of the member says
what order decides, it is refused.
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
Asked = ParamSpec("Asked")
Found = TypeVar("Found")
_LATEST: Final = Micros((1 << 62) - 1)


class QuarantinedMessages:
    """Reads the quarantine, and sends what two persons agreed on.

    Its reading calls block; use a thread.
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
        self, read: Callable[Asked, Found], *asked: Asked.args, **named: Asked.kwargs
    ) -> Found:
        """What one of the reading calls answers, read on a thread of the desk."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, partial(read, *asked, **named)
        )

    def close(self) -> None:
        """Give the threads back."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def entries(self) -> list[QuarantineEntry]:
        """The newest LISTED_MAX, newest first; each message once, however often it was
        quarantined.
        """
        found: dict[str, QuarantineEntry] = {}
        for message in read_all(self._kafka, self._quarantine):
            entry = read_entry(message, self._catalog)
            if entry is not None:
                found[entry.name] = entry
        return sorted(found.values(), key=lambda one: -one.appended_at)[:LISTED_MAX]

    def of_partition(self, partition: int) -> Iterator[QuarantineEntry]:
        """Every entry of a partition, oldest first, some of them more than once."""
        for message in read_partition(self._kafka, self._quarantine, partition, with_headers=True):
            entry = read_entry(message, self._catalog)
            if entry is not None:
                yield entry

    def find(self, partition: int, offset: int) -> QuarantineEntry | None:
        """The entry of one message of member-events."""
        return next(
            (entry for entry in self.of_partition(partition) if entry.offset == offset), None
        )

    def open_before(self, entry: QuarantineEntry, record: Record | None) -> list[QuarantineEntry]:
        """Earlier entries of the same member whose hold stands."""
        found = {
            one.name: one
            for one in self.of_partition(entry.partition)
            if one.key == entry.key and one.offset < entry.offset and is_open(one, record)
        }
        return list(found.values())

    def why_not_replayed(self, entry: QuarantineEntry, now: Micros) -> str:
        """Why sending the bytes again would not mean what they meant; empty where it would."""
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
        """What a replay would send, in words for who approves it; empty where it cannot be read."""
        try:
            return described(read_event(entry.value, entry.key or b"", self._catalog))
        except UndecodableEvent:
            return ""

    async def carry_out(
        self, entry: QuarantineEntry, proposal: Proposal
    ) -> tuple[bytes, list[TopicPosition]]:
        """Send what was approved; the id of the release, and where the messages stand."""
        places = []
        if proposal.kind == "replay":
            assert entry.key is not None
            assert entry.value is not None
            # One more than a message may carry would be refused again.
            headers = [
                *entry.headers[: HEADERS_MAX - 1],
                ("consentry-replay-of", entry.name.encode()),
            ]
            places.append(await self._submitter.replay(entry.key, entry.value, headers))
        assert entry.member is not None
        release = MemberReleased(
            event_id=proposal.event_id,
            member=entry.member,
            effective_at=proposal.decided_at,
            recorded_at=proposal.decided_at,
            observed_version=proposal.form["observed_version"],
            source=both_persons(proposal),
        )
        places.append(await self._submitter.submit(release))
        return release.event_id, places


def overtaken(
    event: MemberEvent, entry: QuarantineEntry, since: Iterable[StoredMessage], catalog: Catalog
) -> str:
    """Why a message that came after the entry forbids to send its event now; empty where none does.

    Sent again it would be the member's last word, about where they live or that they opted in, and
    it is not.
    """
    if isinstance(event, MemberRelocated):
        why = (
            "the member was relocated again since, and the order of relocations decides where "
            "they live"
        )
    elif isinstance(event, ConsentChanged) and event.choice is Choice.OPT_IN:
        why = "the member chose again since, or may have, and an opt-in that comes last would stand"
    else:
        return ""  # what excludes may always be said again
    # The same bytes are this very event: a replay of it that was sent, and not answered, is not
    # another one.
    later = (
        message for message in since if message.key == entry.key and message.value != entry.value
    )
    return why if any(_may_follow(event, message, catalog) for message in later) else ""


def _may_follow(
    event: MemberRelocated | ConsentChanged, message: StoredMessage, catalog: Catalog
) -> bool:
    """Whether the message says, or may say, something about the same as the event."""
    try:
        later = read_event(message.value, message.key or b"", catalog)
    except UndecodableEvent:
        return True  # it might be one
    if isinstance(event, MemberRelocated):
        return isinstance(later, MemberRelocated)
    return isinstance(later, ConsentChanged) and later.purpose == event.purpose


def described(event: MemberEvent) -> str:
    """A member event in words, without its member."""
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
    """Whether the member is still held on account of this message."""
    if (
        record is None
        or member_state(record, purpose="", at=_LATEST, known_at=_LATEST).quarantine is None
    ):
        return False
    hold = entry.quarantine(record)
    if hold is None:
        # folded away, or a quarantine of another kind: as long as the member is quarantined it
        # counts as open
        return True
    return not any(
        fact.kind is FactKind.RELEASED
        and fact.version > hold.version
        and (fact.observed_version is None or hold.version <= fact.observed_version < fact.version)
        for fact in (record.facts if record else ())
    )


def observed_version(entry: QuarantineEntry, record: Record | None) -> int:
    """The version up to which a release of this entry ends holds.

    Raises Problem 409 where nothing is held.
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
            "The member is not held on account of this message.",
            code="quarantine.not_held",
            fix="nothing is to be done, or the processor has not come to it yet",
        )
    hold = entry.quarantine(record)
    return hold.version if hold is not None else record.version


def entry_data(
    entry: QuarantineEntry, record: Record | ConsentryError | None, *, whole: bool
) -> Json:
    """An entry as plain values; its bytes only where asked for `whole`."""
    if entry.member is None:
        state = "tainted"
    elif isinstance(record, ConsentryError):
        state = "unknown"
    else:
        state = "quarantined" if is_open(entry, record) else "released"
    found: Json = {
        "entry": entry.name,
        "member": entry.member,
        "state": state,
        "error_class": entry.error_class,
        "appended_at": iso_text(entry.appended_at),
        "schema_id": entry.schema_id,
        "bytes": None if entry.value is None else len(entry.value),
    }
    if whole:
        found["key_hex"] = None if entry.key is None else entry.key.hex()
        found["value_hex"] = None if entry.value is None else entry.value.hex()
        found["headers"] = [
            {"name": name, "value_hex": value.hex()} for name, value in entry.headers
        ]
    return found
