"""What the table formats that keep versions have in common: files are never changed, a commit
replaces some of them.
"""

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
from consentry.trainer.purge.journal import Total, order_key
from consentry.trainer.purge.row_selector import RowSelector, merged

_ATTEMPTS_MAX: Final = 10


class Conflict(Exception):
    """Another commit came first: nothing of ours is in the table."""


class Gone(Exception):
    """A file of an old version is not there any more."""


@dataclass(frozen=True, slots=True)
class Unopened:
    """An older version that should be readable and could not be opened: nobody can say what it
    holds.
    """

    id: str
    why: str


class Version(Protocol):
    """One version of a table, as it was read."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each of its data files, by path."""
        ...

    def look(self, path: str, selector: RowSelector) -> FileResult:
        """Look into one file. Raises InvalidInput, OSError, ArrowException."""
        ...

    def commit(
        self, done: list[FileResult], selector: RowSelector, rows: Mapping[str, int]
    ) -> None:
        """Replace these files by ones without the covered rows, in one transaction that keeps
        `rows` by order key.

        Raises Conflict where another commit came first.
        """
        ...


class Versions(Protocol):
    """A table."""

    def newest(self) -> Version:
        """Its version now."""
        ...

    def older(self) -> Iterator[Version | Unopened]:
        """The others that can still be read, newest first; those that should be and cannot, as
        Unopened.
        """
        ...

    def strays(self, named: Collection[str]) -> Collection[str]:
        """Data files that lie there and that neither `named` nor the newest version has.

        Raises OSError.
        """
        ...

    def totals(self) -> Mapping[str, Total]:
        """By order key, the rows that earlier commits removed."""
        ...

    def vacuum(self) -> tuple[str, ...]:
        """Destroy what only the others hold; which ones."""
        ...


class VersionedTable:
    """A Dataset of a format that keeps versions."""

    def __init__(self, name: str, versions: Versions) -> None:
        self._name = name
        self._versions = versions

    keeps_versions = True

    @property
    def name(self) -> str:
        """See Dataset."""
        return self._name

    def version(self) -> str:
        """See Dataset."""
        return self._versions.newest().id

    def vacuum(self) -> tuple[str, ...]:
        """See Dataset."""
        return self._versions.vacuum()

    def plan(self, selector: RowSelector, progress: Progress = no_progress) -> PurgePlan:
        """See Dataset."""
        version = self._versions.newest()
        found = list(_look(version, selector, progress, frozenset()))
        return PurgePlan(
            version=version.id,
            files=tuple(
                FilePlan(one.name, one.rows, version.files[one.name], one.covered)
                for one in found
                if one.covered
            ),
            files_looked_at=len(found),
            rows_looked_at=sum(one.rows for one in found),
            unknown=sum(one.unknown for one in found),
        )

    def apply(self, selector: RowSelector, progress: Progress = no_progress) -> PurgeResult:
        """See Dataset.

        What others commit meanwhile stays, and is looked through too before this returns.
        """
        result: PurgeResult | None = None
        clean: dict[str, int] = {}
        for _attempt in range(_ATTEMPTS_MAX):
            version = self._versions.newest()
            if result is None:
                result = PurgeResult(
                    version_before=version.id, rows_removed=dict.fromkeys(selector.order_ids, 0)
                )
            try:
                found = list(_look(version, selector, progress, clean.keys()))
                clean |= {one.name: one.unknown for one in found if not one.covered}
                touched = [one for one in found if one.covered]
                if not touched:
                    result.version_after = version.id
                    result.unknown = sum(clean[path] for path in version.files)
                    self._tell_totals(result, selector)
                    return result
                counts = merged(*(one.covered for one in touched))
                version.commit(
                    touched, selector, {order_key(order): rows for order, rows in counts.items()}
                )
            except (Conflict, Gone, FileNotFoundError):
                continue
            result.rows_removed = merged(result.rows_removed, counts)
            result.files_rewritten += len(touched)
            result.bytes_rewritten += sum(version.files[one.name] for one in touched)
        raise DatasetChanged(
            f"Others committed to {self._name!r} {_ATTEMPTS_MAX} times while it was purged; what "
            "they wrote is there."
        )

    def _tell_totals(self, result: PurgeResult, selector: RowSelector) -> None:
        totals = self._versions.totals()
        for order in selector.order_ids:
            total = totals.get(order_key(order), Total())
            result.rows_in_all[order] = total.rows
            result.versions_first[order] = total.version_before or result.version_before

    def verify(
        self, selector: RowSelector, progress: Progress = no_progress, *, old_versions: bool = True
    ) -> Verified:
        """See Dataset."""
        version = self._versions.newest()
        found, unreadable = _tolerant(version, selector, progress, frozenset(version.files))
        left = merged(*(one.covered for one in found))
        old: dict[str, int] = {}
        if old_versions:
            by_file = {path: 0 for path in version.files}
            for older in self._versions.older():
                if isinstance(older, Unopened):
                    unreadable.append(f"the older version {older.id}: {older.why}")
                    continue
                looked, more = _tolerant(
                    older,
                    selector,
                    no_progress,
                    older.files.keys() - by_file.keys(),
                    skip_gone=True,
                )
                by_file |= dict.fromkeys(older.files.keys() - by_file.keys(), 0)
                by_file |= {one.name: sum(one.covered.values()) for one in looked}
                unreadable += more
                if rows := sum(by_file[path] for path in older.files):
                    old[older.id] = rows
            unreadable += self._strays(version, selector, by_file)
        return Verified(
            version=version.id,
            files=len(version.files),
            rows=sum(one.rows for one in found),
            rows_left=left,
            unknown=sum(one.unknown for one in found),
            unreadable=tuple(sorted(unreadable)),
            old_versions=old,
        )

    def _strays(self, version: Version, selector: RowSelector, named: Collection[str]) -> list[str]:
        """Why it cannot be told that files are clean that lie there though no version that was
        opened names them.

        Their log was cleaned away, or never written: no reader of the table sees them, but the rows
        are on the disk.
        """
        looked, why = _tolerant(
            version, selector, no_progress, self._versions.strays(named), skip_gone=True
        )
        for one in looked:
            if rows := sum(one.covered.values()) + one.unknown:
                why.append(
                    f"{one.name}: no log that can be read names it, and it holds {rows:,} rows "
                    "that may have to go"
                )
        return why


def _look_at(version: Version, path: str, selector: RowSelector) -> FileResult:
    """Look into one file. Raises InvalidInput where it cannot be read, Gone where it is not
    there.
    """
    try:
        return version.look(path, selector)
    except FileNotFoundError as error:
        raise Gone(path) from error
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(
            f"The file {path!r} cannot be read: {type(error).__name__}.",
            code="input.dataset",
            fix="mend it, or take it out of the table",
        ) from error


def _look(
    version: Version, selector: RowSelector, progress: Progress, known: Collection[str]
) -> Iterator[FileResult]:
    """Look into the files that are not known yet. Raises InvalidInput, Gone."""
    paths = [path for path in sorted(version.files) if path not in known]
    for number, path in enumerate(paths, 1):
        yield _look_at(version, path, selector)
        progress(number, len(paths))


def _tolerant(
    version: Version,
    selector: RowSelector,
    progress: Progress,
    paths: Collection[str],
    *,
    skip_gone: bool = False,
) -> tuple[list[FileResult], list[str]]:
    """What was found in the files that can be read, and why the others cannot."""
    found, unreadable = [], []
    for number, path in enumerate(sorted(paths), 1):
        try:
            found.append(_look_at(version, path, selector))
        except Gone:
            if not skip_gone:
                unreadable.append(f"{path}: it is not there")
        except InvalidInput as error:
            unreadable.append(f"{path}: {error.message}")
        progress(number, len(paths))
    return found, unreadable
