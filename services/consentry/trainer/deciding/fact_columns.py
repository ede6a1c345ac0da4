"""The trainer reads the facts of many members' records side by side, to decide a table.

Most members are told apart without reading each record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from consentry.domain.events import CHOICE_FACTS, RELOCATION_FACTS, Fact, FactKind
from consentry.domain.records import next_choice
from consentry.domain.values import Micros
from consentry.wire.avro_bytes import HIGH_BITS, INSTANT_HIGH_BITS
from consentry.wire.frames import FRAME_LENGTH

_FACTS_AT: Final = FRAME_LENGTH + 8
_TAIL: Final = 7
"""Bytes behind the facts of a plain record: the end of the block, two horizons, the checksum."""
_LENGTH_MIN: Final = _FACTS_AT + _TAIL
_BEYOND: Final = 256
"""Bytes that may be looked at behind the last record before it is known that it ended."""
_NOT_SMALL: Final = 0x81
"""The bits that say that a number is negative or goes on in another byte."""
_HIGH_BITS: Final = np.uint64(HIGH_BITS)
_INSTANT: Final = np.uint64(INSTANT_HIGH_BITS)
_INSTANT_MASK: Final = _HIGH_BITS | np.uint64(1)
"""By these bits eight bytes are an instant of 1978 to 3111: seven that go on and one that ends, not
negative.
"""
_LOW_BYTES: Final = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
_RELOCATES: Final = np.isin(np.arange(256), list(RELOCATION_FACTS))
_NO_FACT: Final = np.uint8(255)
_CHOICES: Final = (FactKind.UNKNOWN, *sorted(CHOICE_FACTS))
"""What a choice's number stands for; 0 is none."""
_CHOICE_NUMBERS: Final = np.zeros(256, dtype=np.uint8)
_CHOICE_NUMBERS[list(_CHOICES[1:])] = np.arange(1, len(_CHOICES))
_OUTCOMES: Final = np.zeros((len(_CHOICES), 64, len(_CHOICES), 65, 64), dtype=np.int8)
"""What `next_choice` was found to say, by the choice that stood, its version, the new one, what it
saw, its version.
"""
_STAYS, _TAKEN, _NOTHING = range(1, 4)

Signature = bytes
"""What the records of one class have in common."""
_SIGNATURE: Final = np.dtype(
    [
        ("place", "<u8"),
        ("lifts", "<u4"),
        ("age", "u1"),
        ("choice", "u1"),
        ("is_erased", "?"),
        ("is_quarantined", "?"),
    ]
)
_Column = npt.NDArray[Any]


class FactColumns:
    """The facts of many records side by side, as the trainer reads them to decide a table.

    At every step there is one fact of each of them, the newest first. Reads what the writer makes
    of an ordinary record (layout: wire/records.py); `is_plain` says which rows those are. All
    others, the damaged among them, are left to `read_record`.
    """

    def __init__(self, members: Sequence[bytes], raws: Sequence[bytes], purpose: str) -> None:
        joined = b"".join((*raws, bytes(_BEYOND)))
        self._bytes = np.frombuffer(joined, dtype=np.uint8)
        self._words = np.ndarray((len(joined) - 7,), "<u8", joined, strides=(1,))
        self._purpose = purpose.encode()
        lengths = np.fromiter(map(len, raws), dtype=np.intp, count=len(raws))
        ends = np.cumsum(lengths)
        position = ends - lengths + _FACTS_AT
        counts = self._bytes[position]
        self.is_plain = (
            (lengths >= _LENGTH_MIN)
            & (counts & _NOT_SMALL == 0)
            & self._sums_match(members, raws, ends)
        )
        self._steps: list[_FactsOfRows] = []
        position += 1
        for number in range(int(counts.max(initial=0, where=self.is_plain)) >> 1):
            rows = np.flatnonzero(self.is_plain & (counts >> 1 > number))
            step, position[rows], self.is_plain[rows] = self._read(
                rows, position[rows], ends[rows] - _TAIL
            )
            self._steps.append(step)
        # Behind the facts are the end of their block and two horizons, all of them 0 where nothing
        # was folded.
        self.is_plain &= (position == ends - _TAIL) & (
            self._words[ends - _TAIL] & np.uint64(0xFFFFFF) == 0
        )

    def _sums_match(
        self, members: Sequence[bytes], raws: Sequence[bytes], ends: _Column
    ) -> _Column:
        """As `verify_checksum`, per row."""
        sums = map(crc32, [raw[:-4] for raw in raws], map(crc32, members))
        stored: _Column = self._words[ends - 4].astype("<u4").byteswap()
        match: _Column = np.fromiter(sums, dtype=np.uint32, count=len(raws)) == stored
        return match

    def _read(
        self, rows: _Column, at: _Column, ends: _Column
    ) -> tuple[_FactsOfRows, _Column, _Column]:
        """The fact that starts `at`, where the next one does, and whether it was plain, for each of
        these rows.
        """
        version, kind, branch = self._bytes[at], self._bytes[at + 1], self._bytes[at + 26]
        effective, recorded = self._words[at + 2], self._words[at + 10]
        observes = branch == 2
        seen = np.where(observes, self._bytes[at + 27], np.uint8(0))
        size_at = at + 27 + observes
        size = self._bytes[size_at]
        is_plain = ((version | seen | size) & _NOT_SMALL == 0) & (branch & 0xFD == 0)
        is_plain &= (kind & 1 == 0) & (kind <= max(FactKind) << 1)
        is_plain &= (effective & _INSTANT_MASK == _INSTANT) & (recorded & _INSTANT_MASK == _INSTANT)
        kind, size = kind >> 1, (size >> 1).astype(np.intp)
        after = size_at + 1 + size
        name, is_of_purpose, is_ascii = self._names(size_at + 1, size)
        is_plain &= (after <= ends) & is_ascii & ~(_RELOCATES[kind] & (size > 7))
        name |= size.astype(np.uint64) << np.uint64(
            56
        )  # so that a name and one that begins with it differ
        observed = np.where(observes, seen.astype(np.int16) >> 1, np.int16(-1))
        return (
            _FactsOfRows(
                rows, kind, version >> 1, effective, recorded, observed, name, is_of_purpose
            ),
            after,
            is_plain,
        )

    def _names(self, start: _Column, size: _Column) -> tuple[_Column, _Column, _Column]:
        """Of the name at `start`: its first eight bytes, whether it is the purpose, and whether it
        is ASCII.
        """
        first, is_of_purpose = np.zeros(len(start), dtype=np.uint64), size == len(self._purpose)
        is_ascii = np.ones(len(start), dtype=np.bool_)
        for offset in range(0, int(size.max(initial=0)), 8):
            letters = self._words[start + offset] & _LOW_BYTES[np.clip(size - offset, 0, 8)]
            wanted = int.from_bytes(self._purpose[offset : offset + 8], "little")
            is_of_purpose &= letters == np.uint64(wanted)
            is_ascii &= letters & _HIGH_BITS == 0
            if offset == 0:
                first = letters
        return first, is_of_purpose, is_ascii

    def latest(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return for each record the last times a fact took effect and was recorded.

        They are in microseconds.
        """
        effective, recorded = np.zeros((2, len(self.is_plain)), dtype=np.uint64)
        for step in self._steps:
            effective[step.rows] = np.maximum(effective[step.rows], step.effective)
            recorded[step.rows] = np.maximum(recorded[step.rows], step.recorded)
        return _instants(effective), _instants(recorded)

    def signatures(
        self, at: Micros, known_at: Micros, opt_ins_voided_at: Sequence[Micros]
    ) -> list[Signature | None]:
        """Return the part of each record's state that decides; None if it is not plain."""
        if min(at, known_at) < 0:
            return [None] * len(
                self.is_plain
            )  # before the horizons even of a record of which nothing was folded
        found = _MemberStateColumns(len(self.is_plain))
        last_effective, last_recorded = _word(at), _word(known_at)
        for step in reversed(self._steps):
            found.take_in(
                step, (step.effective <= last_effective) & (step.recorded <= last_recorded)
            )
        signatures = np.zeros(len(self.is_plain), dtype=_SIGNATURE)
        signatures["is_erased"], signatures["is_quarantined"] = (
            found.is_erased,
            found.is_quarantined & ~found.is_erased,
        )
        others = ~(found.is_erased | found.is_quarantined)
        signatures["place"][others] = found.place[others]
        signatures["age"][others] = found.age[others]
        signatures["choice"][others] = found.choice[others]
        opted_in = others & (found.choice == _CHOICE_NUMBERS[FactKind.OPTED_IN])
        lifts = np.array([_word(lift) for lift in opt_ins_voided_at], dtype=np.uint64)
        signatures["lifts"][opted_in] = np.searchsorted(lifts, found.opted_in_at[opted_in])
        as_bytes = signatures.view(f"V{_SIGNATURE.itemsize}").tolist()
        return [
            one if plain else None
            for one, plain in zip(as_bytes, self.is_plain.tolist(), strict=True)
        ]


class _MemberStateColumns:
    """The states of many records at once, taken in fact by fact in log order."""

    def __init__(self, count: int) -> None:
        self.is_erased, self.is_quarantined = np.zeros((2, count), dtype=np.bool_)
        self.place, self.opted_in_at = np.zeros((2, count), dtype=np.uint64)
        self.age, self.choice, self._chosen_by, self._quarantined_by = np.zeros(
            (4, count), dtype=np.uint8
        )

    def take_in(self, step: _FactsOfRows, counts: _Column) -> None:
        """Take in one fact of each of some records, where it counts. Source: rules 2, 3, 4, 10."""
        kind = np.where(counts, step.kind, _NO_FACT)
        moves = _RELOCATES[kind]
        self.place[step.rows[moves]], self.age[step.rows[moves]] = step.name[moves], kind[moves]
        self.is_erased[step.rows[kind == FactKind.ERASED]] = True
        self._quarantine(step, kind)
        self._choose(step, np.where(step.is_of_purpose, kind, _NO_FACT))

    def _quarantine(self, step: _FactsOfRows, kind: _Column) -> None:
        """Take in the quarantines and releases among these facts, as `next_quarantine` does."""
        holds = (kind == FactKind.QUARANTINED) | (kind == FactKind.UNKNOWN)
        rows = step.rows[holds]
        self.is_quarantined[rows], self._quarantined_by[rows] = True, step.version[holds]
        has_seen = (step.observed >= self._quarantined_by[step.rows]) & (
            step.observed < step.version
        )
        self.is_quarantined[
            step.rows[(kind == FactKind.RELEASED) & ((step.observed < 0) | has_seen)]
        ] = False

    def _choose(self, step: _FactsOfRows, kind: _Column) -> None:
        """Have `next_choice` say what stands after each of these facts that is a choice."""
        here = np.flatnonzero(_CHOICE_NUMBERS[kind])
        rows, chosen, version = step.rows[here], _CHOICE_NUMBERS[kind[here]], step.version[here]
        outcome = _outcomes(
            self.choice[rows], self._chosen_by[rows], chosen, step.observed[here], version
        )
        taken = outcome == _TAKEN
        self.choice[rows[outcome == _NOTHING]] = 0
        self.choice[rows[taken]], self._chosen_by[rows[taken]] = chosen[taken], version[taken]
        self.opted_in_at[rows[taken]] = step.recorded[here][taken]


def _outcomes(
    standing: _Column, by: _Column, chosen: _Column, observed: _Column, version: _Column
) -> _Column:
    """Return what `next_choice` makes of each choice after the one before it, as numbers."""
    codes = np.ravel_multi_index((standing, by, chosen, observed + 1, version), _OUTCOMES.shape)
    known = _OUTCOMES.reshape(-1)
    for code in np.unique(codes[known[codes] == 0]).tolist():
        known[code] = _outcome(*(int(part) for part in np.unravel_index(code, _OUTCOMES.shape)))
    return known[codes]


def _outcome(standing: int, by: int, chosen: int, seen: int, version: int) -> int:
    before = Fact(_CHOICES[standing], Micros(0), Micros(0), b"", version=by) if standing else None
    now = Fact(
        _CHOICES[chosen], Micros(0), Micros(0), b"", seen - 1 if seen else None, version=version
    )
    after = next_choice(before, now)
    if after is None:
        return _NOTHING
    return _TAKEN if after is now else _STAYS


class _FactsOfRows(NamedTuple):
    """One fact of each of some records.

    An instant stands as its eight bytes: as numbers they compare as it does.
    """

    rows: _Column
    kind: _Column
    version: _Column
    effective: _Column
    recorded: _Column
    observed: _Column
    """-1 where the person is not said to have seen anything."""
    name: _Column
    is_of_purpose: _Column


def _word(instant: Micros) -> np.uint64:
    """An instant as its eight bytes; beyond what eight can say, a number that compares as it
    does.
    """
    if instant < 0:
        return np.uint64(0)
    if instant >= 1 << 55:
        return np.uint64((1 << 64) - 1)
    groups = ((instant << 1 >> 7 * place & 0x7F) << 8 * place for place in range(8))
    return np.uint64(sum(groups)) | _INSTANT


def _instants(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The instants that stand as these eight bytes, in microseconds."""
    found = np.zeros(len(words), dtype=np.uint64)
    for place in range(8):
        found |= (words >> np.uint64(8 * place) & np.uint64(0x7F)) << np.uint64(7 * place)
    return (found >> np.uint64(1)).astype(np.int64)
