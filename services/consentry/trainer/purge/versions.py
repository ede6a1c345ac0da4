"""Purge a table of a format that keeps versions (Delta, Iceberg): commits replace its files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.trainer.purge.dataset import (
    DatasetChanged,
    FilePlan,
    Progress,
    PurgePlan,
    PurgeResult,
    Verified,
    no_progress,
)
from consentry.trainer.purge.file_worker import FileResult
from consentry.trainer.purge.journal import OrderTotal, order_key
from consentry.trainer.purge.row_selector import RowSelector, sum_counts

_ATTEMPTS_MAX: Final = 10


class Conflict(Exception):
    """Raised where another commit to a table that is purged came first: nothing is written."""


class FileVanished(Exception):
    """Raised where a file of an older version of a purged table is not there any more."""


@dataclass(frozen=True, slots=True)
class UnopenedVersion:
    """An older version of a purged table that should open and did not.

    Nobody can say which rows it holds.
    """

    id: str
    why: str


class Version(Protocol):
    """One version of a Delta or Iceberg table that is purged, as it was read."""

    @property
    def id(self) -> str:
        """The name of this version of the table."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """The bytes of each data file of this version of the table, by path."""
        ...

    def examine(self, path: str, selector: RowSelector) -> FileResult:
        """Examine one file of a table to purge. Raises InvalidInput, OSError, ArrowException."""
        ...

    def commit(
        self, files: list[FileResult], selector: RowSelector, rows: Mapping[str, int]
    ) -> None:
        """Purge in one transaction: replace these files by ones without the selected rows.

        The transaction also records `rows`, the number of removed rows by order key. Raises
        Conflict where another commit came first.
        """
        ...


class Versions(Protocol):
    """The versions of a Delta or Iceberg table that is purged."""

    def newest(self) -> Version:
        """Return the version that the purged table has now."""
        ...

    def older(self) -> Iterator[Version | UnopenedVersion]:
        """Yield the older versions of the purged table, newest first.

        One that should be readable and cannot be opened is an UnopenedVersion.
        """
        ...

    def stray_files(self, named: Collection[str]) -> Collection[str]:
        """Return a purged table's files on disk that no version names.

        They are neither in `named` nor in the newest version. Raises OSError.
        """
        ...

    def totals(self) -> Mapping[str, OrderTotal]:
        """Return the rows that earlier purges of the table removed, by order key."""
        ...

    def vacuum(self) -> tuple[str, ...]:
        """Destroy what only older versions of a purged table hold; return the names."""
        ...


class VersionedTable:
    """A Delta or Iceberg table that can be purged: a Dataset that keeps versions."""

    keeps_versions = True

    def __init__(self, name: str, versions: Versions) -> None:
        self._name = name
        self._versions = versions

    @property
    def name(self) -> str:
        """The name that a purge's receipts give the table; see Dataset."""
        return self._name

    def version(self) -> str:
        """Return the table's version now; see Dataset."""
        return self._versions.newest().id

    def vacuum(self) -> tuple[str, ...]:
        """Destroy older versions of the purged table; see Dataset."""
        return self._versions.vacuum()

    def plan(self, selector: RowSelector, progress: Progress = no_progress) -> PurgePlan:
        """Return what a purge of the table would do; see Dataset."""
        version = self._versions.newest()
        results = list(_examine_new(version, selector, progress, frozenset()))
        files: list[FilePlan] = []
        rows = unknown = 0
        for result in results:
            rows += result.rows
            unknown += result.unknown
            if result.selected:
                size = version.files[result.name]
                files.append(FilePlan(result.name, result.rows, size, result.selected))
        return PurgePlan(
            version=version.id,
            files=tuple(files),
            files_looked_at=len(results),
            rows_looked_at=rows,
            unknown=unknown,
        )

    def apply(self, selector: RowSelector, progress: Progress = no_progress) -> PurgeResult:
        """Purge the table of the selected rows; see Dataset.

        What others commit meanwhile stays, and is examined too before this returns.
        """
        result: PurgeResult | None = None
        unknown_of_clean_files: dict[str, int] = {}
        for _attempt in range(_ATTEMPTS_MAX):
            version = self._versions.newest()
            if result is None:
                result = PurgeResult(
                    version_before=version.id, rows_removed=dict.fromkeys(selector.order_ids, 0)
                )
            touched: list[FileResult] = []
            try:
                for file in _examine_new(version, selector, progress, {*unknown_of_clean_files}):
                    if file.selected:
                        touched.append(file)
                    else:
                        unknown_of_clean_files[file.name] = file.unknown
                if not touched:
                    result.version_after = version.id
                    result.unknown = sum(unknown_of_clean_files[path] for path in version.files)
                    self._add_totals(result, selector)
                    return result
                rows = sum_counts(*(file.selected for file in touched))
                rows_by_key = {order_key(order_id): number for order_id, number in rows.items()}
                version.commit(touched, selector, rows_by_key)
            except (Conflict, FileVanished, FileNotFoundError):
                continue
            result.rows_removed = sum_counts(result.rows_removed, rows)
            result.files_rewritten += len(touched)
            result.bytes_rewritten += sum(version.files[file.name] for file in touched)
        raise DatasetChanged(
            f"Others committed to {self._name!r} {_ATTEMPTS_MAX} times while it was purged; what "
            "they wrote is there."
        )

    def _add_totals(self, result: PurgeResult, selector: RowSelector) -> None:
        totals = self._versions.totals()
        for order_id in selector.order_ids:
            total = totals.get(order_key(order_id), OrderTotal())
            result.rows_in_all[order_id] = total.rows
            result.versions_first[order_id] = total.version_before or result.version_before

    def verify(
        self, selector: RowSelector, progress: Progress = no_progress, *, old_versions: bool = True
    ) -> Verified:
        """Look for rows left in the table after a purge; see Dataset."""
        version = self._versions.newest()
        results, unreadable = _examine_all(version, selector, progress, frozenset(version.files))
        rows_by_old_version: dict[str, int] = {}
        if old_versions:
            rows_by_old_version = self._verify_older(version, selector, unreadable)
        rows = unknown = 0
        for result in results:
            rows += result.rows
            unknown += result.unknown
        rows_left = sum_counts(*[result.selected for result in results])
        return Verified(
            version=version.id,
            files=len(version.files),
            rows=rows,
            rows_left=rows_left,
            unknown=unknown,
            unreadable=tuple(sorted(unreadable)),
            old_versions=rows_by_old_version,
        )

    def _verify_older(
        self, newest: Version, selector: RowSelector, unreadable: list[str]
    ) -> dict[str, int]:
        """Return the selected rows of each older version that holds any.

        A file is examined once, however many versions share it; those of the newest version count
        there. Adds to `unreadable` what nobody can tell.
        """
        rows_by_version: dict[str, int] = {}
        rows_by_file = dict.fromkeys(newest.files, 0)
        for older in self._versions.older():
            if isinstance(older, UnopenedVersion):
                unreadable.append(f"the older version {older.id}: {older.why}")
                continue
            new = older.files.keys() - rows_by_file.keys()
            results, problems = _examine_all(older, selector, no_progress, new, skip_vanished=True)
            rows_by_file |= dict.fromkeys(new, 0)
            for result in results:
                rows_by_file[result.name] = sum(result.selected.values())
            unreadable += problems
            rows = sum(rows_by_file[path] for path in older.files)
            if rows:
                rows_by_version[older.id] = rows
        unreadable += self._examine_strays(newest, selector, rows_by_file)
        return rows_by_version

    def _examine_strays(
        self, version: Version, selector: RowSelector, named: Collection[str]
    ) -> list[str]:
        """Return the problems with data files on disk that no version that was opened names.

        Their log was cleaned away, or never written: no reader of the table sees them, but the rows
        are on the disk.
        """
        strays = self._versions.stray_files(named)
        results, problems = _examine_all(version, selector, no_progress, strays, skip_vanished=True)
        for result in results:
            rows = sum(result.selected.values()) + result.unknown
            if rows:
                problems.append(
                    f"{result.name}: no log that can be read names it, and it holds {rows:,} rows "
                    "that may have to go"
                )
        return problems


def _examine(version: Version, path: str, selector: RowSelector) -> FileResult:
    """Examine one file.

    Raises InvalidInput where it cannot be read, FileVanished where it is not there.
    """
    try:
        return version.examine(path, selector)
    except FileNotFoundError as error:
        raise FileVanished(path) from error
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(
            f"The file {path!r} cannot be read: {type(error).__name__}.",
            code="input.dataset",
            fix="mend it, or take it out of the table",
        ) from error


def _examine_new(
    version: Version, selector: RowSelector, progress: Progress, known: Collection[str]
) -> Iterator[FileResult]:
    """Examine the files that are not `known`. Raises InvalidInput, FileVanished."""
    paths = [path for path in sorted(version.files) if path not in known]
    for number, path in enumerate(paths, 1):
        yield _examine(version, path, selector)
        progress(number, len(paths))


def _examine_all(
    version: Version,
    selector: RowSelector,
    progress: Progress,
    paths: Collection[str],
    *,
    skip_vanished: bool = False,
) -> tuple[list[FileResult], list[str]]:
    """Examine these files; return the results, and a problem for each that cannot be read."""
    results: list[FileResult] = []
    problems: list[str] = []
    for number, path in enumerate(sorted(paths), 1):
        try:
            results.append(_examine(version, path, selector))
        except FileVanished:
            if not skip_vanished:
                problems.append(f"{path}: it is not there")
        except InvalidInput as error:
            problems.append(f"{path}: {error.message}")
        progress(number, len(paths))
    return results, problems
