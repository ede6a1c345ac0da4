"""Taking over a partition of the table, by a processor that Kafka has assigned it to.

The new owner claims the partition in the table, sees what the table holds, rebuilds it if it must,
and knows from which offset to read on.
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
from consentry.table.protocol import ConsentTable, PartitionClaim, Write
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage
from consentry.wire.records import (
    DamagedRecord,
    is_ancestor,
    read_record,
    verify_checksum,
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
    """The first, end and committed offset of a partition that the processor takes over.

    `committed_offset` is None where nothing was committed.
    """

    first_offset: int
    end_offset: int
    committed_offset: int | None


class Takeover(NamedTuple):
    """A partition that the processor has taken over, and the offset to read its events from.

    `rebuilt` is True where its table was built anew.
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
    min_epoch: int,
) -> Takeover:
    """Take a partition over for this processor: claim its table, and rebuild that if needed.

    `last_frontier` is the last one published for it (None: never owned before), `records` reads its
    partition of the records topic from the beginning, `publish` puts records there and returns once
    they are acknowledged, `min_epoch` is the time in milliseconds. Raises Fenced, Unavailable, and
    UnsafeSetting where log and table cannot both be right: no answer is better than a guess.
    """
    claim = table.claim(partition, min_epoch=min_epoch)
    is_new = last_frontier is None and span.committed_offset is None
    if claim.generation is None and is_new:
        return _start_generation(table, partition, claim, span.first_offset, span)
    generation = claim.generation
    next_offset = claim.next_offset
    if generation is not None and next_offset is not None:
        is_known_life = last_frontier is None or last_frontier.generation == generation
        if is_known_life:
            return _go_on(partition, claim, generation, next_offset, span, last_frontier)
    return rebuild(
        table,
        partition,
        claim=claim,
        span=span,
        last_frontier=last_frontier,
        records=records,
        publish=publish,
    )


def _go_on(
    partition: int,
    claim: PartitionClaim,
    generation: str,
    next_offset: int,
    span: LogSpan,
    last_frontier: Frontier | None,
) -> Takeover:
    """Go on with a whole table; `generation` and `next_offset` are the claim's, and not None."""
    _check_reachable(partition, next_offset, span)
    # Events that were stored but never committed may never have been published: they are read
    # again.
    if span.committed_offset is not None:
        _check_reachable(partition, span.committed_offset, span)
        published_offset = span.committed_offset
    elif last_frontier is not None:
        published_offset = last_frontier.next_offset
    else:
        published_offset = span.first_offset
    start_offset = min(next_offset, published_offset)
    owned = OwnedPartition(
        partition=partition,
        epoch=claim.epoch,
        generation=generation,
        next_offset=next_offset,
        acknowledged_offset=start_offset,
        tainted=claim.tainted,
    )
    return Takeover(owned, max(start_offset, span.first_offset), False)


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
    """Build a table partition anew from the records topic, when the processor takes it over.

    It gets a new generation. All events below the committed offset, and below the last frontier's,
    are in records; the rest is folded again. Members who are quarantined because a record of theirs
    was damaged are published before the new life begins: a follower that missed the damaged message
    would go by an older one.
    """
    _LOG.warning("table_rebuild", partition=partition, held_offset=claim.next_offset)
    covered_offsets: list[int] = []
    if span.committed_offset is not None:
        covered_offsets.append(span.committed_offset)
    if last_frontier is not None:
        covered_offsets.append(last_frontier.next_offset)
    next_offset = max(covered_offsets, default=span.first_offset)
    _check_reachable(partition, next_offset, span)
    tainted = claim.tainted or (last_frontier is not None and last_frontier.tainted)
    table.clear(partition, epoch=claim.epoch)
    count, quarantined = restore(table, partition, epoch=claim.epoch, records=records())
    if quarantined:
        publish(quarantined)
    _LOG.info("table_rebuilt", partition=partition, records=count, next_offset=next_offset)
    return _start_generation(
        table, partition, claim._replace(tainted=tainted), next_offset, span, rebuilt=True
    )


def restore(
    table: ConsentTable, partition: int, *, epoch: int, records: Iterable[StoredMessage]
) -> tuple[int, list[Published]]:
    """Write each member's newest record into the empty table of a partition being rebuilt.

    Returns how many messages were read, and the records of the members that are quarantined from
    now on because one of their messages has a wrong checksum, or lost what an earlier one said.
    """
    count = 0
    damaged: dict[bytes, StoredMessage] = {}
    stream = iter(records)
    while messages := list(islice(stream, REBUILD_BATCH)):
        count += len(messages)
        newest = _newest_sound(messages, damaged)
        members = list(newest)
        stored = table.load({partition: members})[partition]
        for member, before in zip(members, stored, strict=True):
            raw = newest[member]
            if before is None or version_of(before) <= version_of(raw):
                continue
            if not is_ancestor(raw, before):
                # Its own offset and time were not kept; the last message's time is no earlier.
                appended_at = messages[-1].appended_at
                damaged[member] = StoredMessage(partition, -1, member, raw, appended_at)
            del newest[member]
        _store_rebuilt(table, partition, newest, epoch=epoch)
    return count, _quarantine_damaged(table, partition, damaged, epoch=epoch)


def _newest_sound(
    messages: Iterable[StoredMessage], damaged: dict[bytes, StoredMessage]
) -> dict[bytes, bytes]:
    """Return each member's newest record; messages that are damaged are added to `damaged`."""
    newest: dict[bytes, bytes] = {}
    for message in messages:
        if not message.key or not message.value:
            continue
        if not _is_sound(message.value, message.key):
            damaged[message.key] = message
            continue
        known = newest.get(message.key)
        if known is None or version_of(known) <= version_of(message.value):
            newest[message.key] = message.value
        elif not is_ancestor(message.value, known):
            damaged[message.key] = message
    return newest


def _store_rebuilt(
    table: ConsentTable, partition: int, records: Mapping[bytes, bytes], *, epoch: int
) -> None:
    """Store records in a partition that is being rebuilt, and so has no position yet."""
    write = Write(partition, records, epoch, expected_offset=None, next_offset=None)
    [refusal] = table.store([write])
    if refusal is not None:
        raise refusal


def _quarantine_damaged(
    table: ConsentTable, partition: int, damaged: Mapping[bytes, StoredMessage], *, epoch: int
) -> list[Published]:
    """Quarantine every member with a damaged record, and return their new records.

    What the damaged record said, an opt-out perhaps, is not known.
    """
    members = list(damaged)
    stored = table.load({partition: members})[partition]
    quarantined: list[Published] = []
    for member, raw in zip(members, stored, strict=True):
        message = damaged[member]
        record = _quarantine(member, raw, message)
        quarantined.append(Published(member, record, message.appended_at // 1000))
        _LOG.error("damaged_record_quarantined", partition=partition, offset=message.offset)
    new = {member: record for member, record, _ in quarantined}
    _store_rebuilt(table, partition, new, epoch=epoch)
    return quarantined


def _quarantine(member: bytes, raw: bytes | None, damaged: StoredMessage) -> bytes:
    """Return the framed record that quarantines a member, folded onto `raw` if there is one."""
    damaged_value = damaged.value or b""
    event_id = hashlib.blake2b(bytes(damaged_value), digest_size=16, key=member[:64]).digest()
    event = EventUnreadable(
        event_id=event_id,
        member=MemberId(member.decode("ascii", "replace")),
        recorded_at=damaged.appended_at,
    )
    before = None if raw is None else read_record(raw, member)
    record = fold(before, event)
    # Above the damaged version, if that can be true: followers pass over what is not newer.
    version_above = min(version_of(damaged_value), _VERSION_MAX) + 1
    frame = bytes((raw or damaged_value)[:FRAME_LENGTH])
    return write_record(replace(record, version=max(record.version, version_above)), frame)


def _start_generation(
    table: ConsentTable,
    partition: int,
    claim: PartitionClaim,
    next_offset: int,
    span: LogSpan,
    *,
    rebuilt: bool = False,
) -> Takeover:
    """Start a new life of the partition's table at `next_offset`."""
    generation = uuid.uuid4().hex
    table.start_generation(
        partition,
        epoch=claim.epoch,
        generation=generation,
        next_offset=next_offset,
        tainted=claim.tainted,
    )
    start_offset = next_offset
    if span.committed_offset is not None:
        start_offset = min(next_offset, span.committed_offset)
    owned = OwnedPartition(
        partition=partition,
        epoch=claim.epoch,
        generation=generation,
        next_offset=next_offset,
        acknowledged_offset=start_offset,
        tainted=claim.tainted,
    )
    return Takeover(owned, max(start_offset, span.first_offset), rebuilt)


def _check_reachable(partition: int, offset: int, span: LogSpan) -> None:
    if span.first_offset <= offset <= span.end_offset:
        return
    raise UnsafeSetting(
        f"Partition {partition} of member-events holds offsets {span.first_offset} to "
        f"{span.end_offset}, but the table or the committed offset stands at {offset}: the log was "
        "truncated or the topic made anew.",
        code="log.unreachable",
        fix="restore the log; going on would forget opt-outs. For a log that is meant to start "
        "anew, use another CONSENTRY_NAMESPACE",
    )


def _is_sound(value: bytes, member: bytes) -> bool:
    try:
        verify_checksum(value, member)
    except DamagedRecord:
        return False
    return True


def last_frontiers(frontiers: Iterable[Frontier]) -> Mapping[int, Frontier]:
    """Return each partition's last frontier, among those that the processor published."""
    return {frontier.partition: frontier for frontier in frontiers}
