"""The file of a record index segment: a head with the place of each array, then the arrays.

They are as they are in memory.

The head is 1024 bytes: a magic number and JSON, filled up with spaces. A file is for processes of
one machine and one version of this package; a bundle is for others.
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
"""Buckets whose beginnings are one number of four bytes and a step from it for each."""


class FileSpan(NamedTuple):
    """The place of an array in a record index segment's file: first byte, and size in bytes."""

    at: int
    size: int


class Index(NamedTuple):
    """The index of one segment of records in its file; see segment.py.

    `groups` has the beginning of each 16th bucket, `steps` how far behind that each bucket begins,
    `prints` 32 bits of each member's hash.
    """

    groups: npt.NDArray[np.uint32]
    steps: npt.NDArray[np.unsignedinteger[Any]]
    prints: npt.NDArray[np.uint32]


def write_buffers(file: IO[bytes], buffers: Sequence[npt.NDArray[Any]]) -> list[FileSpan]:
    """Write arrays of a record index segment to its file; return their places.

    They begin at the file's position, each at a multiple of 64 bytes.
    """
    spans: list[FileSpan] = []
    for buffer in buffers:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        spans.append(FileSpan(file.tell(), buffer.nbytes))
        file.write(np.ascontiguousarray(buffer).data)
    return spans


def write_segment(file: IO[bytes], index: Index, ids: pa.Array, records: pa.Array) -> None:
    """Write all parts of a record index segment to an empty file."""
    file.seek(HEAD_BYTES)
    offsets, data = buffers_of(records)
    [records_span] = write_buffers(file, [data])
    write_rest(file, index, ids, offsets, records_span)


def write_rest(
    file: IO[bytes], index: Index, ids: pa.Array, offsets: npt.NDArray[np.int32], records: FileSpan
) -> None:
    """Write a record index segment to its file, but for the records' bytes, already there.

    `offsets` are theirs.
    """
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
    """Return the digest of all but the records' bytes: each record has a checksum of its own."""
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer.nbytes.to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(buffer).data)
    return digest.hexdigest()


def map_segment(file: IO[bytes], *, is_own: bool = False) -> tuple[Index, pa.Array, pa.Array]:
    """Return index, ids and records of a segment's file, mapped into memory.

    Pages are read when needed, and the file may be closed.

    All but the records is read once and compared with its digest: a member whom a damaged index
    does not find is nobody, and allowed. A file of one's own (`is_own`), written just now and
    without a name, is not compared. Raises InvalidInput.
    """
    try:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        has_magic = data[: len(_MAGIC)] == _MAGIC
        head = json.loads(data[len(_MAGIC) : HEAD_BYTES]) if has_magic else {}
        if head.get("format") != _FORMAT or head["steps"] not in _STEPS:
            raise ValueError("it is of another format")  # noqa: TRY301 - reported below, as all that may be wrong
        *parts, record_data = [_part(data, FileSpan(at, size)) for at, size in head["buffers"]]
        if not is_own and _digest(parts) != head["digest"]:
            raise ValueError("it was altered")  # noqa: TRY301 - reported below
        groups, steps, prints, id_offsets, id_data, record_offsets = parts
        index = Index(
            groups.view(np.uint32), steps.view(np.dtype(head["steps"])), prints.view(np.uint32)
        )
        count: int = head["members"]
        _check_index(index, count)
        ids = array_of(count, id_offsets, id_data)
        records = array_of(count, record_offsets, record_data)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InvalidInput(
            f"The file of records cannot be read ({type(error).__name__}).",
            code="records.file",
            fix="remove it: it is made anew from the bundle or from Kafka",
        ) from error
    return index, ids, records


def _check_index(index: Index, count: int) -> None:
    """Raise ValueError where an index is not one of `count` members."""
    buckets = 1 << bucket_bits_of(count)
    sizes = (len(index.groups), len(index.steps), len(index.prints))
    if sizes != (-(-(buckets + 1) // GROUP), buckets + 1, count):
        raise ValueError("its parts do not fit together")
    if int(index.groups[-1]) + int(index.steps[-1]) != count:
        raise ValueError("its index is of another number of members")


def bucket_bits_of(count: int) -> int:
    """Return how many bits of a hash name a bucket in a record index segment.

    It is for `count` members.
    """
    return max(count, 1).bit_length()


def map_texts(file: IO[bytes], count: int, spans: Sequence[FileSpan]) -> pa.Array:
    """Return `count` texts whose offsets and bytes lie at these places of a segment's file."""
    file.flush()
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return array_of(count, *(_part(data, span) for span in spans))


def _part(data: mmap.mmap, span: FileSpan) -> npt.NDArray[np.uint8]:
    if not 0 <= span.size <= len(data) - span.at <= len(data):
        raise ValueError("it ends too early")
    return np.frombuffer(data, dtype=np.uint8, count=span.size, offset=span.at)


def buffers_of(array: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return the offsets and bytes of binary texts, to be written to a segment's file.

    The offsets are into all the bytes, which may be more than the array has.
    """
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    own_offsets = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return own_offsets, text


def array_of(count: int, offsets: npt.NDArray[Any], data: npt.NDArray[np.uint8]) -> pa.Array:
    """Return the binary texts of a segment's file with these offsets and bytes.

    Raises ValueError if they misfit.
    """
    array = pa.Array.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    array.validate()
    return array
