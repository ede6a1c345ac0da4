"""Which partition a key belongs to: murmur2, as Kafka's Java client and
`partitioner=murmur2_random` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

PARTITIONER: Final = "murmur2_random"
"""librdkafka's name of it; its default (CRC-32) would put a member on another partition than a Java
producer does.
"""

_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_MASK: Final = 0xFFFFFFFF
_SMALL_BATCH: Final = 24


def murmur2(key: bytes) -> int:
    """The 32-bit hash of `key`, as org.apache.kafka.common.utils.Utils.murmur2 computes it
    (unsigned).
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
    """The partition of one key among `partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def partitions_of(keys: Sequence[bytes], partitions: int) -> npt.NDArray[np.int64]:
    """The partition of each key, in order; keys of equal length are hashed together."""
    if len(keys) < _SMALL_BATCH:
        return np.array([partition_of(key, partitions) for key in keys], dtype=np.int64)
    result = np.empty(len(keys), dtype=np.int64)
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        joined = b"".join([keys[place] for place in places.tolist()])
        table = np.frombuffer(joined, dtype=np.uint8).reshape(len(places), int(length))
        result[places] = (_murmur2_columns(table) & np.uint32(0x7FFFFFFF)).astype(
            np.int64
        ) % partitions
    return result


def _murmur2_columns(table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """murmur2 of every row of an (n, length) array of bytes; uint32 arithmetic wraps as the hash
    wants.
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
        for place in range(length - 1, whole - 1, -1):
            hashed ^= table[:, place].astype(np.uint32) << np.uint32(8 * (place - whole))
        hashed *= m
    hashed ^= hashed >> np.uint32(13)
    hashed *= m
    hashed ^= hashed >> np.uint32(15)
    return hashed
