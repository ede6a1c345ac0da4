"""The file of a segment: a head that says where what lies, and arrays exactly as they are in
memory.

A file is for processes of one machine and one version of this package; what goes elsewhere is a
bundle.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput

HEAD_BYTES: Final = 1024
_FORMAT: Final = 2
_MAGIC: Final = b"CONSEG\x00\x02"
_ALIGNMENT: Final = 64
_STEPS: Final = ("uint8", "uint16", "uint32")
GROUP_BITS: Final = 4
GROUP: Final = 1 << GROUP_BITS
"""Buckets whose beginnings are told by one number of four bytes, and steps from it."""


class FileSpan(NamedTuple):
    """Where a buffer lies: the byte of the file at which it begins, and how many it has."""

    at: int
    size: int


class Index(NamedTuple):
    """Where to look for a hash: groups of buckets, how far behind its group each begins, and prints
    of the members.
    """

    groups: npt.NDArray[np.uint32]
    steps: npt.NDArray[np.unsignedinteger[Any]]
    prints: npt.NDArray[np.uint32]


def write_buffers(file: IO[bytes], buffers: Sequence[npt.NDArray[Any]]) -> list[FileSpan]:
    """Write them where the file stands, each at a multiple of 64 bytes; where they lie."""
    places = []
    for buffer in buffers:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        places.append(FileSpan(file.tell(), buffer.nbytes))
        file.write(np.ascontiguousarray(buffer).data)
    return places


def write_segment(file: IO[bytes], index: Index, ids: pa.Array, records: pa.Array) -> None:
    """Write all that a segment is made of to an empty file."""
    file.seek(HEAD_BYTES)
    offsets, data = buffers_of(records)
    [place] = write_buffers(file, [data])
    write_rest(file, index, ids, offsets, place)


def write_rest(
    file: IO[bytes], index: Index, ids: pa.Array, offsets: npt.NDArray[np.int32], records: FileSpan
) -> None:
    """Write what lacks to a file that has the records' bytes already; `offsets` are theirs."""
    buffers = [*index, *buffers_of(ids), offsets]
    head = {
        "format": _FORMAT,
        "members": len(ids),
        "steps": index.steps.dtype.name,
        "buffers": [*write_buffers(file, buffers), records],
        "digest": _digest(buffers),
    }
    file.seek(0)
    file.write((_MAGIC + json.dumps(head).encode()).ljust(HEAD_BYTES))
    file.flush()


def _digest(buffers: Sequence[npt.NDArray[Any]]) -> str:
    """Of all but the records' bytes: each of these has a check sum of its own."""
    found = hashlib.sha256()
    for buffer in buffers:
        found.update(buffer.nbytes.to_bytes(8, "little"))
        found.update(np.ascontiguousarray(buffer).data)
    return found.hexdigest()


def map_segment(file: IO[bytes], *, is_own: bool = False) -> tuple[Index, pa.Array, pa.Array]:
    """Index, ids and records; pages are read when they are needed, the file may be closed.

    Raises InvalidInput.

    All but the records is read once and compared with its digest: a member whom a damaged index
    does not find is nobody, and allowed. Not so a file of one's `own` that was written just now and
    has no name.
    """
    try:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = json.loads(held[len(_MAGIC) : HEAD_BYTES]) if held[: len(_MAGIC)] == _MAGIC else {}
        if head.get("format") != _FORMAT or head["steps"] not in _STEPS:
            raise ValueError("it is of another format")  # noqa: TRY301 - told below, as all that may be wrong
        *parts, data = [_part(held, FileSpan(at, size)) for at, size in head["buffers"]]
        if not is_own and _digest(parts) != head["digest"]:
            raise ValueError("it was altered")  # noqa: TRY301
        groups, steps, prints, id_offsets, id_data, offsets = parts
        index = Index(
            groups.view(np.uint32), steps.view(np.dtype(head["steps"])), prints.view(np.uint32)
        )
        count: int = head["members"]
        _check_index(index, count)
        return index, array_of(count, id_offsets, id_data), array_of(count, offsets, data)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InvalidInput(
            f"The file of records cannot be read ({type(error).__name__}).",
            code="records.file",
            fix="remove it: it is made anew from the bundle or from Kafka",
        ) from error


def _check_index(index: Index, count: int) -> None:
    """Raise ValueError where an index is not one of so many members."""
    buckets = 1 << bucket_bits_of(count)
    sizes = (len(index.groups), len(index.steps), len(index.prints))
    if sizes != (-(-(buckets + 1) // GROUP), buckets + 1, count):
        raise ValueError("its parts do not fit together")
    if int(index.groups[-1]) + int(index.steps[-1]) != count:
        raise ValueError("its index is of another number of members")


def bucket_bits_of(count: int) -> int:
    """How many bits of a hash say in which bucket a member is, among so many members."""
    return max(count, 1).bit_length()


def map_texts(file: IO[bytes], count: int, places: Sequence[FileSpan]) -> pa.Array:
    """So many texts whose offsets and bytes lie in these places of a file."""
    file.flush()
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return array_of(count, *(_part(held, place) for place in places))


def _part(held: mmap.mmap, place: FileSpan) -> npt.NDArray[np.uint8]:
    if not 0 <= place.size <= len(held) - place.at <= len(held):
        raise ValueError("it ends too early")
    return np.frombuffer(held, dtype=np.uint8, count=place.size, offset=place.at)


def buffers_of(array: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets and bytes of binary texts; the offsets are of all the bytes, which may be more than
    the array has.
    """
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    some = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return some, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def array_of(count: int, offsets: npt.NDArray[Any], data: npt.NDArray[np.uint8]) -> pa.Array:
    """The binary texts of which these are offsets and bytes.

    Raises ValueError where they cannot be.
    """
    array = pa.Array.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    array.validate()
    return array
