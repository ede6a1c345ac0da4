"""Which rows of an Arrow table may be used: the whole decision, once per distinct question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentry.domain.controls import Controls
from consentry.domain.decisions import NOBODY, Row, Standing, judge, standing
from consentry.domain.errors import InvalidInput
from consentry.domain.values import MEMBER_ID_PATTERN, Micros, Reason
from consentry.trainer.view import View
from consentry.wire.records import DamagedRecord, read_record

REASONS: tuple[Reason, ...] = tuple(Reason)
_ALLOWING = np.array([reason in (Reason.OPTED_IN, Reason.DEFAULT_ON) for reason in REASONS])
_HELD = REASONS.index(Reason.HELD)
_STALE = REASONS.index(Reason.STALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table say what; None: the table does not say it."""

    member: str = "member_id"
    jurisdiction: str | None = None
    category: str | None = None
    collected: str | None = None


def conventional_columns(table: pa.Table) -> Columns:
    """The columns that have our conventional names; only `member_id` has to be there."""
    names = table.column_names
    return Columns(
        jurisdiction="jurisdiction" if "jurisdiction" in names else None,
        category="category" if "category" in names else None,
        collected="collected_at" if "collected_at" in names else None,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer per row: `reasons` are places in REASONS."""

    reasons: npt.NDArray[np.int8]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """True where the row may be used."""
        found: npt.NDArray[np.bool_] = _ALLOWING[self.reasons]
        return found

    def counts(self) -> dict[Reason, int]:
        """How many rows have each reason."""
        places, numbers = np.unique(self.reasons, return_counts=True)
        return Counter({REASONS[place]: int(number) for place, number in zip(places, numbers, strict=True)})


def judge_rows(
    table: pa.Table, view: View, *, purpose: str, at: Micros, known_at: Micros, columns: Columns, is_fresh: bool
) -> Verdict:
    """Decide every row of `table`. Raises InvalidInput where a named column is missing.

    A null or malformed member id is held, never dropped silently; nothing is allowed where `is_fresh` is False.
    """
    check_columns(table, columns)
    if not is_fresh or table.num_rows == 0:
        return Verdict(np.full(table.num_rows, _STALE, dtype=np.int8))
    controls = view.controls
    members, member_codes = encoded(table[columns.member])
    places, place_codes = _optional(table, columns.jurisdiction)
    categories, category_codes = _optional(table, columns.category)
    collected, collected_codes = _collection_classes(table, columns.collected, controls)
    codes = member_codes.astype(np.int64)
    for more, size in (
        (place_codes, len(places)),
        (category_codes, len(categories)),
        (collected_codes, len(collected)),
    ):
        codes = codes * size + more
    distinct, inverse = np.unique(codes, return_inverse=True)
    answer = _Answers(view, controls, purpose, at, known_at, places, categories, collected)
    standings = [_standing_of(member, view, purpose, at, known_at) for member in members]
    found = np.fromiter((answer.reason(standings, int(code)) for code in distinct), dtype=np.int8, count=len(distinct))
    return Verdict(found[inverse])


class _Answers:
    """Answers distinct questions; members who stand alike share an answer."""

    def __init__(
        self,
        view: View,
        controls: Controls,
        purpose: str,
        at: Micros,
        known_at: Micros,
        places: Sequence[str | None],
        categories: Sequence[str | None],
        collected: Sequence[Micros | None],
    ) -> None:
        self._controls = controls
        self._question = {"purpose": purpose, "at": at, "known_at": known_at}
        self._rows = [
            Row(jurisdiction=place, category=category, collected=when)
            for place in places
            for category in categories
            for when in collected
        ]
        self._known: dict[tuple[Any, int], int] = {}

    def reason(self, standings: Sequence[Standing | None], code: int) -> int:
        """The place in REASONS for a combined code of member and row."""
        member, row = divmod(code, len(self._rows))
        own = standings[member]
        if own is None:
            return _HELD
        key = (_likeness(own), row)
        found = self._known.get(key)
        if found is None:
            decision = judge(own, self._rows[row], self._controls, **self._question)  # type: ignore[arg-type]
            found = self._known[key] = REASONS.index(decision.reason)
        return found


def _likeness(own: Standing) -> tuple[Any, ...]:
    """Members with the same likeness get the same answer to the same row."""
    choice = own.choice
    return (
        own.erasure is not None,
        own.hold is not None,
        own.is_folded,
        own.jurisdiction,
        own.relocation.kind if own.relocation else None,
        choice.kind if choice else None,
        # Only an opt-in's time matters: whether it was recorded after a lift that voided the earlier ones.
        choice.recorded_at if choice and choice.kind.name == "OPTED_IN" else None,
    )


def _standing_of(member: Any, view: View, purpose: str, at: Micros, known_at: Micros) -> Standing | None:
    """The member's standing; None for one that is held."""
    if not isinstance(member, str) or MEMBER_ID_PATTERN.fullmatch(member) is None:
        return None
    key = member.encode()
    if view.is_held(key):
        return None
    raw = view.records.get(key)
    if raw is None:
        return NOBODY
    try:
        return standing(read_record(raw, key), purpose=purpose, at=at, known_at=known_at)
    except DamagedRecord:
        return None


def check_columns(table: pa.Table, columns: Columns) -> None:
    """Raise InvalidInput where a named column is missing."""
    for name in (columns.member, columns.jurisdiction, columns.category, columns.collected):
        if name is not None and name not in table.column_names:
            raise InvalidInput(
                f"The table has no column {name!r}; it has {', '.join(map(repr, table.column_names))}.",
                code="input.column",
                fix="name the right columns; member ids are needed, the others are optional",
            )


def encoded(column: Any) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The distinct values of a column (null among them where it has any), and each row's place in them."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # a null of a categorical has no place in its dictionary
    elif pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    encoded = pc.dictionary_encode(column, null_encoding="encode")
    # All chunks of one encoding share one dictionary; Arrow's own unifying refuses one that holds a null.
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    codes = [chunk.indices.to_numpy(zero_copy_only=False).astype(np.int64) for chunk in chunks]
    return (chunks[0].dictionary.to_pylist(), np.concatenate(codes)) if chunks else ([], np.zeros(0, dtype=np.int64))


def _optional(table: pa.Table, name: str | None) -> tuple[list[str | None], npt.NDArray[np.int64]]:
    """As encoded; one null value where the table has no such column."""
    if name is None:
        return [None], np.zeros(table.num_rows, dtype=np.int64)
    values, codes = encoded(table[name])
    return [value if value is None or isinstance(value, str) else str(value) for value in values], codes


def _collection_classes(
    table: pa.Table, name: str | None, controls: Controls
) -> tuple[list[Micros | None], npt.NDArray[np.int64]]:
    """Times of collection matter only by which cut-offs they are before: one time stands for each such class."""
    if name is None:
        return [None], np.zeros(table.num_rows, dtype=np.int64)
    column = table[name]
    try:
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us"), safe=False)
        column = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidInput(
            f"The column {name!r} holds {column.type}, which is not a time of collection.",
            code="input.column",
            fix="give it a date or timestamp type, or microseconds since 1970-01-01 UTC",
        ) from error
    missing = column.is_null().to_numpy()
    values = column.fill_null(0).to_numpy()
    cut_offs = controls.collection_cut_offs
    classes = np.searchsorted(np.array(cut_offs, dtype=np.int64), values, side="right").astype(np.int64) + 1
    classes[missing] = 0
    representatives = [None, Micros((cut_offs[0] - 1) if cut_offs else 0), *cut_offs]
    return representatives, classes
