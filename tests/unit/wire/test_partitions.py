"""Partitions: the same hash as Kafka's Java client, one by one and many at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentry.wire.partitions import murmur2, partition_of, partitions_of

KNOWN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""From Kafka's own tests of org.apache.kafka.common.utils.Utils, as Java's signed integers."""


@pytest.mark.parametrize("key", KNOWN)
def test_the_hash_is_the_one_of_the_java_client(key: bytes) -> None:
    """A member whose producer and worker disagree would have two histories, and one of them lacks
    the opt-out.
    """
    assert murmur2(key) == KNOWN[key] % 2**32


@given(st.lists(st.binary(max_size=70), min_size=1, max_size=80), st.integers(1, 100))
def test_hashing_many_keys_at_once_gives_what_hashing_each_gives(
    keys: list[bytes], partitions: int
) -> None:
    """The worker checks whole batches, the trainer single members: both must mean the same
    partition.
    """
    assert partitions_of(keys, partitions).tolist() == [
        partition_of(key, partitions) for key in keys
    ]


@given(st.binary(max_size=70))
def test_a_partition_is_always_one_that_exists(key: bytes) -> None:
    """Java takes the sign bit off instead of the absolute value; half of all members would move
    otherwise.
    """
    assert 0 <= partition_of(key, 8) < 8
    assert partition_of(key, 8) == (murmur2(key) & 0x7FFFFFFF) % 8
