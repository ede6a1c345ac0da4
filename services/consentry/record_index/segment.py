"""An immutable part of the records: ids and records by the order of their hashes, and where each
hash begins.

A member is found in three steps: the first bits of the hash say where to look, 32 more bits of it
who it may be, and the id itself who it is. Beside ids and records that takes 4 bytes of print, two
offsets of 4, and 1.25 to 2.5 for where to look, for each member; in a file all of it may lie in
pages that processes share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.record_index.keys import U64, WORD, Keys, Mask, Offsets, TextKeys, hash_of
from consentry.record_index.segment_file import (
    GROUP,
    GROUP_BITS,
    Index,
    array_of,
    bucket_bits_of,
    buffers_of,
    map_segment,
    write_segment,
)

MEMBERS_MAX: Final = 1 << 26
_BITS: Final = 64
_PRINT_BITS: Final = 32
_NONE: Final = -1
_PART: Final = 1 << 16


class Segment:
    """Members, each once, and the framed bytes of their records.

    Made by `of`, `of_arrow`, `merged` or `open`.
    """

    def __init__(self, index: Index, ids: pa.Array, records: pa.Array) -> None:
        self.index = index
        self.ids = ids
        self.records = records
        self.keys = TextKeys.of_arrow(ids)
        self._bucket_bits = (len(index.steps) - 1).bit_length() - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Segment, (self.index, self.ids, self.records)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def has_decimals(self) -> bool:
        """Whether any id is the decimal form of an integer."""
        return any(
            self.keys.taken(np.arange(start, min(start + _PART, len(self)))).decimals()[1].any()
            for start in range(0, len(self), _PART)
        )

    @classmethod
    def of(cls, keys: Sequence[bytes], values: Sequence[bytes]) -> Segment:
        """A segment of these members, each of whom is named once, and their records."""
        return cls.of_arrow(pa.array(keys, pa.binary()), pa.array(values, pa.binary()))

    @classmethod
    def of_arrow(cls, ids: pa.Array, records: pa.Array) -> Segment:
        """As `of`, from two arrays of bytes.

        Raises InvalidInput where a member is named twice, or for too many.
        """
        ids, records = ids.cast(pa.binary()), records.cast(pa.binary())
        hashes = hashes_of(ids)
        if not ascend(hashes):  # a segment's own order costs no sorting
            order = np.argsort(hashes)
            hashes, by_hash = hashes[order], pa.array(order)
            ids, records = ids.take(by_hash), records.take(by_hash)
        return cls(index_of(hashes, ids), with_room(ids), records)

    @classmethod
    def merged(cls, newer: Segment, older: Segment) -> Segment:
        """One segment of both; of who is in both the newer record."""
        kept = pa.array(
            np.flatnonzero(newer.find(older.keys, older.keys.hashes(decimals=True)) == _NONE)
        )
        ids = pa.concat_arrays([newer.ids, older.ids.take(kept)])
        return cls.of_arrow(ids, pa.concat_arrays([newer.records, older.records.take(kept)]))

    def find(self, keys: Keys, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """The place of each key, or -1."""
        found = np.full(len(keys), _NONE, dtype=np.int32)
        if len(self) == 0:
            return found
        bucket = (hashes >> np.uint64(_BITS - self._bucket_bits)).view(np.int64)
        wanted = (hashes >> np.uint64(_BITS - self._bucket_bits - _PRINT_BITS)).astype(np.uint32)
        # The first of a bucket is looked at without asking where the bucket ends: most keys need no
        # more.
        at = self._begin(bucket)
        there = self.index.prints.take(at, mode="clip")
        # Behind the last member there is none, and the last one was looked at instead.
        rows = np.flatnonzero((there == wanted) & (at < len(self)))
        same = keys.same(rows, self.keys, at[rows])
        hits = rows if same.all() else rows[same]
        found[hits] = at[hits]
        goes_on = there < wanted
        if len(hits) < len(rows):
            goes_on[rows[~same]] = True
        rows = np.flatnonzero(goes_on)
        self._find_further(keys, found, rows, at[rows], self._begin(bucket[rows] + 1), wanted[rows])
        return found

    def _find_further(
        self,
        keys: Keys,
        found: npt.NDArray[np.int32],
        rows: Offsets,
        at: npt.NDArray[np.int32],
        end: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.uint32],
    ) -> None:
        """Find what is not the first of its bucket: behind `at`, and before `end`."""
        while len(rows):
            at += 1
            left = np.flatnonzero(at < end)
            rows, at, end, wanted = rows[left], at[left], end[left], wanted[left]
            there = self.index.prints[at]
            hits = np.flatnonzero(there == wanted)
            same = keys.same(rows[hits], self.keys, at[hits])
            alike = hits if same.all() else hits[same]
            found[rows[alike]] = at[alike]
            # Prints ascend within a bucket; those that are equal may still be another's.
            goes_on = there < wanted
            if len(alike) < len(hits):
                goes_on[hits[~same]] = True
            left = np.flatnonzero(goes_on)
            rows, at, end, wanted = rows[left], at[left], end[left], wanted[left]

    def _begin(self, bucket: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        found: npt.NDArray[np.int32] = self.index.groups[bucket >> GROUP_BITS].view(np.int32)
        found += self.index.steps[bucket]
        return found

    def may_share(self, other: Segment) -> bool:
        """Whether a member can be in both: not where all hashes of one lie before those of the
        other.
        """
        if not len(self) or not len(other):
            return False
        (first, last), (others_first, others_last) = self._span, other._span
        return first <= others_last and others_first <= last

    @cached_property
    def _span(self) -> tuple[int, int]:
        return hash_of(self.ids[0].as_py()), hash_of(self.ids[-1].as_py())

    def place_of(self, key: bytes) -> int:
        """The place of one member, or -1."""
        if len(self) == 0:
            return _NONE
        hashed = hash_of(key)
        bucket = hashed >> (_BITS - self._bucket_bits)
        wanted = hashed >> (_BITS - self._bucket_bits - _PRINT_BITS) & 0xFFFFFFFF
        begin, end = self._begin(np.array([bucket, bucket + 1])).tolist()
        for place in range(begin, end):
            if self.index.prints[place] == wanted and self.ids[place].as_py() == key:
                return place
        return _NONE

    def record(self, place: int) -> bytes:
        """The record at a place."""
        found: bytes = self.records[place].as_py()
        return found

    def members_at(self, places: Offsets) -> list[bytes]:
        """The ids at some places."""
        found: list[bytes] = self.ids.take(pa.array(places)).to_pylist()
        return found

    def records_at(self, places: Offsets) -> list[bytes]:
        """The records at some places."""
        found: list[bytes] = self.records.take(pa.array(places)).to_pylist()
        return found

    def items(self, live: Mask | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Members and records, all or those that are `live`; not all in memory at once."""
        places = np.arange(len(self)) if live is None else np.flatnonzero(live)
        for start in range(0, len(places), 65_536):
            part = places[start : start + 65_536]
            yield from zip(self.members_at(part), self.records_at(part), strict=True)

    @property
    def memory_bytes(self) -> int:
        """What prints, beginnings and offsets take; ids and records are not counted."""
        return int(
            self.index.groups.nbytes + self.index.steps.nbytes + self.index.prints.nbytes
        ) + 8 * len(self)

    def save(self, path: Path) -> None:
        """Write it to a file that `open` takes; the file appears whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            self.write(file)
        temporary.replace(path)

    def write(self, file: IO[bytes]) -> None:
        """Write it to an empty file."""
        write_segment(file, self.index, self.ids, self.records)

    @classmethod
    def open(cls, path: Path) -> Segment:
        """The segment of a file, whose pages of records are read when they are needed.

        Raises InvalidInput.
        """
        with path.open("rb") as file:
            return cls(*map_segment(file))


def hashes_of(ids: pa.Array) -> U64:
    """The hashes by which a segment orders its members.

    Raises InvalidInput where they are too many for one.
    """
    if len(ids) > MEMBERS_MAX:
        raise InvalidInput(
            f"A segment of {len(ids)} members was asked for; at most {MEMBERS_MAX} fit in one.",
            code="records.too_many",
            fix="split them over several segments",
        )
    return TextKeys.of_arrow(ids).hashes(decimals=True)


def ascend(hashes: U64) -> bool:
    """Whether they stand in the order of a segment."""
    return bool((hashes[1:] >= hashes[:-1]).all())


def index_of(hashes: U64, ids: pa.Array) -> Index:
    """The index of these ids, whose hashes ascend.

    Raises InvalidInput where one of them stands there twice.
    """
    _check_once(ids, hashes)
    bits = bucket_bits_of(len(hashes))
    buckets = (hashes >> np.uint64(_BITS - bits)).view(np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=1 << bits))])
    groups = starts[::GROUP]
    steps = starts - np.repeat(groups, GROUP)[: len(starts)]
    prints = (hashes >> np.uint64(_BITS - bits - _PRINT_BITS)).astype(np.uint32)
    width = next(
        one for one in (np.uint8, np.uint16, np.uint32) if steps.max(initial=0) <= np.iinfo(one).max
    )
    return Index(groups.astype(np.uint32), steps.astype(width), prints)


def with_room(array: pa.Array) -> pa.Array:
    """The same texts, with eight bytes before the first and behind the last."""
    offsets, data = buffers_of(array)
    room = np.zeros(WORD, np.uint8)
    held = np.concatenate([room, data[int(offsets[0]) : int(offsets[-1])], room])
    return array_of(len(array), offsets - offsets[0] + np.int32(WORD), held)


def _check_once(ids: pa.Array, hashes: npt.NDArray[np.uint64]) -> None:
    """Raise InvalidInput where two ids are the same; `hashes` ascend."""
    twins = np.flatnonzero(hashes[1:] == hashes[:-1])
    keys = ids.take(pa.array(np.union1d(twins, twins + 1))).to_pylist() if len(twins) else []
    if len(keys) != len(set(keys)):
        raise InvalidInput(
            "A member is named twice among the records.",
            code="records.twice",
            fix="take a bundle whose records name every member once",
        )
