"""Deleting from a Parquet data set what purge orders name: each file is rewritten whole, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.errors import InvalidInput
from consentry.domain.events import RELOCATION_FACTS
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import Micros
from consentry.trainer.filter import Columns, check_columns, conventional_columns, encoded
from consentry.trainer.view import View
from consentry.wire.records import DamagedRecord, read_record

_TEMPORARY = ".consentry-purge-"


@dataclass(slots=True)
class PurgeResult:
    """What a purge did: rows removed per order, and the data set's version before and after."""

    version_before: str
    version_after: str = ""
    rows_removed: dict[str, int] = field(default_factory=dict)
    files_rewritten: int = 0


def dataset_files(directory: Path) -> list[Path]:
    """The Parquet files of a data set, in order of name. Raises InvalidInput where there is no such directory."""
    if not directory.is_dir():
        raise InvalidInput(
            f"The data set {str(directory)!r} is not a directory.",
            code="input.dataset",
            fix="name the directory that holds the Parquet files",
        )
    return sorted(path for path in _files(directory) if path.suffix == ".parquet")


def _files(directory: Path) -> list[Path]:
    """What a reader would take for data: no hidden files, none of our own."""
    return [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith((".", "_"))]


def _check_understood(directory: Path) -> None:
    """Raise InvalidInput where a file could hold rows that we would not see: nothing may be called purged then."""
    for path in _files(directory):
        if path.suffix != ".parquet":
            raise InvalidInput(
                f"The data set holds {path.name!r}, which is not a .parquet file: its rows cannot be looked at.",
                code="input.dataset",
                fix="rename it to .parquet if it is one, else keep it elsewhere",
            )


def _check_member_column(table: pa.Table, name: str) -> None:
    kind = table.schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) and not (
        pa.types.is_null(kind)
    ):
        raise InvalidInput(
            f"The member column {name!r} holds {kind}, not text: no member could be found in it.",
            code="input.member_column",
            fix="store member ids as strings",
        )


def dataset_version(directory: Path) -> str:
    """Identity of a data set's content: a digest over each file's name, size and Parquet footer."""
    digest = hashlib.blake2b(digest_size=16)
    for path in dataset_files(directory):
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            digest.update(f"{path.relative_to(directory)}\n{path.stat().st_size}\n".encode() + file.read(length))
    return digest.hexdigest()


def purge(
    directory: Path, orders: Sequence[PurgeOrder], view: View, *, now: Micros, columns: Columns | None = None
) -> PurgeResult:
    """Rewrite every file that holds rows of the orders, without them. Idempotent; `now` in microseconds.

    Without `columns` each file's columns are found by their conventional names.

    A file is replaced in one step after its successor is on disk: killed anywhere, each file is the old or the new
    one, and running again finishes the rest.
    """
    _remove_leftovers(directory)
    _check_understood(directory)
    result = PurgeResult(
        version_before=dataset_version(directory), rows_removed={order.order_id: 0 for order in orders}
    )
    cover = _Cover(orders, view, now)
    for path in dataset_files(directory):
        table = read_file(path)
        covered_by = cover.first_order(table, columns or conventional_columns(table))
        is_covered = covered_by >= 0
        if not is_covered.any():
            continue
        for place, count in zip(*np.unique(covered_by[is_covered], return_counts=True), strict=True):
            result.rows_removed[orders[int(place)].order_id] += int(count)
        _replace(path, table.filter(pa.array(~is_covered)))
        result.files_rewritten += 1
    result.version_after = dataset_version(directory)
    return result


def _replace(path: Path, table: pa.Table) -> None:
    # Not *.parquet: a reader that takes every such file must never meet a half-written one.
    temporary = path.with_name(f"{_TEMPORARY}{path.name}.tmp")
    pq.write_table(table, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove_leftovers(directory: Path) -> None:
    for path in directory.rglob(f"{_TEMPORARY}*"):
        path.unlink()


class _Cover:
    """Which rows the orders name."""

    def __init__(self, orders: Sequence[PurgeOrder], view: View, now: Micros) -> None:
        self._by_member: dict[str, list[int]] = {}
        self._scopes: list[tuple[int, frozenset[str], PurgeOrder]] = []
        self._view = view
        self._now = now
        for place, order in enumerate(orders):
            if order.member is not None:
                self._by_member.setdefault(order.member, []).append(place)
            elif order.scope is not None:
                self._scopes.append((place, frozenset(order.scope.jurisdictions), order))

    def first_order(self, table: pa.Table, columns: Columns) -> npt.NDArray[np.int64]:
        """Per row, the place of the first order that covers it, or -1. Raises InvalidInput for a missing column."""
        check_columns(table, columns)
        _check_member_column(table, columns.member)
        covered = np.full(table.num_rows, -1, dtype=np.int64)
        if table.num_rows == 0:
            return covered
        members, codes = encoded(table[columns.member])
        own = np.array([self._by_member.get(member, [-1])[0] for member in members], dtype=np.int64)
        covered = own[codes]
        for place, scope, order in self._scopes:
            lived = [self._lived_in(member, scope, order.recorded_at) for member in members]
            hit = np.array(lived, dtype=np.bool_)[codes]
            hit |= self._row_is_in(table, scope, columns)
            hit &= _category_is_in(table, order, columns)
            covered = np.where((covered < 0) & hit, place, covered)
        return covered

    def _lived_in(self, member: Any, scope: frozenset[str], recorded_at: Micros) -> bool:
        """Whether the member lived in the scope when the order's cause was recorded, or at any time since.

        True also where that is not known any more: the member is held, the record damaged or folded.
        """
        key = member.encode() if isinstance(member, str) else b""
        if self._view.is_held(key):
            return True
        raw = self._view.records.get(key)
        if raw is None:
            return "*" in scope
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            return True
        if record.folded_recorded_at > recorded_at:
            return True
        moves = [fact for fact in record.facts if fact.kind in RELOCATION_FACTS]
        since = [fact for fact in moves if fact.recorded_at > recorded_at]
        before = [fact for fact in moves if fact.recorded_at <= recorded_at][-1:]
        holders = self._view.controls.jurisdictions.holders
        return "*" in scope or any(not scope.isdisjoint(holders(fact.name, at=self._now)) for fact in (*before, *since))

    def _row_is_in(self, table: pa.Table, scope: frozenset[str], columns: Columns) -> npt.NDArray[np.bool_]:
        if columns.jurisdiction is None:
            return np.zeros(table.num_rows, dtype=np.bool_)
        places, codes = encoded(table[columns.jurisdiction])
        known = self._view.controls.jurisdictions
        inside = [
            isinstance(place, str) and not scope.isdisjoint(known.holders(place, at=self._now)) for place in places
        ]
        return np.array(inside, dtype=np.bool_)[codes]


def _category_is_in(table: pa.Table, order: PurgeOrder, columns: Columns) -> npt.NDArray[np.bool_]:
    """Per row, whether the order is about its category; a row without one is in any."""
    categories = order.scope.categories if order.scope else None
    if categories is None or columns.category is None:
        return np.ones(table.num_rows, dtype=np.bool_)
    column = table[columns.category].combine_chunks().cast(pa.string())
    found = pc.or_kleene(pc.is_in(column, value_set=pa.array(categories)), pc.is_null(column))
    mask: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return mask


def read_file(path: Path) -> pa.Table:
    """The table of one Parquet file, opened once: reading by path opens it twice, and it may be replaced in between."""
    with path.open("rb") as file:
        return pq.read_table(file)


def read_dataset(directory: Path) -> Iterator[tuple[Path, pa.Table]]:
    """Each file of a data set and its table."""
    for path in dataset_files(directory):
        yield path, read_file(path)
