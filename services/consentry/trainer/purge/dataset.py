"""What every kind of data set answers when it is planned, purged and looked through again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from consentry.domain.errors import Unavailable
from consentry.trainer.purge.row_selector import RowSelector

Progress = Callable[[int, int], None]
"""Told how many files are done, of how many."""

UNKNOWN: Final = "unknown"


def no_progress(_done: int, _files: int) -> None:
    """For who does not look."""


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file that holds rows to remove: its rows and bytes, and the rows to remove by order."""

    name: str
    rows: int
    bytes: int
    covered: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgePlan:
    """What a purge would do to this version;

    `unknown` rows are kept, as nobody can say whose they are.
    """

    version: str
    files: tuple[FilePlan, ...]
    files_looked_at: int
    rows_looked_at: int
    unknown: int

    def covered(self, order_id: str) -> tuple[int, int, int]:
        """(files, rows, bytes of these files) that one order touches."""
        touched = [file for file in self.files if order_id in file.covered]
        return (
            len(touched),
            sum(file.covered[order_id] for file in touched),
            sum(file.bytes for file in touched),
        )


@dataclass(slots=True, kw_only=True)
class PurgeResult:
    """What a purge did.

    `rows_removed` are the rows of this run by order id; `rows_in_all` those of this and every
    earlier run, also of one that was killed, and `versions_first` the version before the first of
    them.
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
    """What is left: rows by order id, rows of unknown owner, files that nobody could look into, old
    versions by rows.

    `rows_left` holds only orders that have any.
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
        """0 clean, 1 rows are left, 2 cannot tell."""
        if self.rows_left or self.old_versions:
            return 1
        return 2 if self.unreadable or self.unknown else 0


class DatasetChanged(Unavailable):
    """Somebody else wrote to the data set meanwhile: what was not swapped yet is as it was, and may
    be tried again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            code="purge.dataset_changed",
            fix="let the writer finish, then run the same command again",
        )


class Dataset(Protocol):
    """Something that holds rows in files: a directory, or a table of a format that keeps
    versions.
    """

    @property
    def name(self) -> str:
        """As receipts name it."""
        ...

    @property
    def keeps_versions(self) -> bool:
        """Whether rows that were removed can be read in older versions until these are vacuumed."""
        ...

    def version(self) -> str:
        """Identity of its content now."""
        ...

    def plan(self, selector: RowSelector, progress: Progress = no_progress) -> PurgePlan:
        """What a purge would do; writes nothing.

        Raises InvalidInput where a file cannot be understood.
        """
        ...

    def apply(self, selector: RowSelector, progress: Progress = no_progress) -> PurgeResult:
        """Remove the covered rows. Idempotent, and killed at any point it can be run again.

        Raises DatasetChanged where somebody else wrote to it meanwhile, InvalidInput as `plan`.
        """
        ...

    def verify(
        self, selector: RowSelector, progress: Progress = no_progress, *, old_versions: bool = True
    ) -> Verified:
        """Look at every row again, in old versions too if asked; a file that cannot be read is
        named, not raised.
        """
        ...

    def vacuum(self) -> tuple[str, ...]:
        """Destroy the old versions; which ones. Raises Refused where none are kept."""
        ...
