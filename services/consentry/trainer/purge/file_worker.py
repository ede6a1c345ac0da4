"""The work on one file of a Parquet directory: done here, or by Spark on the machine that the file
is given to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from consentry.domain.errors import ConsentryError, InvalidInput, Unavailable
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.purge.dataset import DatasetChanged
from consentry.trainer.purge.files import (
    Fingerprint,
    chunks,
    fingerprint,
    folder_values,
    open_native,
)
from consentry.trainer.purge.replace_files import sync_file
from consentry.trainer.purge.rewrite import check_same, rewrite
from consentry.trainer.purge.row_selector import RowSelector, merged


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """One file to look into, and to write anew as `staged` where it holds covered rows;

    None: only look.
    """

    directory: str
    name: str
    staged: str | None = None


@dataclass(slots=True, kw_only=True)
class FileResult:
    """What was found in one file: rows, covered rows by order id, rows of unknown owner, and what
    was staged.
    """

    name: str
    rows: int = 0
    covered: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    old: Fingerprint | None = None
    new: Fingerprint | None = None
    staged: str = ""
    notes: list[str] = field(default_factory=list)
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class FileWorker:
    """What all files are looked into with.

    It travels to other processes, so its cover has to as well.
    """

    selector: RowSelector
    columns: Columns | None = None
    tolerant: bool = False
    """Tell of a file that cannot be read instead of raising."""

    def __call__(self, task: FileTask) -> FileResult:
        """Look into one file. Raises InvalidInput, OSError, ArrowException unless tolerant."""
        path = Path(task.directory, task.name)
        try:
            return self._work(path, task)
        except (OSError, pa.ArrowException) as error:
            return self._unreadable(task, f"{task.name}: {type(error).__name__}", error)
        except InvalidInput as error:
            return self._unreadable(task, f"{task.name}: {error.message}", error)

    def _unreadable(self, task: FileTask, why: str, error: Exception) -> FileResult:
        if not self.tolerant:
            if isinstance(error, ConsentryError):
                raise error
            if isinstance(error, FileNotFoundError):
                raise DatasetChanged(
                    f"The file {task.name!r} vanished while it was looked into."
                ) from error
            raise InvalidInput(
                f"The file {task.name!r} cannot be read: {type(error).__name__}.",
                code="input.dataset",
                fix="mend it, or take it out of the data set",
            ) from error
        return FileResult(name=task.name, unreadable=why)

    def _work(self, path: Path, task: FileTask) -> FileResult:
        done = FileResult(name=task.name, old=fingerprint(path))
        try:
            with open_native(path) as file:
                old = pq.ParquetFile(file)
                keep = look(old, self.selector, self.columns, done, folder_values(task.name))
                if task.staged is not None and done.covered:
                    self._stage(path, old, keep, Path(task.staged), done)
        except (OSError, pa.ArrowException, InvalidInput):
            _expect_unchanged(
                path, done
            )  # what somebody overwrites cannot be read, and that is no damage
            raise
        _expect_unchanged(path, done)
        return done

    def _stage(
        self,
        path: Path,
        old: pq.ParquetFile,
        keep: npt.NDArray[np.bool_],
        staged: Path,
        done: FileResult,
    ) -> None:
        try:
            with pa.OSFile(str(staged), "wb") as sink:
                rewrite(old, keep, sink)
            with open_native(staged) as written:
                done.notes = check_same(old, pq.ParquetFile(written), int(keep.sum()), done.name)
            _give_rights(path.stat(), staged)
            sync_file(staged)
        except OSError as error:
            _expect_unchanged(path, done)
            raise Unavailable(
                f"The successor of {done.name!r} could not be written: "
                f"{error.strerror or type(error).__name__}.",
                code="purge.write",
                fix="make room, or give the right to write to the data set, then run the same "
                "command again",
            ) from error
        done.new, done.staged = fingerprint(staged), staged.name


def _expect_unchanged(path: Path, done: FileResult) -> None:
    with suppress(FileNotFoundError, InvalidInput):
        if fingerprint(path) == done.old:
            return
    raise DatasetChanged(
        f"The file {done.name!r} was written anew, or vanished, while it was looked into."
    )


def _give_rights(old: os.stat_result, staged: Path) -> None:
    staged.chmod(old.st_mode & 0o7777)
    # Only root may give files away; whoever else purges owns what they write.
    with suppress(PermissionError):
        os.chown(staged, old.st_uid, old.st_gid)


def look(
    file: pq.ParquetFile,
    selector: RowSelector,
    columns: Columns | None,
    done: FileResult,
    said: Mapping[str, str | None],
) -> npt.NDArray[np.bool_]:
    """Which rows of a file stay; what was found is counted in `done`.

    `said` are columns that all its rows share.
    """
    order_ids, kept = selector.order_ids, [np.ones(0, dtype=np.bool_)]
    for chunk in chunks(file, done.name, columns, said):
        found = selector.of(chunk.table, chunk.columns)
        kept.append(found.first < 0)
        done.covered = merged(done.covered, found.counts(order_ids))
        done.unknown += found.unknown
    done.rows = file.metadata.num_rows
    return np.concatenate(kept)


Run = Callable[[FileWorker, Sequence[FileTask]], Iterator[FileResult]]
"""Who does the work on some files; the answers may come in any order."""


def run_here(worker: FileWorker, tasks: Sequence[FileTask]) -> Iterator[FileResult]:
    """One file after the other, in this process."""
    return map(worker, tasks)


def as_fields(done: FileResult) -> Mapping[str, Any]:
    """A JSON object of it."""
    return {name: getattr(done, name) for name in FileResult.__slots__}


def from_fields(fields: Mapping[str, Any]) -> FileResult:
    """What as_fields was made of."""
    found = FileResult(**fields)
    found.old = None if found.old is None else Fingerprint(*found.old)
    found.new = None if found.new is None else Fingerprint(*found.new)
    return found
