"""Sets of members in a bundle, as portable 64-bit Roaring: Java, Rust, Go and C read it too.

Such members have integer ids.

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
    """Return the integer of a member id, for a bundle's sets of members; None for other ids.

    The id is its plain decimal text, below 2**63.
    """
    if _INTEGER.fullmatch(member) is None:
        return None
    value = int(member)
    if value >= INTEGERS_BELOW:
        return None
    return value


def _bit_map(integers: Iterable[int] = ()) -> Any:
    from pyroaring import BitMap64  # noqa: PLC0415 - a trainer that reads no sets goes without the package

    return BitMap64(integers)


def write_set(integers: Iterable[int]) -> bytes:
    """Return a bundle's set of members with integer ids as portable Roaring bytes."""
    bit_map = _bit_map(integers)
    bit_map.run_optimize()
    return bytes(bit_map.serialize())


def read_set(content: bytes) -> Any:
    """Return a bundle's set of members from its Roaring bytes, as a BitMap64.

    Raises BundleRefused.
    """
    try:
        return type(_bit_map()).deserialize(content)
    except (IndexError, MemoryError, ValueError) as error:
        raise BundleRefused("malformed", "A set of the bundle is not 64-bit Roaring.") from error
