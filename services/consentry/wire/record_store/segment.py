"""An immutable part of the records: ids and records by the order of their hashes, and where each hash begins.

A member is found in three steps: the first bits of the hash say where to look, 32 more bits of it who it may be, and
the id itself who it is. Beside ids and records that takes 4 bytes of print, two offsets of 4, and 1.25 to 2.5 for where
to look, for each member; in a file all of it may lie in pages that processes share.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.wire.record_store.keys import WORD, Keys, Mask, Offsets, TextKeys, hash_of

MEMBERS_MAX: Final = 1 << 26
_FORMAT: Final = 1
_MAGIC: Final = b"CONSEG\x00\x01"
_ALIGNMENT: Final = 64
_BITS: Final = 64
_PRINT_BITS: Final = 32
_GROUP_BITS: Final = 4
_GROUP: Final = 1 << _GROUP_BITS
_NONE: Final = -1
_VERSION_AT: Final = 5
"""Behind the frame of five bytes a record has its version, eight bytes (wire/records.py)."""

_PART: Final = 1 << 16

_Buffers = tuple[npt.NDArray[Any], ...]


class Segment:
    """Members, each once, and the framed bytes of their records. Made by `of`, `of_arrow`, `merged` or `open`."""

    def __init__(
        self,
        groups: npt.NDArray[np.uint32],
        steps: npt.NDArray[np.unsignedinteger[Any]],
        prints: npt.NDArray[np.uint32],
        ids: pa.Array,
        records: pa.Array,
    ) -> None:
        self.ids = ids
        self.records = records
        self.keys = TextKeys.of_arrow(ids)
        self._groups = groups
        self._steps = steps
        """A bucket begins so far behind where its group of buckets does."""
        self._prints = prints
        self._bucket_bits = (len(steps) - 1).bit_length() - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Segment, (self._groups, self._steps, self._prints, self.ids, self.records)

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
        """As `of`, from two arrays of bytes. Raises InvalidInput where a member is named twice, or for too many."""
        count = len(ids)
        if count > MEMBERS_MAX:
            raise InvalidInput(
                f"A segment of {count} members was asked for; at most {MEMBERS_MAX} fit in one.",
                code="records.too_many",
                fix="split them over several segments",
            )
        ids, records = ids.cast(pa.binary()), records.cast(pa.binary())
        hashes = TextKeys.of_arrow(ids).hashes(decimals=True)
        if not (hashes[1:] >= hashes[:-1]).all():  # a segment's own order costs no sorting
            order = np.argsort(hashes)
            hashes, by_hash = hashes[order], pa.array(order)
            ids, records = ids.take(by_hash), records.take(by_hash)
        ids = _with_room(ids)
        _check_once(ids, hashes)
        bits = max(count, 1).bit_length()
        starts = np.searchsorted(hashes >> np.uint64(_BITS - bits), np.arange((1 << bits) + 1, dtype=np.uint64))
        groups = starts[::_GROUP]
        steps = starts - np.repeat(groups, _GROUP)[: len(starts)]
        prints = (hashes >> np.uint64(_BITS - bits - _PRINT_BITS)).astype(np.uint32)
        width = next(one for one in (np.uint8, np.uint16, np.uint32) if steps.max(initial=0) <= np.iinfo(one).max)
        return cls(groups.astype(np.uint32), steps.astype(width), prints, ids, records)

    @classmethod
    def merged(cls, newer: Segment, older: Segment) -> Segment:
        """One segment of both; of who is in both the newer record."""
        kept = pa.array(np.flatnonzero(newer.find(older.keys, older.keys.hashes(decimals=True)) == _NONE))
        ids = pa.concat_arrays([newer.ids, older.ids.take(kept)])
        return cls.of_arrow(ids, pa.concat_arrays([newer.records, older.records.take(kept)]))

    def find(self, keys: Keys, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """The place of each key, or -1."""
        found = np.full(len(keys), _NONE, dtype=np.int32)
        if len(self) == 0:
            return found
        bucket = (hashes >> np.uint64(_BITS - self._bucket_bits)).view(np.int64)
        at, end = self._begin(bucket), self._begin(bucket + 1)
        wanted = (hashes >> np.uint64(_BITS - self._bucket_bits - _PRINT_BITS)).astype(np.uint32)
        rows = np.flatnonzero(at < end)
        at, end, wanted = at[rows], end[rows], wanted[rows]
        while len(rows):
            print_there = self._prints[at]
            hits = np.flatnonzero(print_there == wanted)
            same = keys.same(rows[hits], self.keys, at[hits])
            alike = hits if same.all() else hits[same]
            found[rows[alike]] = at[alike]
            # Prints ascend within a bucket; those that are equal may still be another's.
            goes_on = print_there < wanted
            if len(alike) < len(hits):
                goes_on[hits[~same]] = True
            at += 1
            left = np.flatnonzero(goes_on & (at < end))
            rows, at, end, wanted = rows[left], at[left], end[left], wanted[left]
        return found

    def _begin(self, bucket: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        found: npt.NDArray[np.int32] = self._groups[bucket >> _GROUP_BITS].view(np.int32)
        found += self._steps[bucket]
        return found

    def may_share(self, other: Segment) -> bool:
        """Whether a member can be in both: not where all hashes of one lie before those of the other."""
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
            if self._prints[place] == wanted and self.ids[place].as_py() == key:
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
        return int(self._groups.nbytes + self._steps.nbytes + self._prints.nbytes) + 8 * len(self)

    def save(self, path: Path) -> None:
        """Write it to a file that `open` takes; the file appears whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            self.write(file)
        temporary.replace(path)

    def write(self, file: IO[bytes]) -> None:
        """Write it: a head that says where what lies, and the arrays as they are in memory."""
        buffers = self._buffers()
        places, at = [], 0
        for buffer in buffers:
            places.append([at, buffer.nbytes])
            at += -(-buffer.nbytes // _ALIGNMENT) * _ALIGNMENT
        told = {"format": _FORMAT, "members": len(self), "steps": self._steps.dtype.name, "buffers": places}
        head = json.dumps(told).encode()
        head = head.ljust(-(-(len(head) + 16) // _ALIGNMENT) * _ALIGNMENT - 16)
        file.write(_MAGIC + len(head).to_bytes(8, "little") + head)
        for buffer in buffers:
            file.write(np.ascontiguousarray(buffer).data)
            file.write(bytes(-buffer.nbytes % _ALIGNMENT))

    def _buffers(self) -> _Buffers:
        return (self._groups, self._steps, self._prints, *_parts(self.ids), *_parts(self.records))

    @classmethod
    def open(cls, path: Path) -> Segment:
        """The segment of a file, whose pages are read when they are needed. Raises InvalidInput."""
        with path.open("rb") as file:
            return cls.mapped(file)

    @classmethod
    def mapped(cls, file: IO[bytes]) -> Segment:
        """As `open`, of a file that is open and may have no name any more."""
        try:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            is_ours = held[:8] == _MAGIC
            size = int.from_bytes(held[8:16], "little")
            head = json.loads(held[16 : 16 + size]) if is_ours else {}
            parts = [_part(held, 16 + size + at, length) for at, length in head["buffers"]]
            count = int(head["members"])
            groups, prints = parts[0].view(np.uint32), parts[2].view(np.uint32)
            steps = parts[1].view(np.dtype(head["steps"]))
            ids, records = _array(count, *parts[3:5]), _array(count, *parts[5:7])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidInput(
                f"The file of records cannot be read ({type(error).__name__}).",
                code="records.file",
                fix="remove it: it is made anew from the bundle or from Kafka",
            ) from error
        return cls(groups, steps, prints, ids, records)


def _part(held: mmap.mmap, at: int, length: int) -> npt.NDArray[np.uint8]:
    if at + length > len(held):
        raise ValueError("it ends too early")
    return np.frombuffer(held, dtype=np.uint8, count=length, offset=at)


def _parts(array: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets and bytes; the offsets are of all the bytes, which may be more than the array has."""
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    some = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return some, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def _with_room(array: pa.Array) -> pa.Array:
    """The same texts, with eight bytes before the first and behind the last."""
    offsets, data = _parts(array)
    room = np.zeros(WORD, np.uint8)
    held = np.concatenate([room, data[int(offsets[0]) : int(offsets[-1])], room])
    return _array(len(array), offsets - offsets[0] + np.int32(WORD), held)


def _array(count: int, offsets: npt.NDArray[Any], data: npt.NDArray[np.uint8]) -> pa.Array:
    array = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    array.validate()
    return array


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
