"""All records that a follower holds: a few immutable segments, the newest first, and what has
changed since.
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
_SIDE_BY_SIDE: Final = 64


class IndexRegression(NamedTuple):
    """A record that is older than the one that is held."""

    member: bytes
    held: bytes
    older: bytes


class FoundRecords(NamedTuple):
    """Where some of the keys that were asked for are: `places` in a segment for these `rows`."""

    segment: Segment
    rows: Offsets
    places: npt.NDArray[np.int32]


class RecordIndex(Mapping[bytes, bytes]):
    """Member id → framed record bytes. One thread changes it, any may read meanwhile.

    A reader sees each member's record as it is or as it was a moment ago, never none where there is
    one.
    """

    def __init__(self, segments: Sequence[Segment] = ()) -> None:
        """Of these segments, the newest first."""
        self._segments = tuple(segments)
        self._recent: dict[bytes, bytes] = {}
        self._changes = 0
        self._indexed: tuple[int, Segment] = (0, Segment.of([], []))
        self._count = sum(map(len, self._segments)) - _repeated(self._segments)

    @classmethod
    def counted(cls, segments: Sequence[Segment], count: int) -> RecordIndex:
        """A store of these segments, the newest first, that is said to have `count` members: none
        are counted.
        """
        made = cls()
        made._segments, made._count = tuple(segments), count
        return made

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return (member for member, _ in self.pairs())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self._held(key) is not None

    def __getitem__(self, key: bytes) -> bytes:
        found = self._held(key)
        if found is None:
            raise KeyError(key)
        return found

    def _held(self, key: bytes) -> bytes | None:
        # In this order: what leaves `recent` is in a segment before.
        found = self._recent.get(key)
        if found is not None:
            return found
        for segment in self._segments:
            place = segment.place_of(key)
            if place >= 0:
                return segment.record(place)
        return None

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Every member and record once; not all in memory at once."""
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
        """All of it as segments, the newest first: a member's record is the first one found."""
        changes, recent = self._changes, dict(self._recent)
        segments = self._segments  # after what is recent: see `_held`
        if not recent:
            return segments
        known, indexed = self._indexed
        if known != changes:
            indexed = Segment.of(list(recent), list(recent.values()))
            self._indexed = (changes, indexed)
        return (indexed, *segments)

    def find(self, keys: Keys) -> list[FoundRecords]:
        """Where the keys are, each in the newest segment that has it; who is nowhere is in none."""
        segments = self.segments()
        if not segments or not len(keys):
            return []
        hashes = keys.hashes(decimals=any(segment.has_decimals for segment in segments))
        found: list[FoundRecords] = []
        left: Offsets | None = None
        for segment in segments:
            if left is None:
                places = segment.find(keys, hashes)
                rows = np.flatnonzero(places >= 0)
                left = np.flatnonzero(places < 0) if len(segments) > 1 else rows
                found.append(FoundRecords(segment, rows, places[rows]))
            else:
                places = segment.find(keys.taken(left), hashes[left])
                hits = places >= 0
                found.append(FoundRecords(segment, left[hits], places[hits]))
                left = left[~hits]
        return [one for one in found if len(one.rows)]

    def apply(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[IndexRegression]:
        """Take records in, in this order; an older version than the one held is not, and is
        told.
        """
        older: list[IndexRegression] = []
        held = self._held_of_each(keys)
        recent = self._recent
        for key, value, before in zip(keys, values, held, strict=True):
            known = recent.get(key, before)
            if known is None:
                self._count += 1
            elif version_of(known) > version_of(value):
                older.append(IndexRegression(key, known, value))
                continue
            recent[key] = value
            self._changes += 1
        if len(recent) > RECENT_MAX:
            self._settle()
        return older

    def _held_of_each(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What the segments hold of each member."""
        if len(keys) < _SIDE_BY_SIDE:
            return [self._in_segments(key) for key in keys]
        found: list[bytes | None] = [None] * len(keys)
        if not self._segments:
            return found
        asked = TextKeys.of(keys)
        hashes = asked.hashes(decimals=True)
        for segment in reversed(self._segments):
            places = segment.find(asked, hashes)
            rows = np.flatnonzero(places >= 0)
            for row, record in zip(rows.tolist(), segment.records_at(places[rows]), strict=True):
                found[row] = record
        return found

    def _in_segments(self, key: bytes) -> bytes | None:
        for segment in self._segments:
            place = segment.place_of(key)
            if place >= 0:
                return segment.record(place)
        return None

    def _settle(self) -> None:
        """Make a segment of what is recent, and one of such as are alike in size."""
        recent = self._recent
        segments = (Segment.of(list(recent), list(recent.values())), *self._segments)
        while len(segments) > 1 and _worth_merging(segments[0], segments[1]):
            segments = (Segment.merged(segments[0], segments[1]), *segments[2:])
        self._segments = segments
        self._recent = {}
        self._changes += 1


def _repeated(segments: Sequence[Segment]) -> int:
    """How many records stand behind a newer one of the same member."""
    count = 0
    for place, older in enumerate(segments):
        newer_ones = [newer for newer in segments[:place] if newer.may_share(older)]
        if not newer_ones:
            continue
        hashes = older.keys.hashes(decimals=True)
        covered = np.zeros(len(older), dtype=np.bool_)
        for newer in newer_ones:
            covered |= newer.find(older.keys, hashes) >= 0
        count += int(covered.sum())
    return count


def _worth_merging(newer: Segment, older: Segment) -> bool:
    return len(newer) + len(older) <= MERGED_MAX and len(older) < _GROWTH * len(newer)
