"""Which rows of a table have to go: those that purge orders name, and those that may not be used
for a purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.domain.events import RELOCATION_FACTS
from consentry.domain.jurisdictions import ANYWHERE
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import MEMBER_ID_PATTERN, Micros, Reason
from consentry.record_index.keys import TextKeys
from consentry.trainer.deciding.columns import Columns, check_columns, is_text_type, value_type
from consentry.trainer.deciding.decide_table import REASONS, encoded
from consentry.trainer.deciding.decider import Decider, SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.records import DamagedRecord, read_record

NOBODY: Final = -1
UNKNOWN_REASONS: Final = frozenset(
    {Reason.QUARANTINED, Reason.HISTORY_FOLDED, Reason.JURISDICTION_UNKNOWN}
)
"""Excluded because something is not known, which may be known tomorrow: not reason enough to
destroy a row.
"""


class Selection(NamedTuple):
    """Per row the place of the first order that covers it, or -1, and how many kept rows are of
    unknown owner.
    """

    first: npt.NDArray[np.int32]
    unknown: int = 0

    def counts(self, order_ids: Sequence[str]) -> dict[str, int]:
        """How many rows each order covers, those with none left out."""
        places, numbers = np.unique(self.first[self.first >= 0], return_counts=True)
        return {
            order_ids[place]: number
            for place, number in zip(places.tolist(), numbers.tolist(), strict=True)
        }


class RowSelector(Protocol):
    """What decides which rows go."""

    @property
    def order_ids(self) -> Sequence[str]:
        """Names of what rows are removed for, by place."""
        ...

    def of(self, table: pa.Table, columns: Columns) -> Selection:
        """Which rows of a table go.

        Raises InvalidInput for a missing column, Unavailable where nobody can say now.
        """
        ...


class OrdersSelector:
    """The rows that purge orders name.

    `now` in microseconds; what depends on the view is read when it is asked for.
    """

    def __init__(self, orders: Sequence[PurgeOrder], snapshot: Snapshot, now: Micros) -> None:
        self._order_ids = tuple(order.order_id for order in orders)
        self._snapshot = snapshot
        self._now = now
        by_member: dict[str, int] = {}
        self._scopes: list[tuple[int, PurgeOrder, Scope]] = []
        for place, order in enumerate(orders):
            if order.member is not None:
                by_member.setdefault(order.member, place)
            elif order.scope is not None:
                self._scopes.append((place, order, order.scope))
        self._residents = _Residents(
            [(order.recorded_at, scope) for _, order, scope in self._scopes], snapshot, now
        )
        self._members = pa.array(by_member, pa.string())
        self._places = np.array([*by_member.values(), NOBODY], dtype=np.int32)

    def __getstate__(self) -> dict[str, Any]:
        bare = _without_memory(self._snapshot)
        return self.__dict__ | {"_snapshot": bare, "_residents": self._residents.by(bare)}

    @property
    def order_ids(self) -> Sequence[str]:
        """See Cover."""
        return self._order_ids

    def of(self, table: pa.Table, columns: Columns) -> Selection:
        """See Cover."""
        check_columns(table.column_names, columns)
        members = _member_texts(table[columns.member], columns.member)
        covered = np.full(table.num_rows, NOBODY, dtype=np.int32)
        if table.num_rows == 0:
            return Selection(covered)
        if len(self._members):
            found = pc.index_in(members, value_set=self._members, skip_nulls=True)
            covered = self._places[found.fill_null(len(self._members)).to_numpy()]
        if self._scopes:
            distinct, codes = encoded(members)
            lived = self._residents.of(distinct)
            for number, (place, order, scope) in enumerate(self._scopes):
                hit = lived[:, number][codes]
                hit |= self._rows_inside(table, scope, columns)
                hit &= _category_is_in(table, order, columns)
                covered[(covered < 0) & hit] = place
        return Selection(covered)

    def _rows_inside(
        self, table: pa.Table, scope: Scope, columns: Columns
    ) -> npt.NDArray[np.bool_]:
        if columns.jurisdiction is None:
            return np.zeros(table.num_rows, dtype=np.bool_)
        places, codes = encoded(table[columns.jurisdiction])
        known, named = self._snapshot.controls.jurisdictions, frozenset(scope.jurisdictions)
        inside = [
            isinstance(place, str) and not named.isdisjoint(known.holders(place, at=self._now))
            for place in places
        ]
        return np.array(inside, dtype=np.bool_)[codes]


class _Residents:
    """Which members lived in which of some scopes; each member is looked up once."""

    def __init__(
        self, scopes: Sequence[tuple[Micros, Scope]], snapshot: Snapshot, now: Micros
    ) -> None:
        self._scopes = tuple(
            (recorded_at, scope, frozenset(scope.jurisdictions)) for recorded_at, scope in scopes
        )
        self._snapshot = snapshot
        self._now = now
        self._rows: dict[Any, int] = {}
        self._lived = np.zeros((0, len(scopes)), dtype=np.bool_)
        self._holders: dict[str, frozenset[str]] = {}

    def by(self, snapshot: Snapshot) -> _Residents:
        """The same, with nothing remembered, by another view."""
        return _Residents(
            [(recorded_at, scope) for recorded_at, scope, _ in self._scopes], snapshot, self._now
        )

    def of(self, members: Sequence[Any]) -> npt.NDArray[np.bool_]:
        """A row per member, a column per scope."""
        new = [member for member in members if member not in self._rows]
        if new:
            self._rows.update(
                zip(new, range(len(self._rows), len(self._rows) + len(new)), strict=True)
            )
            self._lived = np.concatenate([self._lived, self._look_up(new)])
        return self._lived[
            np.fromiter(map(self._rows.__getitem__, members), dtype=np.int64, count=len(members))
        ]

    def _look_up(self, members: Sequence[Any]) -> npt.NDArray[np.bool_]:
        everywhere = [ANYWHERE in names for _, _, names in self._scopes]
        lived = np.tile(np.array(everywhere, dtype=np.bool_), (len(members), 1))
        if all(everywhere):
            return lived
        keys = [member.encode() if isinstance(member, str) else b"" for member in members]
        ids = [place for place, member in enumerate(members) if _is_id(member)]
        for found in self._snapshot.records.find(TextKeys.of([keys[place] for place in ids])):
            raws = found.segment.records_at(found.positions)
            for row, raw in zip(found.rows.tolist(), raws, strict=True):
                lived[ids[row]] |= self._lived_in(raw, keys[ids[row]])
        for place, key in enumerate(keys):
            if self._snapshot.is_quarantined(key):
                lived[place] = True
        return lived

    def _lived_in(self, raw: bytes, key: bytes) -> npt.NDArray[np.bool_] | bool:
        """Per scope, whether the member lived in it when the order's cause was recorded, or at any
        time since.

        True also where that is not known any more: the record is damaged or folded.
        """
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            return True
        moves = [fact for fact in record.facts if fact.kind in RELOCATION_FACTS]
        found = np.zeros(len(self._scopes), dtype=np.bool_)
        for number, (recorded_at, _, names) in enumerate(self._scopes):
            since = [fact.name for fact in moves if fact.recorded_at > recorded_at]
            before = [fact.name for fact in moves if fact.recorded_at <= recorded_at][-1:]
            found[number] = record.folded_recorded_at > recorded_at or any(
                not names.isdisjoint(self._holders_of(code)) for code in (*before, *since)
            )
        return found

    def _holders_of(self, code: str) -> frozenset[str]:
        found = self._holders.get(code)
        if found is None:
            found = self._holders[code] = self._snapshot.controls.jurisdictions.holders(
                code, at=self._now
            )
        return found


def _is_id(member: Any) -> bool:
    return isinstance(member, str) and MEMBER_ID_PATTERN.fullmatch(member) is not None


class ExcludedSelector:
    """The rows that may not be used for a purpose now.

    Rows that are excluded only because something is not known (no member id, a quarantined member,
    an unknown jurisdiction) go only with `purge_unknown`; otherwise they are counted. Raises
    Unavailable while the judge is not fresh: to a stale judge everybody is excluded, and that must
    never empty a data set.
    """

    def __init__(self, decider: Decider, purpose: str, *, purge_unknown: bool = False) -> None:
        self._decider = decider
        self._purpose = purpose
        self._purge_unknown = purge_unknown
        self._is_excluded = np.array(
            [not reason.allows and reason not in UNKNOWN_REASONS for reason in REASONS]
        )
        self._is_unknown = np.array([reason in UNKNOWN_REASONS for reason in REASONS])

    def __getstate__(self) -> dict[str, Any]:
        decider = self._decider
        if not isinstance(decider, SnapshotDecider):
            raise Refused(
                f"The judge {type(decider).__name__} cannot work in another process.",
                code="purge.not_portable",
                fix="give a judge by a view that stands still",
            )
        still = copy(decider)
        still.snapshot = _without_memory(decider.snapshot)
        return self.__dict__ | {"_decider": still}

    @property
    def order_ids(self) -> Sequence[str]:
        """See Cover."""
        return (f"excluded:{self._purpose}",)

    def of(self, table: pa.Table, columns: Columns) -> Selection:
        """See Cover."""
        check_columns(table.column_names, columns)
        decisions = self._decider.decide_table(table, purpose=self._purpose, columns=columns)
        if (decisions.reasons == REASONS.index(Reason.STALE)).any():
            raise Unavailable(
                f"Who is excluded from {self._purpose} is not known now: "
                f"{self._decider.stale_detail or 'stale'}.",
                code="purge.stale",
                fix="check that the processor runs, or take a newer bundle; nothing more is "
                "removed until then",
            )
        unknown = self._is_unknown[decisions.reasons]
        excluded = self._is_excluded[decisions.reasons]
        if self._purge_unknown:
            excluded = excluded | unknown
        first = np.where(excluded, np.int32(0), np.int32(NOBODY))
        return Selection(first, 0 if self._purge_unknown else int(unknown.sum()))


class JointSelector:
    """Several covers at once: a row is counted for the first that covers it."""

    def __init__(self, covers: Sequence[RowSelector]) -> None:
        self._covers = tuple(covers)

    @property
    def order_ids(self) -> Sequence[str]:
        """See Cover."""
        return tuple(name for selector in self._covers for name in selector.order_ids)

    def of(self, table: pa.Table, columns: Columns) -> Selection:
        """See Cover."""
        first, unknown, offset = np.full(table.num_rows, NOBODY, dtype=np.int32), 0, 0
        for selector in self._covers:
            found = selector.of(table, columns)
            fresh = (first < 0) & (found.first >= 0)
            first[fresh] = found.first[fresh] + offset
            # A row of unknown owner that an earlier cover removes is still counted: too many rather
            # than too few.
            unknown += found.unknown
            offset += len(selector.order_ids)
        return Selection(first, unknown)


def _without_memory(snapshot: Snapshot) -> Snapshot:
    """The same records and controls, in a form that can be sent to other processes: what was
    remembered is not.
    """
    bare = copy(snapshot)
    bare._member_classes = {}
    return bare


def _member_texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The members of a column as text; integers are member ids in decimal digits.

    Raises InvalidInput.
    """
    kind = value_type(column.type)
    if not (is_text_type(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InvalidInput(
            f"The member column {name!r} holds {kind}, not text or integers: no member could be "
            "found in it.",
            code="input.member_column",
            fix="store member ids as strings or integers",
        )
    return column if pa.types.is_string(column.type) else column.cast(kind).cast(pa.string())


def _category_is_in(table: pa.Table, order: PurgeOrder, columns: Columns) -> npt.NDArray[np.bool_]:
    """Per row, whether the order is about its category; a row without one is in any."""
    categories = order.scope.categories if order.scope else None
    if categories is None or columns.category is None:
        return np.ones(table.num_rows, dtype=np.bool_)
    column = table[columns.category].combine_chunks().cast(pa.string())
    found = pc.or_kleene(pc.is_in(column, value_set=pa.array(categories)), pc.is_null(column))
    mask: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return mask


def merged(*counts: Mapping[str, int]) -> dict[str, int]:
    """The sums of several counts by name."""
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total
