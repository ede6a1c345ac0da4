"""The index of all records that a follower holds: a few fixed segments, and changes since.

New records go into a dict. When it is full it becomes a segment, and segments of like size are
merged, so that there are never many (as in a log-structured merge tree: O'Neil et al., 1996).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from consentry.record_index.keys import Keys, Offsets, TextKeys
from consentry.record_index.segment import Segment
from consentry.wire.records import version_of

RECENT_MAX: Final = 4096
MERGED_MAX: Final = 1 << 20
"""No merge makes a larger segment: it would hold the thread that follows for seconds."""
_GROWTH: Final = 4
_BATCH_ROWS_MIN: Final = 64
"""From this many keys on they are looked up together; fewer are quicker one by one."""


class IndexRegression(NamedTuple):
    """A record that came to the record index after a newer one, which stays."""

    member: bytes
    newest: bytes
    older: bytes


class FoundRecords(NamedTuple):
    """The keys found in one segment of the record index: their rows, and their positions.

    Rows are those of the question, positions those in the segment.
    """

    segment: Segment
    rows: Offsets
    positions: npt.NDArray[np.int32]


class RecordIndex(Mapping[bytes, bytes]):
    """The index in memory from member id to framed record bytes.

    One thread changes it, any may read meanwhile.

    A reader sees each member's record as it is or as it was a moment ago; a member who has a record
    is always found.
    """

    def __init__(self, segments: Sequence[Segment] = ()) -> None:
        """Take these segments, the newest first."""
        self._segments = tuple(segments)
        self._recent: dict[bytes, bytes] = {}
        self._changes = 0
        self._indexed: tuple[int, Segment] = (0, Segment.of([], []))
        self._count = sum(map(len, self._segments)) - _repeated(self._segments)

    @classmethod
    def counted(cls, segments: Sequence[Segment], count: int) -> RecordIndex:
        """Return a record index of these segments, newest first; its member count is given.

        Nothing is counted.
        """
        index = cls()
        index._segments, index._count = tuple(segments), count
        return index

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return (member for member, _ in self.pairs())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self._record_of(key) is not None

    def __getitem__(self, key: bytes) -> bytes:
        record = self._record_of(key)
        if record is None:
            raise KeyError(key)
        return record

    def _record_of(self, key: bytes) -> bytes | None:
        # In this order: what leaves `recent` is in a segment before.
        record = self._recent.get(key)
        return self._in_segments(key) if record is None else record

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every member and record of the index once; not all in memory at once."""
        newer: list[Segment] = []
        for segment in self.segments():
            live = np.ones(len(segment), dtype=np.bool_)
            if newer:
                hashes = segment.keys.hashes(decimals=True)
                for other in newer:
                    live &= other.find(segment.keys, hashes) < 0
            yield from segment.items(live)
            newer.append(segment)

    def segments(self) -> tuple[Segment, ...]:
        """Return the whole record index as segments, the newest first.

        The first record of a member counts.
        """
        changes, recent = self._changes, dict(self._recent)
        segments = self._segments  # after what is recent: see `_record_of`
        if not recent:
            return segments
        known, indexed = self._indexed
        if known != changes:
            indexed = Segment.of(list(recent), list(recent.values()))
            self._indexed = (changes, indexed)
        return (indexed, *segments)

    def find(self, keys: Keys) -> list[FoundRecords]:
        """Look keys up in the record index: each in the newest segment that has it.

        A key that no segment has is in none of the results.
        """
        segments = self.segments()
        if not segments or not len(keys):
            return []
        hashes = keys.hashes(decimals=any(segment.has_decimals for segment in segments))
        results: list[FoundRecords] = []
        left: Offsets | None = None  # None: all rows, without a copy of the keys
        for segment in segments:
            if left is None:
                positions = segment.find(keys, hashes)
                rows = np.flatnonzero(positions >= 0)
                left = np.flatnonzero(positions < 0) if len(segments) > 1 else rows
                results.append(FoundRecords(segment, rows, positions[rows]))
            else:
                positions = segment.find(keys.take(left), hashes[left])
                is_hit = positions >= 0
                results.append(FoundRecords(segment, left[is_hit], positions[is_hit]))
                left = left[~is_hit]
        return [result for result in results if len(result.rows)]

    def apply(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[IndexRegression]:
        """Take records into the index, in this order; return those older than the one there.

        They are not taken in.
        """
        regressions: list[IndexRegression] = []
        records_before = self._records_of(keys)
        recent = self._recent
        for key, value, before in zip(keys, values, records_before, strict=True):
            known = recent.get(key, before)
            if known is None:
                self._count += 1
            elif version_of(known) > version_of(value):
                regressions.append(IndexRegression(key, known, value))
                continue
            recent[key] = value
            self._changes += 1
        if len(recent) > RECENT_MAX:
            self._settle()
        return regressions

    def _records_of(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what the segments hold of each member."""
        if len(keys) < _BATCH_ROWS_MIN:
            return [self._in_segments(key) for key in keys]
        records: list[bytes | None] = [None] * len(keys)
        if not self._segments:
            return records
        text_keys = TextKeys.of(keys)
        hashes = text_keys.hashes(decimals=True)
        # The newest last: its record is the one that stays.
        for segment in reversed(self._segments):
            positions = segment.find(text_keys, hashes)
            rows = np.flatnonzero(positions >= 0)
            segment_records = segment.records_at(positions[rows])
            for row, record in zip(rows.tolist(), segment_records, strict=True):
                records[row] = record
        return records

    def _in_segments(self, key: bytes) -> bytes | None:
        for segment in self._segments:
            position = segment.position_of(key)
            if position >= 0:
                return segment.record(position)
        return None

    def _settle(self) -> None:
        """Make a segment of what is recent, and merge segments of like size."""
        recent = self._recent
        segments = (Segment.of(list(recent), list(recent.values())), *self._segments)
        while len(segments) > 1 and _worth_merging(segments[0], segments[1]):
            segments = (Segment.merged(segments[0], segments[1]), *segments[2:])
        self._segments = segments
        self._recent = {}
        self._changes += 1


def _repeated(segments: Sequence[Segment]) -> int:
    """Return the number of records that stand behind a newer one of the same member."""
    count = 0
    for index, older in enumerate(segments):
        newer_ones = [newer for newer in segments[:index] if newer.may_share(older)]
        if not newer_ones:
            continue
        hashes = older.keys.hashes(decimals=True)
        is_replaced = np.zeros(len(older), dtype=np.bool_)
        for newer in newer_ones:
            is_replaced |= newer.find(older.keys, hashes) >= 0
        count += int(is_replaced.sum())
    return count


def _worth_merging(newer: Segment, older: Segment) -> bool:
    return len(newer) + len(older) <= MERGED_MAX and len(older) < _GROWTH * len(newer)
