"""Sets of integer ids are read in Java, Rust, Go and C by the published layout, and by nothing that
is told here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentry.bundles import BundleRefused
from consentry.bundles.roaring import integer_of, read_set, write_set

GOLDEN_ARRAYS = bytes.fromhex(
    "0200000000000000"  # two 32-bit bitmaps
    "00000000"  # the first is of the high 32 bits 0
    "3a30000001000000"  # cookie 12346: no runs; one container
    "0000"  # of the high 16 bits 0
    "0100"  # with two members
    "10000000"  # which begin at byte 16 of this bitmap
    "05000900"
    "01000000"  # the second is of the high 32 bits 1
    "3a30000001000000"
    "0000"
    "0000"
    "10000000"
    "0700"
)
GOLDEN_RUN = bytes.fromhex(
    "0100000000000000"
    "00000000"
    "3b300000"  # cookie 12347 with one container
    "01"  # which is a run container
    "0000e703"  # of the high 16 bits 0, with 1000 members
    "0100"  # one run
    "0a00e703"  # from 10, 999 more
)


def spec_reader(content: bytes) -> Iterator[int]:
    """The members of a portable 64-bit set, by https://github.com/RoaringBitmap/RoaringFormatSpec,
    read naively.
    """
    (bitmaps,) = struct.unpack_from("<Q", content)
    at = 8
    for _ in range(bitmaps):
        (high,) = struct.unpack_from("<I", content, at)
        values, size = _bitmap(content[at + 4 :])
        yield from ((high << 32) | value for value in values)
        at += 4 + size
    assert at == len(content)


def _bitmap(content: bytes) -> tuple[list[int], int]:
    (cookie,) = struct.unpack_from("<I", content)
    at, runs = 4, b""
    if cookie & 0xFFFF == 12347:
        count = (cookie >> 16) + 1
        runs = content[at : at + (count + 7) // 8]
        at += len(runs)
    else:
        assert cookie == 12346
        (count,) = struct.unpack_from("<I", content, at)
        at += 4
    headers = [struct.unpack_from("<HH", content, at + 4 * number) for number in range(count)]
    at += 4 * count
    if not runs or count >= 4:
        at += 4 * count
    values: list[int] = []
    for number, (high, less_one) in enumerate(headers):
        if runs and runs[number // 8] >> number % 8 & 1:
            (pairs,) = struct.unpack_from("<H", content, at)
            at += 2
            for _ in range(pairs):
                start, more = struct.unpack_from("<HH", content, at)
                values += [high << 16 | low for low in range(start, start + more + 1)]
                at += 4
        elif less_one + 1 <= 4096:
            found = struct.unpack_from(f"<{less_one + 1}H", content, at)
            values += [high << 16 | low for low in found]
            at += 2 * (less_one + 1)
        else:
            bits = int.from_bytes(content[at : at + 8192], "little")
            values += [high << 16 | low for low in range(1 << 16) if bits >> low & 1]
            at += 8192
    return values, at


def test_the_bytes_are_those_of_the_published_layout() -> None:
    """The set is read by another program in another language, years from now."""
    assert write_set([9, 5, (1 << 32) + 7]) == GOLDEN_ARRAYS
    assert write_set(range(10, 1010)) == GOLDEN_RUN
    assert write_set([]) == bytes(8)


@given(
    st.sets(st.integers(0, (1 << 63) - 1) | st.integers(0, 1 << 18), max_size=60),
    st.lists(
        st.tuples(st.integers(0, 1 << 40), st.integers(1, 9000), st.integers(1, 3)), max_size=2
    ),
)
def test_whoever_reads_by_the_published_layout_finds_exactly_the_members(
    some: set[int], ranges: list[tuple[int, int, int]]
) -> None:
    """One member too few is trained on."""
    members = some | {
        value for start, size, step in ranges for value in range(start, start + size, step)
    }
    content = write_set(members)
    assert list(spec_reader(content)) == sorted(members)
    assert set(read_set(content)) == members


def test_only_plain_decimal_ids_are_integers() -> None:
    """Two spellings of one number would be two members in the records and one in the set."""
    assert integer_of(b"0") == 0
    assert integer_of(b"9223372036854775807") == (1 << 63) - 1
    for other in (
        b"9223372036854775808",
        b"007",
        b"-1",
        b"1_0",
        b"m:1",
        b"",
        b"00",
        b"1 ",
        b"\xd9\xa1",
        b"9" * 64,
    ):
        assert integer_of(other) is None, other


def test_bytes_that_are_no_set_are_refused() -> None:
    """A library's crash would be a trainer's crash."""
    for content in (b"", b"\1", b"\1" + bytes(7), GOLDEN_ARRAYS[:-1]):
        with pytest.raises(BundleRefused, match=r"bundle\.malformed"):
            read_set(content)
