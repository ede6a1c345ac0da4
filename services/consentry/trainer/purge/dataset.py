"""The interface of a data set that can be purged, and what its methods return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from consentry.domain.errors import Unavailable
from consentry.trainer.purge.row_selector import RowSelector

Progress = Callable[[int, int], None]
"""Called with the number of files that are done, and of all files."""


def no_progress(_done: int, _files: int) -> None:
    """Show nothing while a data set is purged: the Progress for callers that want none."""


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file that a purge would rewrite: its rows and bytes, and the rows to remove by order."""

    name: str
    rows: int
    bytes: int
    selected: Mapping[str, int]

    def as_fields(self) -> dict[str, Any]:
        """Return a purge's plan for one file as JSON fields; rows to remove are `covered`."""
        return {
            "name": self.name,
            "rows": self.rows,
            "bytes": self.bytes,
            "covered": dict(self.selected),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgePlan:
    """The work that a purge would do on one version of a data set.

    `files` are those that hold rows to remove. `unknown` rows are kept, as nobody can say whose
    they are.
    """

    version: str
    files: tuple[FilePlan, ...]
    files_looked_at: int
    rows_looked_at: int
    unknown: int

    def touched_by(self, order_id: str) -> tuple[int, int, int]:
        """Return the files, rows, and bytes of these files that one purge order touches."""
        files = rows = size_bytes = 0
        for file in self.files:
            if order_id in file.selected:
                files += 1
                rows += file.selected[order_id]
                size_bytes += file.bytes
        return files, rows, size_bytes


@dataclass(slots=True, kw_only=True)
class PurgeResult:
    """The outcome of a purge of one data set.

    `rows_removed` are the rows of this run by order id. `rows_in_all` are those of this and every
    earlier run, also of one that was killed. `versions_first` are the versions before the first of
    these.
    """

    version_before: str
    version_after: str = ""
    rows_removed: dict[str, int] = field(default_factory=dict)
    rows_in_all: dict[str, int] = field(default_factory=dict)
    versions_first: dict[str, str] = field(default_factory=dict)
    files_rewritten: int = 0
    bytes_rewritten: int = 0
    unknown: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The result of verifying a purge: the rows that a data set still holds wrongly.

    `rows_left` has the rows by order id, of orders that have any. `unknown` counts rows of unknown
    owner, `unreadable` says which files could not be read and why, and `old_versions` has the rows
    in older versions.
    """

    version: str
    files: int
    rows: int
    rows_left: Mapping[str, int]
    unknown: int = 0
    unreadable: tuple[str, ...] = ()
    old_versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """The purge's exit status: 0 if clean, 1 if rows are left, 2 if nobody can tell."""
        if self.rows_left or self.old_versions:
            return 1
        if self.unreadable or self.unknown:
            return 2
        return 0


class DatasetChanged(Unavailable):
    """Raised where somebody else wrote to a data set while it was purged.

    Files that were not replaced yet are as they were, and the purge may be run again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            code="purge.dataset_changed",
            fix="let the writer finish, then run the same command again",
        )


class Dataset(Protocol):
    """A data set that can be purged: a directory, or a table of a format that keeps versions."""

    @property
    def name(self) -> str:
        """The name that a purge's receipts give this data set."""
        ...

    @property
    def keeps_versions(self) -> bool:
        """True where removed rows stay readable in older versions until these are vacuumed."""
        ...

    def version(self) -> str:
        """Return the identity of this data set's content now."""
        ...

    def plan(self, selector: RowSelector, progress: Progress = no_progress) -> PurgePlan:
        """Return what a purge of this data set would do, without writing anything.

        Raises InvalidInput where a file cannot be understood.
        """
        ...

    def apply(self, selector: RowSelector, progress: Progress = no_progress) -> PurgeResult:
        """Purge the selected rows. It is idempotent: killed at any point it can be run again.

        Raises DatasetChanged where somebody else writes meanwhile, InvalidInput as `plan`.
        """
        ...

    def verify(
        self, selector: RowSelector, progress: Progress = no_progress, *, old_versions: bool = True
    ) -> Verified:
        """Look for rows left after a purge, with `old_versions` in older versions too.

        A file that cannot be read is named in the answer, not raised.
        """
        ...

    def vacuum(self) -> tuple[str, ...]:
        """Destroy older versions of purged data; return which. Raises Refused without any."""
        ...
