"""Taking a partition over: claim it, see what the table holds, rebuild it if it must be, say where
to read on.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

import structlog

from consentry.domain.errors import UnsafeSetting
from consentry.domain.events import EventUnreadable
from consentry.domain.records import fold
from consentry.domain.values import MemberId
from consentry.processor.batches import OwnedPartition
from consentry.processor.ports import Published
from consentry.table.protocol import ConsentTable, PartitionClaim
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage
from consentry.wire.records import (
    DamagedRecord,
    came_from,
    check_sum,
    read_record,
    version_of,
    write_record,
)

REBUILD_BATCH: Final = 2000
_VERSION_MAX: Final = 1 << 40
_LOG = structlog.get_logger(__name__)

Publish = Callable[[Sequence[Published]], None]
"""Publishes records of the partition that is taken over, and returns once they are acknowledged.

Raises Unavailable.
"""


class LogSpan(NamedTuple):
    """What the log holds of a partition, and what was committed of it (None: nothing)."""

    first_offset: int
    end_offset: int
    committed_offset: int | None


class Takeover(NamedTuple):
    """A partition that is owned now, the offset to read from, and whether its table was built
    anew.
    """

    owned: OwnedPartition
    start_offset: int
    rebuilt: bool


def take_over(
    table: ConsentTable,
    partition: int,
    *,
    span: LogSpan,
    last_frontier: Frontier | None,
    records: Callable[[], Iterable[StoredMessage]],
    publish: Publish,
    floor: int,
) -> Takeover:
    """Own the partition and make its table whole.

    `last_frontier` is the last one published for it (None: never owned before), `records` reads its
    partition of the records topic from the beginning, `publish` puts records there and returns once
    they are acknowledged, `floor` is the time in milliseconds. Raises Fenced, Unavailable, and
    UnsafeSetting where log and table cannot both be right: no answer is better than a guess.
    """
    claim = table.claim(partition, floor=floor)
    is_new = last_frontier is None and span.committed_offset is None
    if claim.generation is None and is_new:
        return _begin(table, partition, claim, span.first_offset, span)
    is_whole = (
        claim.generation is not None
        and claim.next_offset is not None
        and (last_frontier is None or last_frontier.generation == claim.generation)
    )
    if is_whole and claim.generation is not None and claim.next_offset is not None:
        _check_reachable(partition, claim.next_offset, span)
        if span.committed_offset is not None:
            _check_reachable(partition, span.committed_offset, span)
        # What was stored but never committed may never have been published: it is read again.
        published = last_frontier.next_offset if last_frontier else span.first_offset
        start = min(
            claim.next_offset, published if span.committed_offset is None else span.committed_offset
        )
        owned = OwnedPartition(
            partition=partition,
            epoch=claim.epoch,
            generation=claim.generation,
            next_offset=claim.next_offset,
            acknowledged_offset=start,
            tainted=claim.tainted,
        )
        return Takeover(owned, max(start, span.first_offset), False)
    return rebuild(
        table,
        partition,
        claim=claim,
        span=span,
        last_frontier=last_frontier,
        records=records,
        publish=publish,
    )


def rebuild(
    table: ConsentTable,
    partition: int,
    *,
    claim: PartitionClaim,
    span: LogSpan,
    last_frontier: Frontier | None,
    records: Callable[[], Iterable[StoredMessage]],
    publish: Publish,
) -> Takeover:
    """Build the partition's table anew from the records topic, under a new generation.

    All events below the committed offset, and below the last frontier's, are in records; the rest
    is folded again. Members who are quarantined because a record of theirs was damaged are
    published before the new life begins: a follower that missed the damaged message would go by an
    older one.
    """
    _LOG.warning("table_rebuild", partition=partition, held_offset=claim.next_offset)
    known = [
        offset
        for offset in (span.committed_offset, last_frontier and last_frontier.next_offset)
        if offset is not None
    ]
    covered = max(known, default=span.first_offset)
    _check_reachable(partition, covered, span)
    tainted = claim.tainted or (last_frontier is not None and last_frontier.tainted)
    table.empty(partition, epoch=claim.epoch)
    count, held = restore(table, partition, epoch=claim.epoch, records=records())
    if held:
        publish(held)
    _LOG.info("table_rebuilt", partition=partition, records=count, next_offset=covered)
    return _begin(table, partition, claim._replace(tainted=tainted), covered, span, rebuilt=True)


def restore(
    table: ConsentTable, partition: int, *, epoch: int, records: Iterable[StoredMessage]
) -> tuple[int, list[Published]]:
    """Write the newest version of each record into an emptied partition.

    Returns how many messages were read, and the records of the members that are held from now on
    because one of their messages has a wrong checksum, or lost what an earlier one said.
    """
    count = 0
    damaged: dict[bytes, StoredMessage] = {}
    stream = iter(records)
    while batch := list(islice(stream, REBUILD_BATCH)):
        count += len(batch)
        newest: dict[bytes, bytes] = {}
        for message in batch:
            if not message.key or not message.value:
                continue
            if not _is_sound(message.value, message.key):
                damaged[message.key] = message
                continue
            known = newest.get(message.key)
            if known is None or version_of(known) <= version_of(message.value):
                newest[message.key] = message.value
            elif not came_from(known, message.value):
                damaged[message.key] = message
        members = list(newest)
        for member, held in zip(members, table.load(partition, members), strict=True):
            if held is not None and version_of(held) > version_of(newest[member]):
                if not came_from(held, newest[member]):
                    damaged[member] = StoredMessage(
                        partition, -1, member, newest[member], batch[-1].appended_at
                    )
                del newest[member]
        table.store(partition, newest, epoch=epoch, expected_offset=None, next_offset=None)
    return count, _quarantine_damaged(table, partition, damaged, epoch=epoch)


def _quarantine_damaged(
    table: ConsentTable, partition: int, damaged: Mapping[bytes, StoredMessage], *, epoch: int
) -> list[Published]:
    """Hold every member one of whose records was damaged: what it said, an opt-out perhaps, is not
    known.
    """
    members = list(damaged)
    held = []
    for member, raw in zip(members, table.load(partition, members), strict=True):
        message = damaged[member]
        event_id = hashlib.blake2b(
            bytes(message.value or b""), digest_size=16, key=member[:64]
        ).digest()
        known = None if raw is None else read_record(raw, member)
        event = EventUnreadable(
            event_id=event_id,
            member=MemberId(member.decode("ascii", "replace")),
            recorded_at=message.appended_at,
        )
        record = fold(known, event)
        # Above the damaged version, if that can be true: followers pass over what is not newer.
        above = min(version_of(message.value or b""), _VERSION_MAX) + 1
        frame = bytes(raw[:FRAME_LENGTH]) if raw else bytes((message.value or b"")[:FRAME_LENGTH])
        held_record = write_record(replace(record, version=max(record.version, above)), frame)
        held.append(Published(member, held_record, message.appended_at // 1000))
        _LOG.error("damaged_record_held", partition=partition, offset=message.offset)
    new = {member: record for member, record, _ in held}
    table.store(partition, new, epoch=epoch, expected_offset=None, next_offset=None)
    return held


def _begin(
    table: ConsentTable,
    partition: int,
    claim: PartitionClaim,
    offset: int,
    span: LogSpan,
    *,
    rebuilt: bool = False,
) -> Takeover:
    generation = uuid.uuid4().hex
    table.begin(
        partition,
        epoch=claim.epoch,
        generation=generation,
        next_offset=offset,
        tainted=claim.tainted,
    )
    start = offset if span.committed_offset is None else min(offset, span.committed_offset)
    owned = OwnedPartition(
        partition=partition,
        epoch=claim.epoch,
        generation=generation,
        next_offset=offset,
        acknowledged_offset=start,
        tainted=claim.tainted,
    )
    return Takeover(owned, max(start, span.first_offset), rebuilt)


def _check_reachable(partition: int, offset: int, span: LogSpan) -> None:
    if span.first_offset <= offset <= span.end_offset:
        return
    raise UnsafeSetting(
        f"Partition {partition} of member-events holds offsets {span.first_offset} to "
        f"{span.end_offset}, but the table "
        f"or the committed offset stands at {offset}: the log was truncated or the topic made "
        "anew.",
        code="log.unreachable",
        fix="restore the log; going on would forget opt-outs. For a log that is meant to start "
        "anew, use another "
        "CONSENTRY_NAMESPACE",
    )


def _is_sound(value: bytes, member: bytes) -> bool:
    try:
        check_sum(value, member)
    except DamagedRecord:
        return False
    return True


def last_frontiers(messages: Iterable[Frontier]) -> Mapping[int, Frontier]:
    """The last frontier of each partition."""
    return {frontier.partition: frontier for frontier in messages}
