"""Avro's numbers and lengths as bytes, written by hand for those who read or write every event.

Avro writes an int or a long in two steps (Avro specification, "Binary Encoding"):

- zig-zag: 0, -1, 1, -2, 2 … become 0, 1, 2, 3, 4 …, so that a small number of either sign is small;
- varint: seven bits a byte, least significant first; every byte but the last has its high bit set.

A string is its length as a long, then its UTF-8 bytes. So 150 is zig-zag 300, which is 10 0101100
in binary, and is written as AC 02:

    AC = 1 0101100    the low seven bits, and "one more byte follows"
    02 = 0 0000010    the next seven, and the end

Times are microseconds from 2^48 up to 2^55, 1979 to 3111: their zig-zag has 50 to 56 bits, so that
each takes exactly eight bytes, the first seven with the high bit set and the eighth without.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

INSTANT_LENGTH: Final = 8

ID_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_-"
"""The characters of a member id, as MEMBER_ID_PATTERN has them.

`key.translate(None, ID_CHARACTERS)` is empty for an id: faster than a regular expression.
"""

HIGH_BITS: Final = 0x8080808080808080
INSTANT_HIGH_BITS: Final = 0x0080808080808080
"""The high bits of an instant, read as a little-endian number: seven bytes go on and one ends."""
_UPPERS_MAX: Final = 4096


def varint_bytes(number: int) -> bytes:
    """Return a number of 0 or more as the bytes of an Avro varint."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the Avro varint at `position` of some bytes, and the position after it.

    Raises IndexError where the bytes end, or where there are more than ten.
    """
    shift = number = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise IndexError("varint longer than ten bytes")


def long_bytes(value: int) -> bytes:
    """Return the bytes of an Avro int or long of 64 bits."""
    zigzag = (value << 1) ^ (value >> 63)
    if zigzag < 0x80:
        return bytes((zigzag,))
    return varint_bytes(zigzag)


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """Return the Avro long at `position` of some bytes, and the position after it.

    Raises IndexError as `read_varint` does.
    """
    zigzag = data[position]
    position += 1
    if zigzag >= 0x80:
        zigzag, position = read_varint(data, position - 1)
    return (zigzag >> 1) ^ -(zigzag & 1), position


LONGS: Final = [long_bytes(value) for value in range(65)]
"""By value, the longs from 0 to 64: up to 63 one byte each. Also the lengths before short strings.
"""


def read_instant(data: bytes, position: int) -> tuple[int, int]:
    """Return the Avro long at `position`, and the position after it; quickest for a time.

    The seven-bit groups of eight bytes are joined pairwise, in three steps instead of eight: seven
    and seven bits to fourteen, fourteen and fourteen to 28, 28 and 28 to 56.
    """
    raw = int.from_bytes(data[position : position + 8], "little")
    if raw & HIGH_BITS != INSTANT_HIGH_BITS:
        return read_long(data, position)
    raw &= 0x7F7F7F7F7F7F7F7F
    raw = (raw & 0x007F007F007F007F) | ((raw & 0x7F007F007F007F00) >> 1)
    raw = (raw & 0x00003FFF00003FFF) | ((raw & 0x3FFF00003FFF0000) >> 2)
    raw = (raw & 0x000000000FFFFFFF) | ((raw & 0x0FFFFFFF00000000) >> 4)
    return (raw >> 1) ^ -(raw & 1), position + 8


class InstantWriter:
    """Writes times as Avro bytes; remembers the upper halves, of which one lasts 134 seconds.

    Of the 56 bits of an instant's zig-zag the lower 28 change with every event: they come from a
    table by fourteen bits. Threads may share it.
    """

    def __init__(self) -> None:
        self._uppers: dict[int, bytes] = {}
        self._pairs = _varint_pairs()

    def write(self, micros: int) -> bytes:
        """Return the eight Avro bytes of a time of [2^48, 2^55) microseconds."""
        upper = micros >> 27
        last_four = self._uppers.get(upper)
        if last_four is None:
            if len(self._uppers) >= _UPPERS_MAX:
                self._uppers.clear()
            last_four = bytes(
                (
                    upper & 0x7F | 0x80,
                    upper >> 7 & 0x7F | 0x80,
                    upper >> 14 & 0x7F | 0x80,
                    upper >> 21,
                )
            )
            self._uppers[upper] = last_four
        return self._pairs[micros << 1 & 0x3FFF] + self._pairs[micros >> 13 & 0x3FFF] + last_four


@cache
def _varint_pairs() -> list[bytes]:
    """Return by fourteen bits two bytes of a varint that goes on.

    They take half a megabyte, and are made when first needed.
    """
    return [bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(1 << 14)]


def are_instants(table: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.bool_]:
    """Return, for each row of Avro bytes, whether the eight at `start` are one positive long.

    It is written in exactly eight bytes: the last one is not 0, as that would be over-long.
    """
    eight = table[:, start : start + INSTANT_LENGTH]
    last = eight[:, 7]
    good: npt.NDArray[np.bool_] = np.all(eight[:, :7] >= 0x80, axis=1)
    good &= (last < 0x80) & (last > 0)
    good &= eight[:, 0] & 1 == 0
    return good


def instants_at(table: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.int64]:
    """Return, for each row of Avro bytes, the time at `start`, in microseconds.

    It has a meaning only where `are_instants`.
    """
    zigzag = np.zeros(len(table), dtype=np.int64)
    for byte in range(INSTANT_LENGTH):
        zigzag |= (table[:, start + byte].astype(np.int64) & 0x7F) << (7 * byte)
    return zigzag >> 1
