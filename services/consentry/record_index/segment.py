"""A fixed part of the record index: ids and records in the order of their hashes.

A member is found in three steps. The first bits of the hash name a bucket, and the index says where
its members begin and end. The next 32 bits are compared with each of those members' prints. Where
they are equal, the id itself is compared. Four members, whose hashes are (the id is hashed as
keys.py says):

    position   id     hash                  bucket: 3 bits   print: the next 32 bits
    0          dee    0x44cc34c1511c5b10    2                0x2661a60a
    1          cy     0x633c2910ed502899    3                0x19e14887
    2          bo     0x6fe55a94ea0e8bb4    3                0x7f2ad4a7
    3          anna   0x8635e39d818787cf    4                0x31af1cec

    bucket           0  1  2  3  4  5  6  7  end
    begins at        0  0  0  1  3  4  4  4  4

To look for `bo`: bucket 3 has positions 1 and 2; the print at 1 is another, the one at 2 is equal,
and so is the id: position 2. To look for `eve`, 0x8725…: bucket 4 has position 3 alone, its print
is not 0x3912911c: there is no `eve`. A segment has between one and two buckets for each member, so
that most lookups see one print.

The beginnings are kept as one number of four bytes for each 16 buckets and a step from it for each
bucket, mostly of one byte. Beside ids and records a member takes 4 bytes of print, two offsets of
4, and 1.25 to 2.5 bytes of beginnings; in a file all of it may lie in pages that processes share.
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
"""The position of a member who is not there."""
CHUNK_ROWS: Final = 1 << 16
"""Members that are read at once."""


class Segment:
    """A fixed part of the record index: members, each once, and their records' framed bytes.

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
        """True if any member id in the segment is the decimal form of an integer."""
        for start in range(0, len(self), CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, len(self)))
            _, is_decimal = self.keys.take(rows).decimals()
            if is_decimal.any():
                return True
        return False

    @classmethod
    def of(cls, keys: Sequence[bytes], values: Sequence[bytes]) -> Segment:
        """Return a segment of these members, each named once, and their records."""
        return cls.of_arrow(pa.array(keys, pa.binary()), pa.array(values, pa.binary()))

    @classmethod
    def of_arrow(cls, ids: pa.Array, records: pa.Array) -> Segment:
        """Return a segment as `of` does, from two arrays of bytes (members, records).

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
        """Return one segment of two; of a member in both it has the newer record."""
        hashes = older.keys.hashes(decimals=True)
        only_older = pa.array(np.flatnonzero(newer.find(older.keys, hashes) == _NONE))
        ids = pa.concat_arrays([newer.ids, older.ids.take(only_older)])
        return cls.of_arrow(ids, pa.concat_arrays([newer.records, older.records.take(only_older)]))

    def find(self, keys: Keys, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Return the position of each key in the segment, or -1. `hashes` are the keys'."""
        positions = np.full(len(keys), _NONE, dtype=np.int32)
        if len(self) == 0:
            return positions
        buckets = (hashes >> np.uint64(_BITS - self._bucket_bits)).view(np.int64)
        key_prints = (hashes >> np.uint64(_BITS - self._bucket_bits - _PRINT_BITS)).astype(
            np.uint32
        )
        # The first of a bucket is looked at without asking where the bucket ends: most keys need no
        # more.
        at = self._begin(buckets)
        prints = self.index.prints.take(at, mode="clip")
        # Behind the last member there is none, and the last one was looked at instead.
        rows = np.flatnonzero((prints == key_prints) & (at < len(self)))
        is_same = keys.same(rows, self.keys, at[rows])
        hits = rows if is_same.all() else rows[is_same]
        positions[hits] = at[hits]
        # Prints ascend within a bucket; one that is equal may still be another member's.
        goes_on = prints < key_prints
        if len(hits) < len(rows):
            goes_on[rows[~is_same]] = True
        rows = np.flatnonzero(goes_on)
        ends = self._begin(buckets[rows] + 1)
        self._find_further(keys, positions, rows, at[rows], ends, key_prints[rows])
        return positions

    def _find_further(
        self,
        keys: Keys,
        positions: npt.NDArray[np.int32],
        rows: Offsets,
        at: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
        key_prints: npt.NDArray[np.uint32],
    ) -> None:
        """Set the positions of keys that are not the first of their buckets.

        They are behind `at`, and before `ends`. Each turn looks one position further for all rows
        that are left.
        """
        while len(rows):
            at += 1
            left = np.flatnonzero(at < ends)
            rows, at, ends, key_prints = rows[left], at[left], ends[left], key_prints[left]
            prints = self.index.prints[at]
            alike = np.flatnonzero(prints == key_prints)
            is_same = keys.same(rows[alike], self.keys, at[alike])
            hits = alike if is_same.all() else alike[is_same]
            positions[rows[hits]] = at[hits]
            goes_on = prints < key_prints
            if len(hits) < len(alike):
                goes_on[alike[~is_same]] = True
            left = np.flatnonzero(goes_on)
            rows, at, ends, key_prints = rows[left], at[left], ends[left], key_prints[left]

    def _begin(self, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the position at which each bucket begins."""
        positions: npt.NDArray[np.int32] = self.index.groups[buckets >> GROUP_BITS].view(np.int32)
        positions += self.index.steps[buckets]
        return positions

    def may_share(self, other: Segment) -> bool:
        """Say whether a member can be in both segments, as far as their hashes tell.

        It cannot if one's hashes all lie before the other's.
        """
        if not len(self) or not len(other):
            return False
        (first, last), (others_first, others_last) = self._span, other._span
        return first <= others_last and others_first <= last

    @cached_property
    def _span(self) -> tuple[int, int]:
        return hash_of(self.ids[0].as_py()), hash_of(self.ids[-1].as_py())

    def position_of(self, key: bytes) -> int:
        """Return the position of one member in the segment, or -1."""
        if len(self) == 0:
            return _NONE
        key_hash = hash_of(key)
        bucket = key_hash >> (_BITS - self._bucket_bits)
        key_print = key_hash >> (_BITS - self._bucket_bits - _PRINT_BITS) & 0xFFFFFFFF
        begin, end = self._begin(np.array([bucket, bucket + 1])).tolist()
        for position in range(begin, end):
            is_alike = self.index.prints[position] == key_print
            if is_alike and self.ids[position].as_py() == key:
                return position
        return _NONE

    def record(self, position: int) -> bytes:
        """Return the record at a position of the segment."""
        record: bytes = self.records[position].as_py()
        return record

    def members_at(self, positions: Offsets) -> list[bytes]:
        """Return the member ids at some positions of the segment."""
        members: list[bytes] = self.ids.take(pa.array(positions)).to_pylist()
        return members

    def records_at(self, positions: Offsets) -> list[bytes]:
        """Return the records at some positions of the segment."""
        records: list[bytes] = self.records.take(pa.array(positions)).to_pylist()
        return records

    def items(self, live: Mask | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield members and records of the segment, all or those that are `live`.

        Not all are in memory at once.
        """
        positions = np.arange(len(self)) if live is None else np.flatnonzero(live)
        for start in range(0, len(positions), CHUNK_ROWS):
            chunk = positions[start : start + CHUNK_ROWS]
            yield from zip(self.members_at(chunk), self.records_at(chunk), strict=True)

    def save(self, path: Path) -> None:
        """Write the segment to a file that `open` takes; it appears whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            self.write(file)
        temporary.replace(path)

    def write(self, file: IO[bytes]) -> None:
        """Write the segment to an empty file."""
        write_segment(file, self.index, self.ids, self.records)

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Return the segment in a file; pages of records are read when they are needed.

        Raises InvalidInput.
        """
        with path.open("rb") as file:
            return cls(*map_segment(file))


def hashes_of(ids: pa.Array) -> U64:
    """Return the hashes by which a segment of the record index orders its members.

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
    """Say whether hashes stand in the order of a segment of the record index."""
    return bool((hashes[1:] >= hashes[:-1]).all())


def index_of(hashes: U64, ids: pa.Array) -> Index:
    """Return the index of a segment's member ids, whose hashes ascend.

    Raises InvalidInput where one of them stands there twice.
    """
    _check_once(ids, hashes)
    bits = bucket_bits_of(len(hashes))
    buckets = (hashes >> np.uint64(_BITS - bits)).view(np.int64)
    sizes = np.bincount(buckets, minlength=1 << bits)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    groups = starts[::GROUP]
    steps = starts - np.repeat(groups, GROUP)[: len(starts)]
    prints = (hashes >> np.uint64(_BITS - bits - _PRINT_BITS)).astype(np.uint32)
    return Index(groups.astype(np.uint32), _narrowest(steps), prints)


def _narrowest(steps: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the steps in the smallest unsigned type that holds them."""
    largest = steps.max(initial=0)
    if largest <= np.iinfo(np.uint8).max:
        return steps.astype(np.uint8)
    if largest <= np.iinfo(np.uint16).max:
        return steps.astype(np.uint16)
    return steps.astype(np.uint32)


def with_room(array: pa.Array) -> pa.Array:
    """Return texts of a record index segment with eight bytes of room before and behind them.

    The texts are the same.
    """
    offsets, data = buffers_of(array)
    room = np.zeros(WORD, np.uint8)
    text = data[int(offsets[0]) : int(offsets[-1])]
    roomy = np.concatenate([room, text, room])
    return array_of(len(array), offsets - offsets[0] + np.int32(WORD), roomy)


def _check_once(ids: pa.Array, hashes: npt.NDArray[np.uint64]) -> None:
    """Raise InvalidInput where two ids are the same; `hashes` ascend."""
    twins = np.flatnonzero(hashes[1:] == hashes[:-1])
    if not len(twins):
        return
    keys = ids.take(pa.array(np.union1d(twins, twins + 1))).to_pylist()
    if len(keys) != len(set(keys)):
        raise InvalidInput(
            "A member is named twice among the records.",
            code="records.twice",
            fix="take a bundle whose records name every member once",
        )
