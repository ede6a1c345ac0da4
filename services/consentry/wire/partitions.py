"""The partition of a message key by murmur2, as Java's Kafka client and murmur2_random do.

murmur2_random is librdkafka's.

murmur2 (Austin Appleby) mixes four bytes at a time into a 32-bit hash; the last one to three bytes
are mixed in at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

PARTITIONER: Final = "murmur2_random"
"""librdkafka's name of it. Its default, CRC-32, puts a member on another partition than Java."""

_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_MASK: Final = 0xFFFFFFFF
_BATCH_ROWS_MIN: Final = 24
"""From this many keys on they are hashed together; fewer are quicker one by one."""


def murmur2(key: bytes) -> int:
    """Return the unsigned 32-bit murmur2 hash of a message key's bytes, as Java clients do.

    Theirs is org.apache.kafka.common.utils.Utils.murmur2.
    """
    length = len(key)
    hashed = (_SEED ^ length) & _MASK
    whole = length & ~3
    for start in range(0, whole, 4):
        word = (int.from_bytes(key[start : start + 4], "little") * _M) & _MASK
        word = ((word ^ (word >> 24)) * _M) & _MASK
        hashed = ((hashed * _M) & _MASK) ^ word
    if length > whole:
        hashed ^= int.from_bytes(key[whole:], "little")
        hashed = (hashed * _M) & _MASK
    hashed = ((hashed ^ (hashed >> 13)) * _M) & _MASK
    return hashed ^ (hashed >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    """Return the murmur2 partition of one message key among `partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def partitions_of(keys: Sequence[bytes], partitions: int) -> npt.NDArray[np.int64]:
    """Return the murmur2 partition of each message key, in order.

    Keys of equal length are hashed together.
    """
    if len(keys) < _BATCH_ROWS_MIN:
        return np.array([partition_of(key, partitions) for key in keys], dtype=np.int64)
    result = np.empty(len(keys), dtype=np.int64)
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    for length in np.unique(lengths):
        indices = np.flatnonzero(lengths == length)
        joined = b"".join([keys[index] for index in indices.tolist()])
        table = np.frombuffer(joined, dtype=np.uint8).reshape(len(indices), int(length))
        hashes = _murmur2_columns(table) & np.uint32(0x7FFFFFFF)
        result[indices] = hashes.astype(np.int64) % partitions
    return result


def _murmur2_columns(table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return murmur2 of every row of an (n, length) array of bytes.

    uint32 arithmetic wraps around, as the hash demands.
    """
    count, length = table.shape
    m = np.uint32(_M)
    hashed = np.full(count, (_SEED ^ length) & _MASK, dtype=np.uint32)
    whole = length & ~3
    words = np.ascontiguousarray(table[:, :whole]).view("<u4")
    for column in range(whole // 4):
        word = words[:, column] * m
        word ^= word >> np.uint32(24)
        word *= m
        hashed *= m
        hashed ^= word
    if length > whole:
        for column in range(length - 1, whole - 1, -1):
            hashed ^= table[:, column].astype(np.uint32) << np.uint32(8 * (column - whole))
        hashed *= m
    hashed ^= hashed >> np.uint32(13)
    hashed *= m
    hashed ^= hashed >> np.uint32(15)
    return hashed
