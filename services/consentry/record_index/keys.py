"""Member ids side by side, and their hashes: as texts, or as the integers whose decimal text they
are.

A text that is the plain decimal form of an integer below 10**18 hashes as that integer does, so
that a column of integers finds the members without one text being made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.values import MEMBER_ID_BYTES_MAX
from consentry.wire.avro_bytes import ID_CHARACTERS

U64 = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]

DECIMAL_DIGITS_MAX: Final = 18
INTEGERS_BELOW: Final = 10**DECIMAL_DIGITS_MAX
_IS_ALLOWED: Final = np.isin(np.arange(256), list(ID_CHARACTERS))
WORD: Final = 8
_BITS: Final = (1 << 64) - 1
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, made odd (Knuth, The Art of Computer Programming, volume 3,
section 6.4).
"""
_SHIFT: Final = 29
_LOW_BITS: Final = np.array([(1 << 8 * count) - 1 for count in range(WORD + 1)], dtype=np.uint64)
_ZEROES: Final = 0x3030303030303030
_FILL: Final = np.array(
    [_ZEROES & ((1 << 8 * count) - 1) for count in range(WORD + 1)], dtype=np.uint64
)
"""So many '0' before the digits of a short number."""


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def mixed(hashes: U64, words: U64) -> U64:
    """The hashes after one more word each, in place."""
    hashes ^= words
    hashes *= _u64(_MULTIPLIER)
    hashes ^= hashes >> _u64(_SHIFT)
    return hashes


def integer_hashes(values: U64) -> U64:
    """The hashes of integers.

    One word would leave the low bits of few values in the low bits of all hashes: so two.
    """
    found = mixed(np.full(len(values), _BITS, dtype=np.uint64), values)
    return mixed(found, np.zeros(1, dtype=np.uint64))


def hash_of(key: bytes) -> int:
    """As the columns' hashes, of one text."""
    length = len(key)
    if length <= DECIMAL_DIGITS_MAX and key.isdigit() and (key[0] != 0x30 or length == 1):
        return _mixed_one(_mixed_one(_BITS, int(key)), 0)
    found = length
    for start in range(0, length, WORD):
        part = key[start : start + WORD] if start + WORD <= length or length < WORD else key[-WORD:]
        found = _mixed_one(found, int.from_bytes(part, "little"))
    return _mixed_one(found, 0)


def _mixed_one(found: int, word: int) -> int:
    found = ((found ^ word) * _MULTIPLIER) & _BITS
    return found ^ (found >> _SHIFT)


def in_hash_order(keys: Sequence[bytes]) -> list[bytes]:
    """The keys by their hashes as `Segment` takes them, and those of one hash by their bytes."""
    hashes = TextKeys.of(keys).hashes(decimals=True)
    order = np.argsort(hashes)
    hashes = hashes[order]
    ordered = [keys[place] for place in order.tolist()]
    if (hashes[1:] == hashes[:-1]).any():
        ordered.sort(key=lambda key: (hash_of(key), key))
    return ordered


class TextKeys:
    """Member ids as texts: the bytes of `data` from each of `starts` up to each of `ends`.

    Of a null both are the same: a length that no member id has.
    """

    def __init__(self, data: npt.NDArray[np.uint8], starts: Offsets, ends: Offsets) -> None:
        self.starts, self.ends, self.data = starts, ends, data
        lengths = ends - starts
        self._shortest = int(lengths.min()) if len(lengths) else WORD
        self._longest = int(lengths.max(initial=0))
        if self._shortest < WORD and not self._has_room():
            # Words are read from a text's beginning and up to its end: short ones need room on both
            # sides.
            first, last = (int(starts.min()), int(ends.max())) if len(starts) else (0, 0)
            room = np.zeros(WORD, np.uint8)
            self.data = np.concatenate([room, data[first:last], room])
            self.starts, self.ends = starts - first + WORD, ends - first + WORD
        self.words = np.ndarray(
            (max(len(self.data) - WORD + 1, 0),), "<u8", self.data, strides=(1,)
        )
        """The eight bytes from each byte on."""

    def _has_room(self) -> bool:
        return (
            int(self.ends.min(initial=WORD)) >= WORD
            and int(self.starts.max(initial=0)) <= len(self.data) - WORD
        )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Offsets:
        """The length of each, in bytes."""
        return self.ends - self.starts

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> TextKeys:
        """The keys of a list."""
        ends = np.cumsum(np.fromiter(map(len, keys), dtype=np.intp, count=len(keys)))
        starts = np.concatenate([[0], ends[:-1]]) if len(keys) else ends
        return cls(np.frombuffer(b"".join(keys), dtype=np.uint8), starts, ends)

    @classmethod
    def of_arrow(cls, array: pa.Array) -> TextKeys:
        """The keys of an array of strings or bytes, with offsets of 32 or 64 bits; nothing is
        copied but for nulls.
        """
        wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        _, buffer, data = array.buffers()
        if buffer is None or len(array) == 0:
            return cls(
                np.zeros(0, np.uint8), np.zeros(len(array), np.intp), np.zeros(len(array), np.intp)
            )
        offsets: Offsets = np.frombuffer(buffer, dtype=np.int64 if wide else np.int32)
        offsets = offsets[array.offset : array.offset + len(array) + 1]
        held = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, np.uint8)
        starts, ends = offsets[:-1], offsets[1:]
        if array.null_count:
            ends = np.where(array.is_null().to_numpy(zero_copy_only=False), starts, ends)
        return cls(held, starts, ends)

    def to_list(self) -> list[bytes]:
        """Each as bytes."""
        held = self.data.tobytes()
        return [
            held[start:end]
            for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        ]

    def taken(self, rows: Offsets) -> TextKeys:
        """Some of the keys."""
        return TextKeys(self.data, self.starts[rows], self.ends[rows])

    def valid(self) -> Mask:
        """Which of them are member ids: 1 to 64 letters, digits, ':', '_' or '-'."""
        lengths = self.lengths
        found: Mask = (lengths > 0) & (lengths <= MEMBER_ID_BYTES_MAX)
        if not len(self):
            return found
        first, last = int(self.starts.min()), int(self.ends.max())
        held = self.data[first:last]
        if held.tobytes().translate(None, ID_CHARACTERS):
            # Some byte has no place in an id: only now is it looked for row by row.
            bad = np.cumsum(np.concatenate([[False], ~_IS_ALLOWED[held]]), dtype=np.intp)
            found &= bad[self.ends - first] == bad[self.starts - first]
        return found

    def short_numbers(self) -> U64 | None:
        """Each as a number other than 0: its bytes, and one more than its length in the highest;

        None: some are longer.

        No two texts of up to seven bytes have the same.
        """
        if self._longest >= WORD:
            return None
        if self._is_dense:
            at = np.ndarray(
                (len(self),), "<u8", self.data, offset=int(self.starts[0]), strides=(self._longest,)
            )
            dense: U64 = at & _LOW_BITS[self._longest]
            dense |= _u64((self._longest + 1) << 56)
            return dense
        lengths = self.lengths
        found = _words(self, self.starts, lengths, 0)
        found |= (lengths + 1).astype(np.uint64) << _u64(56)
        return found

    def hashes(self, *, decimals: bool) -> U64:
        """The hash of each; with `decimals` decimal texts hash as their integers, without they hash
        as any text.
        """
        lengths = self.lengths
        found = lengths.astype(np.uint64)
        for start in range(0, self._longest, WORD):
            if self._shortest > start:
                mixed(found, self._all_words(start, lengths))
            else:
                rows = np.flatnonzero(lengths > start)
                found[rows] = mixed(
                    found[rows], _words(self, self.starts[rows], lengths[rows], start)
                )
        mixed(found, np.zeros(1, dtype=np.uint64))
        if decimals and len(self):
            values, is_decimal = self.decimals()
            rows = np.flatnonzero(is_decimal)
            found[rows] = integer_hashes(values[rows])
        return found

    def _all_words(self, start: int, lengths: Offsets) -> U64:
        """As `_words`, of all of them."""
        if self._shortest < WORD or not self._is_dense:
            return _words(self, self.starts, lengths, start)
        # Texts of one length behind one another: a walk by that length, instead of a jump to each.
        at = int(self.starts[0]) + min(start, self._longest - WORD)
        return np.ndarray(
            (len(self),), "<u8", self.data, offset=at, strides=(self._longest,)
        ).copy()

    @cached_property
    def _is_dense(self) -> bool:
        """Whether all texts have one length and lie behind one another."""
        is_even = len(self) > 0 and self._shortest == self._longest
        return is_even and bool((self.starts[1:] == self.ends[:-1]).all())

    def decimals(self) -> tuple[U64, Mask]:
        """The integer that each text is the plain decimal form of, and whether it is one below
        10**18.
        """
        values = np.zeros(len(self), dtype=np.uint64)
        if not len(self.data):
            return values, np.zeros(len(self), dtype=np.bool_)
        lengths = self.lengths
        first = self.data[np.minimum(self.starts, len(self.data) - 1)]
        is_decimal: Mask = (first >= 0x30) & (first <= 0x39) & (lengths > 0)
        is_decimal &= (lengths <= DECIMAL_DIGITS_MAX) & ((first != 0x30) | (lengths == 1))
        rows = np.flatnonzero(is_decimal)
        begin, left, scale = self.starts[rows].astype(np.intp), lengths[rows].astype(np.intp), 1
        good = np.ones(len(rows), dtype=np.bool_)
        while int(left.max(initial=0)) > 0:
            number, is_number = _eight_digits(self._last_digits(begin, left))
            values[rows] += number * _u64(scale)
            good &= is_number
            left = np.maximum(left - WORD, 0)
            scale *= 10**WORD
        is_decimal[rows] = good
        return values, is_decimal

    @cached_property
    def all_decimals(self) -> tuple[U64, Mask | None]:
        """As `decimals`, kept: eight bytes a member, which only those take who ask by integers.

        None: all are.
        """
        values, is_decimal = self.decimals()
        return values, None if is_decimal.all() else is_decimal

    def _last_digits(self, begin: Offsets, left: Offsets) -> U64:
        """The last eight digits of those that are left of each number, with '0' before where they
        are fewer.
        """
        missing = WORD - np.minimum(left, WORD)
        whole = missing == 0
        word = self.words[
            np.where(whole, begin + left - WORD, np.minimum(begin, len(self.words) - 1))
        ]
        moved = np.where(whole, word, word << (missing * 8 % 64).astype(np.uint64))
        found: U64 = np.where(missing == WORD, _u64(_ZEROES), moved | _FILL[missing])
        return found

    def same(self, rows: Offsets, others: TextKeys, places: Offsets) -> Mask:
        """Whether the keys of these rows are those at the places of the others, pair by pair."""
        here, there = self.starts[rows], others.starts[places]
        length = self.ends[rows] - here
        found: Mask = length == others.ends[places] - there
        if not found.all():
            some = np.flatnonzero(found)
            found[some] = self.same(rows[some], others, places[some])
            return found
        shortest = int(length.min()) if len(length) else WORD
        for start in range(0, int(length.max(initial=0)), WORD):
            if shortest > start:
                at = _moved(length, start, shortest)
                found &= _words_at(self, here, length, at) == _words_at(others, there, length, at)
            else:
                some = np.flatnonzero(length > start)
                mine = _words(self, here[some], length[some], start)
                found[some] &= mine == _words(others, there[some], length[some], start)
        return found


def _moved(length: Offsets, start: int, shortest: int) -> Offsets | int:
    """How far behind a text's beginning its word of `start` lies: the last one lies wholly inside,
    if it can.
    """
    if shortest >= start + WORD:
        return start
    return np.minimum(start, length - WORD)  # negative of texts that have no whole word


def _words_at(keys: TextKeys, begin: Offsets, length: Offsets, at: Offsets | int) -> U64:
    if isinstance(at, int) or int(at.min(initial=0)) >= 0:
        whole: U64 = keys.words[begin + at]
        return whole
    found: U64 = keys.words[begin + np.maximum(at, 0)]
    short = at < 0
    found[short] &= _LOW_BITS[length[short]]
    return found


def _words(keys: TextKeys, begin: Offsets, length: Offsets, start: int) -> U64:
    """The eight bytes from `start` on, or the last eight where fewer are left; of shorter texts all
    bytes.
    """
    return _words_at(
        keys, begin, length, _moved(length, start, int(length.min()) if len(length) else WORD)
    )


def _eight_digits(words: U64) -> tuple[U64, Mask]:
    """The number that eight ASCII digits write, the first in the lowest byte; and whether they are
    digits.
    """
    high = _u64(0x8080808080808080)
    is_number: Mask = ((words + _u64(0x4646464646464646)) | (words - _u64(_ZEROES))) & high == 0
    words = words - _u64(_ZEROES)
    words = words * _u64(10) + (words >> _u64(8))
    low = (words & _u64(0x000000FF000000FF)) * _u64(0x000F424000000064)
    rest = ((words >> _u64(16)) & _u64(0x000000FF000000FF)) * _u64(0x0000271000000001)
    return (low + rest) >> _u64(32), is_number


def numbers_of_views(array: pa.Array) -> U64 | None:
    """As `TextKeys.short_numbers`, of string views: each holds its length in four bytes and a short
    text behind it.

    What stands for a null is any number. Source: Arrow Columnar Format, "Variable-size Binary View
    Layout".
    """
    _, buffer, *_ = array.buffers()
    if buffer is None:
        return np.zeros(0, dtype=np.uint64)
    views = np.frombuffer(buffer, dtype="<u4")[
        4 * array.offset : 4 * (array.offset + len(array))
    ].reshape(-1, 4)
    lengths = views[:, 0]
    if array.null_count:
        lengths = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    if int(lengths.max(initial=0)) >= WORD:
        return None
    found = views[:, 2].astype(np.uint64) << _u64(32)
    found |= views[:, 1]
    found &= _LOW_BITS[
        lengths
    ]  # what stands behind a text should be zero, and not everybody sees to it
    found |= (lengths.astype(np.uint64) + _u64(1)) << _u64(56)
    return found


class IntegerKeys:
    """Member ids as the integers whose decimal text they are, each from 0 to below 10**18."""

    def __init__(self, values: U64) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_list(self) -> list[bytes]:
        """Each as the bytes of its decimal text."""
        return [b"%d" % value for value in self.values.tolist()]

    def taken(self, rows: Offsets) -> IntegerKeys:
        """Some of the keys."""
        return IntegerKeys(self.values[rows])

    def hashes(self, *, decimals: bool) -> U64:
        """The hash of each.

        `decimals` says whether any text that is one can be found; else no hash matters.
        """
        return integer_hashes(self.values)

    def same(self, rows: Offsets, others: TextKeys, places: Offsets) -> Mask:
        """Whether the keys of these rows are those at the places of the others, pair by pair."""
        values, is_decimal = others.all_decimals
        found: Mask = values[places] == self.values[rows]
        return found if is_decimal is None else found & is_decimal[places]


Keys = TextKeys | IntegerKeys
