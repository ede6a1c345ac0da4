"""The trainer's decision for the rows of an Arrow table, once for each distinct question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentry.domain.decisions import Row, decide_state
from consentry.domain.values import Micros, Reason
from consentry.record_index import IntegerKeys, Keys, TextKeys
from consentry.record_index.keys import INTEGERS_BELOW, numbers_of_views
from consentry.trainer.deciding.columns import (
    Columns,
    check_columns,
    is_text_type,
    member_texts,
    micros_of,
    texts_of,
    written_out,
)
from consentry.trainer.deciding.member_classes import (
    QUARANTINED_CLASS,
    ControlBoundaries,
    MemberClasses,
    RowKind,
)
from consentry.trainer.deciding.snapshot import Snapshot

REASONS: tuple[Reason, ...] = tuple(Reason)
_ALLOWS = np.array([reason.allows for reason in REASONS])
_STALE = REASONS.index(Reason.STALE)
_NO_CODE: Final = "?"
"""Stands for every jurisdiction that is no known code: one such decides, whatever else is asked."""
_DIRECT_MIN: Final = 1 << 16
_SIDE_BY_SIDE: Final = 1 << 17
"""Rows looked up at once: enough for the arithmetic to count, few enough for a processor's cache.
"""
_COMPARED_MAX: Final = 8
"""Of more cut-offs a search is quicker than comparing with each."""
_SHORT_MIN: Final = 1 << 14
"""Of fewer rows the slots would cost more than they save."""
_SLOTS: Final = 1 << 16
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
_SPREAD_SHIFT: Final = np.uint64(48)
_NULL_NUMBER: Final = (1 << 64) - 1
_EARLIEST: Final = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Decisions:
    """The trainer's decisions on a table, one per row: `reasons` are places in REASONS."""

    reasons: npt.NDArray[np.int8]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """True where the decided row may be used."""
        found: npt.NDArray[np.bool_] = _ALLOWS[self.reasons]
        return found

    def counts(self) -> dict[Reason, int]:
        """Return the number of decided rows of each reason."""
        numbers = np.bincount(self.reasons, minlength=len(REASONS)).tolist()
        counts: Counter[Reason] = Counter()
        for reason, number in zip(REASONS, numbers, strict=True):
            if number:
                counts[reason] = number
        return counts


def decide_table(
    table: pa.Table,
    snapshot: Snapshot,
    *,
    purpose: str,
    at: Micros,
    known_at: Micros,
    columns: Columns,
    is_fresh: bool,
) -> Decisions:
    """Decide every row of an Arrow table at once in the trainer.

    Each gets the reason that `snapshot.decide` gives. Times in microseconds since 1970-01-01 UTC.
    A member id is a text, or an integer for its decimal text; one that is null, malformed or of
    another type is QUARANTINED, never dropped silently; a jurisdiction that is no known code is
    unknown; nothing is allowed where `is_fresh` is False. Raises InvalidInput where a named column
    is missing or holds no times.

    Only `decide_state` allows: members who stand alike and rows that no rule tells apart ask one
    question, and it is asked once. What was found is remembered in the snapshot, until a record, a
    control or the time asked about makes it another.
    """
    check_columns(table.column_names, columns)
    if not is_fresh or table.num_rows == 0:
        return Decisions(np.full(table.num_rows, _STALE, dtype=np.int8))
    boundaries = snapshot.boundaries
    member_classes = snapshot.member_classes(purpose, boundaries.opt_ins_voided_at)
    codes = _member_classes(
        table[columns.member], snapshot, member_classes, at=at, known_at=known_at
    )
    axes = (
        _places(table, columns.jurisdiction, boundaries),
        _categories(table, columns.category, boundaries),
        _collection_times(table, columns.collected, boundaries),
    )
    size = len(member_classes.states)
    for axis in axes:
        size *= len(axis.values)
        codes = codes.astype(np.int32 if size < 1 << 31 else np.int64, copy=False)
        if axis.codes is not None:
            codes *= len(axis.values)
            codes += axis.codes
    question = _TableQuestion(member_classes, boundaries, axes, purpose, at, known_at)
    return Decisions(_answered(codes, size, question.answers))


class _Axis(NamedTuple):
    """One thing that is known of rows: values, each of which stands for all that are judged alike,
    and their places.

    `codes` has a place for each row; None is the first one for all.
    """

    values: Sequence[Any]
    codes: npt.NDArray[np.int32] | None = None


class _TableQuestion(NamedTuple):
    """The question about every class of members and every kind of row."""

    member_classes: MemberClasses
    boundaries: ControlBoundaries
    axes: tuple[_Axis, _Axis, _Axis]
    purpose: str
    at: Micros
    known_at: Micros

    def answers(self, distinct: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int8]:
        """Places in REASONS for combined codes of class, jurisdiction, category and time of
        collection.
        """
        moment = self.boundaries.moment(self.at, self.known_at)
        remembered = self.member_classes.answers(self.boundaries, moment)
        sizes = [len(axis.values) for axis in self.axes]
        classes, kinds = np.divmod(distinct, math.prod(sizes))
        kinds, row_of = np.unique(kinds, return_inverse=True)
        rows: list[RowKind] = [
            tuple(axis.values[place] for axis, place in zip(self.axes, places, strict=True))
            for places in zip(*np.unravel_index(kinds, sizes), strict=True)
        ]
        keys = remembered.keys(rows, row_of, classes)
        found = np.fromiter(
            map(remembered.given.get, keys, repeat(-1)), dtype=np.int8, count=len(keys)
        )
        for place in np.flatnonzero(found < 0).tolist():
            found[place] = remembered.given[keys[place]] = self._decider(
                classes[place], rows[row_of[place]]
            )
        return found

    def _decider(self, number: int, kind: RowKind) -> int:
        row = Row(jurisdiction=kind[0], category=kind[1], collected=kind[2])
        own, controls = self.member_classes.states[number], self.boundaries.controls
        decision = decide_state(
            own, row, controls, purpose=self.purpose, at=self.at, known_at=self.known_at
        )
        return REASONS.index(decision.reason)


def _answered(
    codes: npt.NDArray[Any], size: int, answer: Callable[[npt.NDArray[Any]], npt.NDArray[np.int8]]
) -> npt.NDArray[np.int8]:
    """The answer for each of the codes, which are below `size`; asked for once per code that
    occurs.
    """
    if size > max(_DIRECT_MIN, 4 * len(codes)):
        distinct, places = np.unique(codes, return_inverse=True)
        found: npt.NDArray[np.int8] = answer(distinct)[places]
        return found
    # So few are possible that looking each up is quicker than sorting them.
    occurs = np.zeros(size, dtype=np.bool_)
    occurs[codes] = True
    distinct = np.flatnonzero(occurs)
    by_code = np.zeros(size, dtype=np.int8)
    by_code[distinct] = answer(distinct)
    found = by_code[codes]
    return found


def _member_classes(
    column: pa.ChunkedArray,
    snapshot: Snapshot,
    member_classes: MemberClasses,
    *,
    at: Micros,
    known_at: Micros,
) -> npt.NDArray[np.int32]:
    """Each row's class of members."""
    if pa.types.is_dictionary(column.type):
        is_whole = pa.types.is_integer(column.type.value_type)
        values, codes = _dictionary(column if is_whole else member_texts(column))
        by_code = _member_classes(
            pa.chunked_array([values]), snapshot, member_classes, at=at, known_at=known_at
        )
        found: npt.NDArray[np.int32] = by_code[codes]
        return found

    def ask(keys: Keys) -> npt.NDArray[np.int32]:
        return snapshot.classes(keys, member_classes, at=at, known_at=known_at)

    read = _integer_classes
    if not pa.types.is_integer(column.type):
        read = _text_classes
        column = member_texts(column)
    classes = [np.zeros(0, dtype=np.int32)]
    for part in _slices(column):
        classes.append(read(part, ask))
    return np.concatenate(classes)


_Ask = Callable[[Keys], npt.NDArray[np.int32]]


def _text_classes(chunk: pa.Array, ask: _Ask) -> npt.NDArray[np.int32]:
    if pa.types.is_string_view(chunk.type):
        chunk = chunk.cast(pa.large_string())
    keys = TextKeys.of_arrow(chunk)
    is_id = keys.valid()
    if is_id.all():
        return ask(keys)
    found = np.full(len(chunk), QUARANTINED_CLASS, dtype=np.int32)
    rows = np.flatnonzero(is_id)
    found[rows] = ask(keys.take(rows))
    return found


def _integer_classes(chunk: pa.Array, ask: _Ask) -> npt.NDArray[np.int32]:
    """An integer stands for its decimal text; nobody is called by a null."""
    if chunk.null_count == 0:
        values = chunk.to_numpy(zero_copy_only=False)
        if len(values) and int(values.min()) >= 0 and int(values.max()) < INTEGERS_BELOW:
            return ask(IntegerKeys(values.astype(np.uint64)))
    return _text_classes(chunk.cast(pa.string()), ask)


def _places(table: pa.Table, name: str | None, boundaries: ControlBoundaries) -> _Axis:
    is_code = boundaries.controls.jurisdictions.is_code
    return _axis(table, name, lambda place: place if is_code(place) else _NO_CODE)


def _categories(table: pa.Table, name: str | None, boundaries: ControlBoundaries) -> _Axis:
    named = boundaries.categories
    not_named = max(named, default="") + "*"
    return _axis(table, name, lambda category: category if category in named else not_named)


def _axis(table: pa.Table, name: str | None, stand_in: Callable[[str], str]) -> _Axis:
    """The stand-ins of a column's texts, null among them where it has any; one null where there is
    no such column.
    """
    if name is None:
        return _Axis([None])
    values, codes = encoded(texts_of(table[name]))
    places: dict[str | None, int] = {}
    found = [
        places.setdefault(None if value is None else stand_in(value), len(places))
        for value in values
    ]
    is_same = found == list(range(len(found)))
    return _Axis(list(places), codes if is_same else np.array(found, dtype=np.int32)[codes])


def _slices(column: pa.ChunkedArray) -> list[pa.Array]:
    slices = []
    for chunk in column.chunks:
        for start in range(0, len(chunk), _SIDE_BY_SIDE):
            slices.append(chunk.slice(start, _SIDE_BY_SIDE))
    return slices


def _short_texts(column: pa.ChunkedArray) -> tuple[list[Any], npt.NDArray[np.int32]] | None:
    """As `encoded`, for a few texts of up to seven bytes, such as codes of jurisdictions;

    None for others.
    """
    is_view = pa.types.is_string_view(column.type)
    if not is_text_type(column.type) or len(column) < _SHORT_MIN:
        return None
    numbers, slots = np.zeros(_SLOTS, dtype=np.uint64), []
    for part in _slices(column):
        found = numbers_of_views(part) if is_view else TextKeys.of_arrow(part).short_numbers()
        if found is None:
            return None
        if part.null_count:
            found[part.is_null().to_numpy(zero_copy_only=False)] = _NULL_NUMBER
        slot = ((found * _SPREAD) >> _SPREAD_SHIFT).astype(np.uint16)
        new = numbers[slot] != found
        if new.any():
            free = np.flatnonzero(new & (numbers[slot] == 0))
            numbers[slot[free]] = found[free]
            if not (numbers[slot] == found).all():
                return None  # two texts have one slot: it is rare, and slower only
        slots.append(slot)
    used = np.flatnonzero(numbers)
    places = np.zeros(_SLOTS, dtype=np.int32)
    places[used] = np.arange(len(used))
    codes = np.concatenate([np.zeros(0, dtype=np.int32), *(places[slot] for slot in slots)])
    return [_short_text(int(number)) for number in numbers[used]], codes


def _short_text(number: int) -> str | None:
    if number == _NULL_NUMBER:
        return None
    raw = number.to_bytes(8, "little")
    return raw[: raw[7] - 1].decode(errors="replace")


def encoded(column: pa.ChunkedArray) -> tuple[list[Any], npt.NDArray[np.int32]]:
    """Return a column's distinct values in a table to decide, and each row's place in them.

    Null is among them where the column has any.
    """
    short = _short_texts(column)
    if short is not None:
        return short
    values, codes = _dictionary(column)
    return values.to_pylist(), codes


def _dictionary(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The values of a column, each row's among them, and each row's place in them."""
    if pa.types.is_dictionary(column.type):
        shared = _shared_dictionary(column)
        if shared is not None:
            return shared
        column = written_out(column)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    # All chunks of one encoding share one dictionary; Arrow's own unifying refuses one that holds a
    # null.
    chunks = pc.dictionary_encode(column, null_encoding="encode").chunks
    if not chunks:
        return pa.array([], column.type), np.zeros(0, dtype=np.int32)
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks]
    return chunks[0].dictionary, np.concatenate(codes).astype(np.int32, copy=False)


def _shared_dictionary(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int32]] | None:
    """The dictionary that all chunks have, and a null;

    None where they differ, or where most of it may be of no use.
    """
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    if not chunks:
        return None
    values = chunks[0].dictionary
    if len(values) > len(column):
        return None
    for chunk in chunks[1:]:
        if not chunk.dictionary.equals(values):
            return None
    codes = []
    for chunk in chunks:
        indices = chunk.indices.cast(pa.int32()).fill_null(len(values))
        codes.append(indices.to_numpy(zero_copy_only=False))
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    # A null of a categorical has no place in its dictionary.
    return pa.concat_arrays([values, pa.nulls(1, values.type)]), np.concatenate(codes)


def _collection_times(table: pa.Table, name: str | None, boundaries: ControlBoundaries) -> _Axis:
    """Times of collection matter only by which cut-offs they are before: one time stands for each
    such class.
    """
    if name is None:
        return _Axis([None])
    column = micros_of(table[name], name)
    cut_offs = boundaries.cut_offs
    if not cut_offs:
        return _Axis([None])
    # Nobody knows when is as early as can be: it is inside no cut-off either.
    values = column.fill_null(_EARLIEST).to_numpy()
    return _Axis([None, *cut_offs], _passed(values, cut_offs))


def _passed(values: npt.NDArray[np.int64], cut_offs: Sequence[Micros]) -> npt.NDArray[np.int32]:
    """Return the number of cut-offs, which ascend, that each value has reached."""
    if len(cut_offs) > _COMPARED_MAX:
        ascending = np.array(cut_offs, dtype=np.int64)
        return np.searchsorted(ascending, values, side="right").astype(np.int32)
    codes = np.zeros(len(values), dtype=np.int32)
    for cut_off in cut_offs:
        codes += values >= cut_off
    return codes
