"""Keys of the record index: member ids side by side, as texts or integers, and their hashes.

Integers stand for the same decimal text.

A text is hashed word by word, eight bytes each, read as a little-endian number; the hash begins as
the text's length and ends with a word of 0. One word is mixed in by XOR, by a multiplication that
spreads low bits upwards, and by a shift that brings high bits down again. For `anna`:

    hash = 4                                                  the length
    hash = (hash ^ 0x616e6e61) * 0x9E3779B97F4A7C15           "anna", and zeroes to eight bytes
    hash = hash ^ (hash >> 29)             0xd920a5e0b6bcd57a
    the same with the word 0               0x8635e39d818787cf

The last word of a longer text is its last eight bytes, so that some bytes count twice: that costs
less than to cut a word short, and the length says how many there are.

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
_IS_ID_CHARACTER: Final = np.isin(np.arange(256), list(ID_CHARACTERS))
WORD: Final = 8
"""Bytes of a word."""
_BITS: Final = (1 << 64) - 1
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, made odd (Knuth, The Art of Computer Programming, volume 3,
section 6.4).
"""
_SHIFT: Final = 29
_LOW_BITS: Final = np.array([(1 << 8 * count) - 1 for count in range(WORD + 1)], dtype=np.uint64)
"""By a number of bytes, the bits of that many low bytes."""
_ZEROES: Final = 0x3030303030303030
"""Eight times the character '0'."""
_FILL: Final = np.array(
    [_ZEROES & ((1 << 8 * count) - 1) for count in range(WORD + 1)], dtype=np.uint64
)
"""By a number of missing digits, that many '0' before the digits of a short number."""


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def mix(hashes: U64, words: U64) -> U64:
    """Mix one more word into each hash of the record index's keys, in place; return them."""
    hashes ^= words
    hashes *= _u64(_MULTIPLIER)
    hashes ^= hashes >> _u64(_SHIFT)
    return hashes


def integer_hashes(values: U64) -> U64:
    """Return the hashes that integers have as keys of the record index.

    One word would leave the low bits of few values in the low bits of all hashes: so two.
    """
    hashes = mix(np.full(len(values), _BITS, dtype=np.uint64), values)
    return mix(hashes, np.zeros(1, dtype=np.uint64))


def hash_of(key: bytes) -> int:
    """Return the hash of one text as a key of the record index, as columns of keys have it."""
    length = len(key)
    if length <= DECIMAL_DIGITS_MAX and key.isdigit() and (key[0] != 0x30 or length == 1):
        return _mix_one(_mix_one(_BITS, int(key)), 0)
    result = length
    for start in range(0, length, WORD):
        is_last_of_many = start + WORD > length >= WORD
        word = key[-WORD:] if is_last_of_many else key[start : start + WORD]
        result = _mix_one(result, int.from_bytes(word, "little"))
    return _mix_one(result, 0)


def _mix_one(before: int, word: int) -> int:
    product = ((before ^ word) * _MULTIPLIER) & _BITS
    return product ^ (product >> _SHIFT)


def in_hash_order(keys: Sequence[bytes]) -> list[bytes]:
    """Return keys in the order of a segment of the record index.

    It is by their hashes, and for those of one hash by their bytes.
    """
    hashes = TextKeys.of(keys).hashes(decimals=True)
    order = np.argsort(hashes)
    hashes = hashes[order]
    ordered = [keys[index] for index in order.tolist()]
    if (hashes[1:] == hashes[:-1]).any():
        ordered.sort(key=lambda key: (hash_of(key), key))
    return ordered


class TextKeys:
    """Member ids as text keys of the record index, side by side in one array of bytes.

    They are the bytes of `data` from each of `starts` up to each of `ends`.

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
        # One word for each byte, without a copy: a stride of 1 lets the words overlap.
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
        """The length of each key, in bytes."""
        return self.ends - self.starts

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> TextKeys:
        """Return the text keys of a list of member ids."""
        ends = np.cumsum(np.fromiter(map(len, keys), dtype=np.intp, count=len(keys)))
        starts = np.concatenate([[0], ends[:-1]]) if len(keys) else ends
        return cls(np.frombuffer(b"".join(keys), dtype=np.uint8), starts, ends)

    @classmethod
    def of_arrow(cls, array: pa.Array) -> TextKeys:
        """Return the text keys of an array of strings or bytes, with offsets of 32 or 64 bits.

        Nothing is copied but for nulls.
        """
        is_large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        _, buffer, data = array.buffers()
        if buffer is None or len(array) == 0:
            nothing = np.zeros(len(array), np.intp)
            return cls(np.zeros(0, np.uint8), nothing, nothing.copy())
        offsets: Offsets = np.frombuffer(buffer, dtype=np.int64 if is_large else np.int32)
        offsets = offsets[array.offset : array.offset + len(array) + 1]
        text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
        starts, ends = offsets[:-1], offsets[1:]
        if array.null_count:
            is_null = array.is_null().to_numpy(zero_copy_only=False)
            ends = np.where(is_null, starts, ends)
        return cls(text, starts, ends)

    def to_list(self) -> list[bytes]:
        """Return each key as bytes."""
        text = self.data.tobytes()
        spans = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        return [text[start:end] for start, end in spans]

    def take(self, rows: Offsets) -> TextKeys:
        """Return the keys of some rows."""
        return TextKeys(self.data, self.starts[rows], self.ends[rows])

    def valid(self) -> Mask:
        """Return which keys are member ids: 1 to 64 letters, digits, ':', '_' or '-'."""
        lengths = self.lengths
        is_id: Mask = (lengths > 0) & (lengths <= MEMBER_ID_BYTES_MAX)
        if not len(self):
            return is_id
        first, last = int(self.starts.min()), int(self.ends.max())
        text = self.data[first:last]
        if text.tobytes().translate(None, ID_CHARACTERS):
            # Some byte has no place in an id: only now each row is searched. With a running count
            # of bad bytes, a row has none where the count is the same at its start and its end.
            bad = np.cumsum(np.concatenate([[False], ~_IS_ID_CHARACTER[text]]), dtype=np.intp)
            is_id &= bad[self.ends - first] == bad[self.starts - first]
        return is_id

    def short_numbers(self) -> U64 | None:
        """Return each key's bytes as a number other than 0; None if some exceed seven bytes.

        The low bytes are those of the text, the highest one more than its length: no two texts have
        the same number. `bo` is 0x03000000_00006f62.
        """
        if self._longest >= WORD:
            return None
        if self._is_dense:
            words = np.ndarray(
                (len(self),), "<u8", self.data, offset=int(self.starts[0]), strides=(self._longest,)
            )
            dense: U64 = words & _LOW_BITS[self._longest]
            dense |= _u64((self._longest + 1) << 56)
            return dense
        lengths = self.lengths
        numbers = _words(self, self.starts, lengths, 0)
        numbers |= (lengths + 1).astype(np.uint64) << _u64(56)
        return numbers

    def hashes(self, *, decimals: bool) -> U64:
        """Return the hash of each key.

        With `decimals` decimal texts hash as their integers, without they hash as any text.
        """
        lengths = self.lengths
        hashes = lengths.astype(np.uint64)
        for start in range(0, self._longest, WORD):
            if self._shortest > start:
                mix(hashes, self._all_words(start, lengths))
            else:
                rows = np.flatnonzero(lengths > start)
                words = _words(self, self.starts[rows], lengths[rows], start)
                hashes[rows] = mix(hashes[rows], words)
        mix(hashes, np.zeros(1, dtype=np.uint64))
        if decimals and len(self):
            values, is_decimal = self.decimals()
            rows = np.flatnonzero(is_decimal)
            hashes[rows] = integer_hashes(values[rows])
        return hashes

    def _all_words(self, start: int, lengths: Offsets) -> U64:
        """Return the words at `start` of all keys, as `_words` does."""
        if self._shortest < WORD or not self._is_dense:
            return _words(self, self.starts, lengths, start)
        # Texts of one length behind one another: a walk by that length, instead of a jump to each.
        offset = int(self.starts[0]) + min(start, self._longest - WORD)
        words = np.ndarray((len(self),), "<u8", self.data, offset=offset, strides=(self._longest,))
        return words.copy()

    @cached_property
    def _is_dense(self) -> bool:
        """True if all texts have one length and lie behind one another."""
        is_even = len(self) > 0 and self._shortest == self._longest
        return is_even and bool((self.starts[1:] == self.ends[:-1]).all())

    def decimals(self) -> tuple[U64, Mask]:
        """Return each key's integer, and whether the key is its plain decimal form.

        The integers are below 10**18. Eight digits are read at a time, the last ones first.
        """
        values = np.zeros(len(self), dtype=np.uint64)
        if not len(self.data):
            return values, np.zeros(len(self), dtype=np.bool_)
        lengths = self.lengths
        first = self.data[np.minimum(self.starts, len(self.data) - 1)]
        is_decimal: Mask = (first >= 0x30) & (first <= 0x39) & (lengths > 0)
        is_decimal &= (lengths <= DECIMAL_DIGITS_MAX) & ((first != 0x30) | (lengths == 1))
        rows = np.flatnonzero(is_decimal)
        begin, left = self.starts[rows].astype(np.intp), lengths[rows].astype(np.intp)
        scale = 1
        is_all_digits = np.ones(len(rows), dtype=np.bool_)
        while int(left.max(initial=0)) > 0:
            numbers, are_digits = _eight_digits(self._last_digits(begin, left))
            values[rows] += numbers * _u64(scale)
            is_all_digits &= are_digits
            left = np.maximum(left - WORD, 0)
            scale *= 10**WORD
        is_decimal[rows] = is_all_digits
        return values, is_decimal

    @cached_property
    def all_decimals(self) -> tuple[U64, Mask | None]:
        """The result of `decimals`, remembered; None for the mask if all keys are decimal.

        It takes eight bytes a member, and only those who ask by integers need it.
        """
        values, is_decimal = self.decimals()
        return values, None if is_decimal.all() else is_decimal

    def _last_digits(self, begin: Offsets, left: Offsets) -> U64:
        """Return the last eight of the digits that are left of each number.

        Where fewer are left, '0' stands before them.
        """
        missing = WORD - np.minimum(left, WORD)
        is_whole = missing == 0
        last_readable = len(self.words) - 1
        offsets = np.where(is_whole, begin + left - WORD, np.minimum(begin, last_readable))
        words = self.words[offsets]
        # A short number is read from its first digit: shifted up, its digits come last.
        shifted = np.where(is_whole, words, words << (missing * 8 % 64).astype(np.uint64))
        digits: U64 = np.where(missing == WORD, _u64(_ZEROES), shifted | _FILL[missing])
        return digits

    def same(self, rows: Offsets, others: TextKeys, positions: Offsets) -> Mask:
        """Say which pairs of keys are equal: here at `rows`, there at `positions`."""
        here, there = self.starts[rows], others.starts[positions]
        lengths = self.ends[rows] - here
        is_same: Mask = lengths == others.ends[positions] - there
        if not is_same.all():
            pairs = np.flatnonzero(is_same)
            is_same[pairs] = self.same(rows[pairs], others, positions[pairs])
            return is_same
        shortest = int(lengths.min()) if len(lengths) else WORD
        for start in range(0, int(lengths.max(initial=0)), WORD):
            if shortest > start:
                step = _word_offsets(lengths, start, shortest)
                ours = _words_at(self, here, lengths, step)
                is_same &= ours == _words_at(others, there, lengths, step)
            else:
                pairs = np.flatnonzero(lengths > start)
                ours = _words(self, here[pairs], lengths[pairs], start)
                is_same[pairs] &= ours == _words(others, there[pairs], lengths[pairs], start)
        return is_same


def _word_offsets(lengths: Offsets, start: int, shortest: int) -> Offsets | int:
    """Return how far behind a text's beginning its word of `start` begins.

    The last word lies wholly inside the text, if that has eight bytes; else the offset is negative.
    """
    if shortest >= start + WORD:
        return start
    return np.minimum(start, lengths - WORD)


def _words_at(keys: TextKeys, begin: Offsets, lengths: Offsets, offset: Offsets | int) -> U64:
    if isinstance(offset, int) or int(offset.min(initial=0)) >= 0:
        whole_words: U64 = keys.words[begin + offset]
        return whole_words
    words: U64 = keys.words[begin + np.maximum(offset, 0)]
    is_short = offset < 0
    words[is_short] &= _LOW_BITS[lengths[is_short]]
    return words


def _words(keys: TextKeys, begin: Offsets, lengths: Offsets, start: int) -> U64:
    """Return the eight bytes from `start` on, or the last eight where fewer are left.

    Of a text shorter than eight bytes it is all of them.
    """
    shortest = int(lengths.min()) if len(lengths) else WORD
    return _words_at(keys, begin, lengths, _word_offsets(lengths, start, shortest))


def _eight_digits(words: U64) -> tuple[U64, Mask]:
    """Return the number that eight ASCII digits write, and whether all are digits.

    The first digit is in the lowest byte. As in reading a number by hand, neighbours are joined:
    digits to pairs, then pairs to the whole by two multiplications that each do two pairs at once.
    Source: Daniel Lemire, "Quickly parsing eight digits", 2018.
    """
    high = _u64(0x8080808080808080)
    # A byte above '9' carries into the high bit by the addition, one below '0' by the subtraction.
    are_digits: Mask = ((words + _u64(0x4646464646464646)) | (words - _u64(_ZEROES))) & high == 0
    words = words - _u64(_ZEROES)
    words = words * _u64(10) + (words >> _u64(8))
    first_and_third = (words & _u64(0x000000FF000000FF)) * _u64(0x000F424000000064)
    second_and_fourth = (words >> _u64(16)) & _u64(0x000000FF000000FF)
    second_and_fourth = second_and_fourth * _u64(0x0000271000000001)
    return (first_and_third + second_and_fourth) >> _u64(32), are_digits


def numbers_of_views(array: pa.Array) -> U64 | None:
    """Return the keys of an array of string views as numbers, for the record index.

    It does what `TextKeys.short_numbers` does.

    A view is 16 bytes: the length in four, and a text of up to twelve behind it. The number of a
    null may be any. Source: Arrow Columnar Format, "Variable-size Binary View Layout".
    """
    _, buffer, *_ = array.buffers()
    if buffer is None:
        return np.zeros(0, dtype=np.uint64)
    quarters = np.frombuffer(buffer, dtype="<u4")
    views = quarters[4 * array.offset : 4 * (array.offset + len(array))].reshape(-1, 4)
    lengths = views[:, 0]
    if array.null_count:
        lengths = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    if int(lengths.max(initial=0)) >= WORD:
        return None
    numbers = views[:, 2].astype(np.uint64) << _u64(32)
    numbers |= views[:, 1]
    # The bytes behind a text should be zero, but not every writer sees to it.
    numbers &= _LOW_BITS[lengths]
    numbers |= (lengths.astype(np.uint64) + _u64(1)) << _u64(56)
    return numbers


class IntegerKeys:
    """Member ids as integer keys of the record index: equal to their decimal texts.

    Each is from 0 to below 10**18.
    """

    def __init__(self, values: U64) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_list(self) -> list[bytes]:
        """Return each key as the bytes of its decimal text."""
        return [b"%d" % value for value in self.values.tolist()]

    def take(self, rows: Offsets) -> IntegerKeys:
        """Return the keys of some rows."""
        return IntegerKeys(self.values[rows])

    def hashes(self, *, decimals: bool) -> U64:
        """Return the hash of each key.

        `decimals` says whether there is any decimal text to be found; else no hash matters.
        """
        return integer_hashes(self.values)

    def same(self, rows: Offsets, others: TextKeys, positions: Offsets) -> Mask:
        """Say which pairs of keys are equal: here at `rows`, there at `positions`."""
        values, is_decimal = others.all_decimals
        is_same: Mask = values[positions] == self.values[rows]
        return is_same if is_decimal is None else is_same & is_decimal[positions]


Keys = TextKeys | IntegerKeys
