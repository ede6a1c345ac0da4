"""Sets of members with integer ids, as portable 64-bit Roaring: Java, Rust, Go and C read it too.

The layout is the 64-bit extension of https://github.com/RoaringBitmap/RoaringFormatSpec. Needs the
extra `bundler`, which is imported only where sets are written or read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from consentry.bundles.errors import BundleRefused

_INTEGER: Final = re.compile(rb"0|[1-9][0-9]{0,18}", re.ASCII)
INTEGERS_BELOW: Final = 1 << 63


def integer_of(member: bytes) -> int | None:
    """Return the integer with this plain decimal text, below 2**63; None for any other id."""
    if _INTEGER.fullmatch(member) is None:
        return None
    value = int(member)
    return value if value < INTEGERS_BELOW else None


def _bit_map(integers: Iterable[int] = ()) -> Any:
    from pyroaring import BitMap64  # noqa: PLC0415 - a trainer that reads no sets goes without the package

    return BitMap64(integers)


def write_set(integers: Iterable[int]) -> bytes:
    """Return the portable bytes of a set."""
    bit_map = _bit_map(integers)
    bit_map.run_optimize()
    return bytes(bit_map.serialize())


def read_set(content: bytes) -> Any:
    """Return the BitMap64 of portable bytes. Raises BundleRefused."""
    try:
        return type(_bit_map()).deserialize(content)
    except (IndexError, MemoryError, ValueError) as error:
        raise BundleRefused("malformed", "A set of the bundle is not 64-bit Roaring.") from error
