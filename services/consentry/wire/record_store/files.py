"""The file of a segment: a head that says where what lies, and arrays exactly as they are in memory.

A file is for processes of one machine and one version of this package; what goes elsewhere is a bundle.
"""

from __future__ import annotations

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


class Place(NamedTuple):
    """Where a buffer lies: the byte of the file at which it begins, and how many it has."""

    at: int
    size: int


class Index(NamedTuple):
    """Where to look for a hash: groups of buckets, how far behind its group each begins, and prints of the members."""

    groups: npt.NDArray[np.uint32]
    steps: npt.NDArray[np.unsignedinteger[Any]]
    prints: npt.NDArray[np.uint32]


def write_buffers(file: IO[bytes], buffers: Sequence[npt.NDArray[Any]]) -> list[Place]:
    """Write them where the file stands, each at a multiple of 64 bytes; where they lie."""
    places = []
    for buffer in buffers:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        places.append(Place(file.tell(), buffer.nbytes))
        file.write(np.ascontiguousarray(buffer).data)
    return places


def write_segment(file: IO[bytes], index: Index, ids: pa.Array, records: pa.Array) -> None:
    """Write all that a segment is made of to an empty file."""
    file.seek(HEAD_BYTES)
    write_rest(file, index, ids, write_buffers(file, buffers_of(records)))


def write_rest(file: IO[bytes], index: Index, ids: pa.Array, records: Sequence[Place]) -> None:
    """Write what lacks to a file that has offsets and bytes of the records already, in these places."""
    places = [*write_buffers(file, [*index, *buffers_of(ids)]), *records]
    head = {"format": _FORMAT, "members": len(ids), "steps": index.steps.dtype.name, "buffers": places}
    file.seek(0)
    file.write((_MAGIC + json.dumps(head).encode()).ljust(HEAD_BYTES))
    file.flush()


def map_segment(file: IO[bytes]) -> tuple[Index, pa.Array, pa.Array]:
    """Index, ids and records; pages are read when they are needed, the file may be closed. Raises InvalidInput."""
    try:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        is_ours = held[: len(_MAGIC)] == _MAGIC
        head = json.loads(held[len(_MAGIC) : HEAD_BYTES]) if is_ours else {}
        groups, steps, prints, *texts = (_part(held, Place(at, size)) for at, size in head["buffers"])
        index = Index(groups.view(np.uint32), steps.view(np.dtype(head["steps"])), prints.view(np.uint32))
        count = int(head["members"])
        return index, array_of(count, *texts[:2]), array_of(count, *texts[2:])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidInput(
            f"The file of records cannot be read ({type(error).__name__}).",
            code="records.file",
            fix="remove it: it is made anew from the bundle or from Kafka",
        ) from error


def map_texts(file: IO[bytes], count: int, places: Sequence[Place]) -> pa.Array:
    """So many texts whose offsets and bytes lie in these places of a file."""
    file.flush()
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return array_of(count, *(_part(held, place) for place in places))


def _part(held: mmap.mmap, place: Place) -> npt.NDArray[np.uint8]:
    if place.at + place.size > len(held):
        raise ValueError("it ends too early")
    return np.frombuffer(held, dtype=np.uint8, count=place.size, offset=place.at)


def buffers_of(array: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets and bytes of binary texts; the offsets are of all the bytes, which may be more than the array has."""
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    some = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return some, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def array_of(count: int, offsets: npt.NDArray[Any], data: npt.NDArray[np.uint8]) -> pa.Array:
    """The binary texts of which these are offsets and bytes. Raises ValueError where they cannot be."""
    array = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    array.validate()
    return array
