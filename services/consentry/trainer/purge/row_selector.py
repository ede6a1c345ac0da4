"""Select the rows that a purge removes: those that purge orders name, and the excluded ones."""

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

NOT_SELECTED: Final = -1
UNKNOWN_REASONS: Final = frozenset(
    {Reason.QUARANTINED, Reason.HISTORY_FOLDED, Reason.JURISDICTION_UNKNOWN}
)
"""The reasons that say that something is not known, but may be known tomorrow: no reason to
destroy a row.
"""

_Mask = npt.NDArray[np.bool_]


class Selection(NamedTuple):
    """The rows of one table that a purge has to remove.

    `order_indices` has for each row the index of the first order that selects it, or NOT_SELECTED.
    `unknown` counts the rows of unknown owner that stay.
    """

    order_indices: npt.NDArray[np.int32]
    unknown: int = 0

    @property
    def keep(self) -> _Mask:
        """True for each row of the table that a purge keeps."""
        mask: _Mask = self.order_indices < 0
        return mask

    def counts(self, order_ids: Sequence[str]) -> dict[str, int]:
        """Return the number of rows that each purge order selects, without zeros.

        `order_ids` are those of the selector.
        """
        selected = self.order_indices[self.order_indices >= 0]
        indices, numbers = np.unique(selected, return_counts=True)
        counts: dict[str, int] = {}
        for index, number in zip(indices.tolist(), numbers.tolist(), strict=True):
            counts[order_ids[index]] = number
        return counts


class RowSelector(Protocol):
    """Selects the rows that a purge has to remove."""

    @property
    def order_ids(self) -> Sequence[str]:
        """The names that a purge removes rows for, by the index that a Selection has."""
        ...

    def select_rows(self, table: pa.Table, columns: Columns) -> Selection:
        """Return which rows of a table a purge has to remove.

        Raises InvalidInput for a missing column, Unavailable where nobody can say now.
        """
        ...


class OrdersSelector:
    """Selects the rows that purge orders name, to be removed.

    `now` is in microseconds. What depends on the snapshot is read when a table is examined.
    """

    def __init__(self, orders: Sequence[PurgeOrder], snapshot: Snapshot, now: Micros) -> None:
        self._order_ids = tuple(order.order_id for order in orders)
        self._snapshot = snapshot
        self._now = now
        index_by_member: dict[str, int] = {}
        self._scopes: list[tuple[int, PurgeOrder, Scope]] = []
        for index, order in enumerate(orders):
            if order.member is not None:
                index_by_member.setdefault(order.member, index)
            elif order.scope is not None:
                self._scopes.append((index, order, order.scope))
        scopes = [(order.recorded_at, scope) for _, order, scope in self._scopes]
        self._residents = _Residents(scopes, snapshot, now)
        self._members = pa.array(index_by_member, pa.string())
        # The last entry stands for every member that no order names.
        self._order_indices = np.array([*index_by_member.values(), NOT_SELECTED], dtype=np.int32)

    def __getstate__(self) -> dict[str, Any]:
        bare = _without_memory(self._snapshot)
        return self.__dict__ | {"_snapshot": bare, "_residents": self._residents.by(bare)}

    @property
    def order_ids(self) -> Sequence[str]:
        """The ids of the purge orders, by index; see RowSelector."""
        return self._order_ids

    def select_rows(self, table: pa.Table, columns: Columns) -> Selection:
        """Return which rows of a table the purge orders name; see RowSelector."""
        check_columns(table.column_names, columns)
        members = _member_texts(table[columns.member], columns.member)
        selected = np.full(table.num_rows, NOT_SELECTED, dtype=np.int32)
        if table.num_rows == 0:
            return Selection(selected)
        if len(self._members):
            positions = pc.index_in(members, value_set=self._members, skip_nulls=True)
            selected = self._order_indices[positions.fill_null(len(self._members)).to_numpy()]
        if self._scopes:
            self._select_by_scope(selected, members, table, columns)
        return Selection(selected)

    def _select_by_scope(
        self,
        selected: npt.NDArray[np.int32],
        members: pa.ChunkedArray,
        table: pa.Table,
        columns: Columns,
    ) -> None:
        """Add to `selected` the rows in the scope of an order that no earlier one selects."""
        distinct_members, codes = encoded(members)
        lived = self._residents.lived_in_scopes(distinct_members)
        for number, (index, order, scope) in enumerate(self._scopes):
            is_in_scope = lived[:, number][codes]
            is_in_scope |= self._is_from_scope(table, scope, columns)
            is_in_scope &= _is_in_categories(table, order, columns)
            selected[(selected < 0) & is_in_scope] = index

    def _is_from_scope(self, table: pa.Table, scope: Scope, columns: Columns) -> _Mask:
        """True for each row that names a jurisdiction of the scope itself."""
        if columns.jurisdiction is None:
            return np.zeros(table.num_rows, dtype=np.bool_)
        codes_of_rows, codes = encoded(table[columns.jurisdiction])
        jurisdictions = self._snapshot.controls.jurisdictions
        named = frozenset(scope.jurisdictions)
        is_inside = np.zeros(len(codes_of_rows), dtype=np.bool_)
        for position, code in enumerate(codes_of_rows):
            if isinstance(code, str):
                holders = jurisdictions.holders(code, at=self._now)
                is_inside[position] = not named.isdisjoint(holders)
        return is_inside[codes]


class _Residents:
    """The members who lived in some scopes; each member is looked up once.

    A scope comes with the time at which its order's cause was recorded.
    """

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
        """Return the same for another snapshot, with no member looked up yet."""
        scopes = [(recorded_at, scope) for recorded_at, scope, _ in self._scopes]
        return _Residents(scopes, snapshot, self._now)

    def lived_in_scopes(self, members: Sequence[Any]) -> _Mask:
        """Return a row for each member and a column for each scope: True where they lived in it."""
        new = [member for member in members if member not in self._rows]
        if new:
            start = len(self._rows)
            self._rows.update(zip(new, range(start, start + len(new)), strict=True))
            self._lived = np.concatenate([self._lived, self._look_up(new)])
        rows = np.fromiter(map(self._rows.__getitem__, members), dtype=np.int64, count=len(members))
        return self._lived[rows]

    def _look_up(self, members: Sequence[Any]) -> _Mask:
        everywhere = [ANYWHERE in names for _, _, names in self._scopes]
        lived = np.tile(np.array(everywhere, dtype=np.bool_), (len(members), 1))
        if all(everywhere):
            return lived
        keys = [member.encode() if isinstance(member, str) else b"" for member in members]
        rows_of_ids = [row for row, member in enumerate(members) if _is_id(member)]
        keys_of_ids = TextKeys.of([keys[row] for row in rows_of_ids])
        for matches in self._snapshot.records.find(keys_of_ids):
            records = matches.segment.records_at(matches.positions)
            for position, raw in zip(matches.rows.tolist(), records, strict=True):
                row = rows_of_ids[position]
                lived[row] |= self._lived_in(raw, keys[row])
        for row, key in enumerate(keys):
            if self._snapshot.is_quarantined(key):
                lived[row] = True
        return lived

    def _lived_in(self, raw: bytes, key: bytes) -> _Mask | bool:
        """Return for each scope whether the member lived in it since its order's cause.

        The last residence before the cause was recorded counts, and every one since. True also
        where it is not known any more: the record is damaged or folded.
        """
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            return True
        moves = [fact for fact in record.facts if fact.kind in RELOCATION_FACTS]
        lived = np.zeros(len(self._scopes), dtype=np.bool_)
        for number, (recorded_at, _, names) in enumerate(self._scopes):
            since = [fact.name for fact in moves if fact.recorded_at > recorded_at]
            before = [fact.name for fact in moves if fact.recorded_at <= recorded_at]
            homes = [*before[-1:], *since]
            is_folded = record.folded_recorded_at > recorded_at
            lived[number] = is_folded or self._is_any_inside(homes, names)
        return lived

    def _is_any_inside(self, codes: Sequence[str], names: frozenset[str]) -> bool:
        return any(not names.isdisjoint(self._holders_of(code)) for code in codes)

    def _holders_of(self, code: str) -> frozenset[str]:
        holders = self._holders.get(code)
        if holders is None:
            jurisdictions = self._snapshot.controls.jurisdictions
            holders = self._holders[code] = jurisdictions.holders(code, at=self._now)
        return holders


def _is_id(member: Any) -> bool:
    return isinstance(member, str) and MEMBER_ID_PATTERN.fullmatch(member) is not None


class ExcludedSelector:
    """Selects for a purge the rows that may not be used for a purpose now.

    Rows that are excluded only because something is not known (no member id, a quarantined member,
    an unknown jurisdiction) go only with `purge_unknown`; otherwise they are counted. Raises
    Unavailable while the decider is not fresh: by a stale decider everybody is excluded, and that
    must never empty a data set.
    """

    def __init__(self, decider: Decider, purpose: str, *, purge_unknown: bool = False) -> None:
        self._decider = decider
        self._purpose = purpose
        self._purge_unknown = purge_unknown
        self._is_unknown = np.array([reason in UNKNOWN_REASONS for reason in REASONS])
        is_allowed = np.array([reason.allows for reason in REASONS])
        self._is_excluded = ~is_allowed & ~self._is_unknown

    def __getstate__(self) -> dict[str, Any]:
        decider = self._decider
        if not isinstance(decider, SnapshotDecider):
            raise Refused(
                f"The decider {type(decider).__name__} cannot work in another process.",
                code="purge.not_portable",
                fix="give a decider by a snapshot that stands still",
            )
        still = copy(decider)
        still.snapshot = _without_memory(decider.snapshot)
        return self.__dict__ | {"_decider": still}

    @property
    def order_ids(self) -> Sequence[str]:
        """The one name that a purge removes excluded rows for; see RowSelector."""
        return (f"excluded:{self._purpose}",)

    def select_rows(self, table: pa.Table, columns: Columns) -> Selection:
        """Return which rows of a table are excluded, to purge; see RowSelector."""
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
        is_unknown = self._is_unknown[decisions.reasons]
        is_selected = self._is_excluded[decisions.reasons]
        if self._purge_unknown:
            is_selected = is_selected | is_unknown
            unknown = 0
        else:
            unknown = int(is_unknown.sum())
        order_indices = np.where(is_selected, np.int32(0), np.int32(NOT_SELECTED))
        return Selection(order_indices, unknown)


class JointSelector:
    """Several row selectors of a purge at once: a row counts for the first that selects it."""

    def __init__(self, selectors: Sequence[RowSelector]) -> None:
        self._selectors = tuple(selectors)

    @property
    def order_ids(self) -> Sequence[str]:
        """The names of all the purge's selectors, in order; see RowSelector."""
        order_ids: list[str] = []
        for selector in self._selectors:
            order_ids += selector.order_ids
        return tuple(order_ids)

    def select_rows(self, table: pa.Table, columns: Columns) -> Selection:
        """Return which rows any of the purge's selectors selects; see RowSelector."""
        order_indices = np.full(table.num_rows, NOT_SELECTED, dtype=np.int32)
        unknown = index_start = 0
        for selector in self._selectors:
            selection = selector.select_rows(table, columns)
            is_new = (order_indices < 0) & (selection.order_indices >= 0)
            order_indices[is_new] = selection.order_indices[is_new] + index_start
            # A row of unknown owner that an earlier selector removes is still counted: too many
            # rather than too few.
            unknown += selection.unknown
            index_start += len(selector.order_ids)
        return Selection(order_indices, unknown)


def _without_memory(snapshot: Snapshot) -> Snapshot:
    """Return the same records and controls without remembered answers, to send to a process."""
    bare = copy(snapshot)
    bare._member_classes = {}
    return bare


def _member_texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return the members of a column as texts; integers are member ids in decimal digits.

    Raises InvalidInput for any other type: a purge that finds nobody must not look done.
    """
    kind = value_type(column.type)
    if not (is_text_type(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InvalidInput(
            f"The member column {name!r} holds {kind}, not text or integers: no member could be "
            "found in it.",
            code="input.member_column",
            fix="store member ids as strings or integers",
        )
    if pa.types.is_string(column.type):
        return column
    return column.cast(kind).cast(pa.string())


def _is_in_categories(table: pa.Table, order: PurgeOrder, columns: Columns) -> _Mask:
    """True for each row whose category the order is about; a row without one is in any."""
    categories = order.scope.categories if order.scope else None
    if categories is None or columns.category is None:
        return np.ones(table.num_rows, dtype=np.bool_)
    column = table[columns.category].combine_chunks().cast(pa.string())
    is_named = pc.is_in(column, value_set=pa.array(categories))
    mask: _Mask = pc.or_kleene(is_named, pc.is_null(column)).to_numpy(zero_copy_only=False)
    return mask


def sum_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums of several counts of purged rows, by order."""
    total: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            total[name] = total.get(name, 0) + number
    return total
