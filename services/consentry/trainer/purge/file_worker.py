"""The purge of one file of a Parquet directory: done here, or by Spark on another machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.errors import ConsentryError, InvalidInput, Unavailable
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.purge.dataset import DatasetChanged
from consentry.trainer.purge.files import Fingerprint, fingerprint, folder_values, open_native
from consentry.trainer.purge.replace_files import sync_file
from consentry.trainer.purge.rewrite import check_same_rows, rewrite
from consentry.trainer.purge.row_selector import RowSelector, sum_counts

CHUNK_ROWS: Final = 1 << 20
"""Rows of a file that are examined at once, give or take a row group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """One Parquet file of a directory that is purged, to be examined and maybe rewritten.

    Where it holds selected rows, its successor without them is written as `staged`; None: the file
    is only examined.
    """

    directory: str
    name: str
    staged: str | None = None


@dataclass(slots=True, kw_only=True)
class FileResult:
    """The findings of a purge in one file: all rows, those selected, those of unknown owner.

    `old` is the fingerprint of the file, `new` that of its successor, which lies under the name
    `staged`. `unreadable` says why the file could not be read.
    """

    name: str
    rows: int = 0
    selected: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    old: Fingerprint | None = None
    new: Fingerprint | None = None
    staged: str = ""
    notes: list[str] = field(default_factory=list)
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class FileWorker:
    """Examines the files of a directory that is purged, one by one, with one row selector.

    It travels to other processes, so its selector has to be one that can be pickled.
    """

    selector: RowSelector
    columns: Columns | None = None
    tolerant: bool = False
    """Report a file that cannot be read, instead of raising."""

    def __call__(self, task: FileTask) -> FileResult:
        """Do one task.

        Raises ConsentryError unless tolerant: InvalidInput for a file that cannot be read,
        DatasetChanged for one that somebody else writes meanwhile.
        """
        path = Path(task.directory, task.name)
        try:
            return self._work(path, task)
        except (OSError, pa.ArrowException) as error:
            if self.tolerant:
                why = f"{task.name}: {type(error).__name__}"
                return FileResult(name=task.name, unreadable=why)
            raise _unreadable(task, error) from error
        except InvalidInput as error:
            if self.tolerant:
                return FileResult(name=task.name, unreadable=f"{task.name}: {error.message}")
            raise

    def _work(self, path: Path, task: FileTask) -> FileResult:
        result = FileResult(name=task.name, old=fingerprint(path))
        try:
            with open_native(path) as file:
                old = pq.ParquetFile(file)
                keep = examine_file(
                    old, self.selector, self.columns, result, folder_values(task.name)
                )
                if task.staged is not None and result.selected:
                    self._stage(path, old, keep, Path(task.staged), result)
        except (OSError, pa.ArrowException, InvalidInput):
            # A file that somebody overwrites cannot be read either, and that is no damage.
            _check_unchanged(path, result)
            raise
        _check_unchanged(path, result)
        return result

    def _stage(
        self,
        path: Path,
        old: pq.ParquetFile,
        keep: npt.NDArray[np.bool_],
        staged: Path,
        result: FileResult,
    ) -> None:
        """Write the successor of a file, whole and on disk, under the name `staged`."""
        try:
            with pa.OSFile(str(staged), "wb") as sink:
                rewrite(old, keep, sink)
            with open_native(staged) as written:
                new = pq.ParquetFile(written)
                result.notes = check_same_rows(old, new, int(keep.sum()), result.name)
            _copy_rights(path.stat(), staged)
            sync_file(staged)
        except OSError as error:
            _check_unchanged(path, result)
            why = error.strerror or type(error).__name__
            raise Unavailable(
                f"The successor of {result.name!r} could not be written: {why}.",
                code="purge.write",
                fix="make room, or give the right to write to the data set, then run the same "
                "command again",
            ) from error
        result.new = fingerprint(staged)
        result.staged = staged.name


def _unreadable(task: FileTask, error: Exception) -> ConsentryError:
    if isinstance(error, FileNotFoundError):
        return DatasetChanged(f"The file {task.name!r} vanished while it was looked into.")
    return InvalidInput(
        f"The file {task.name!r} cannot be read: {type(error).__name__}.",
        code="input.dataset",
        fix="mend it, or take it out of the data set",
    )


def _check_unchanged(path: Path, result: FileResult) -> None:
    """Raise DatasetChanged unless the file is still the one that was examined."""
    with suppress(FileNotFoundError, InvalidInput):
        if fingerprint(path) == result.old:
            return
    raise DatasetChanged(
        f"The file {result.name!r} was written anew, or vanished, while it was looked into."
    )


def _copy_rights(old: os.stat_result, staged: Path) -> None:
    staged.chmod(old.st_mode & 0o7777)
    # Only root may give files away; for everybody else the new file is their own.
    with suppress(PermissionError):
        os.chown(staged, old.st_uid, old.st_gid)


# ---- the rows of a file


def examine_file(
    file: pq.ParquetFile,
    selector: RowSelector,
    columns: Columns | None,
    result: FileResult,
    shared_values: Mapping[str, str | None],
) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows of a Parquet file that a purge keeps; count in `result`.

    `shared_values` are columns in which all rows of the file have one value, such as those that
    its folders name. Without `columns` they are found by their conventional names. Raises
    InvalidInput for a missing column.
    """
    order_ids = selector.order_ids
    masks = [np.ones(0, dtype=np.bool_)]
    for chunk in _read_chunks(file, result.name, columns, shared_values):
        selection = selector.select_rows(chunk.table, chunk.columns)
        masks.append(selection.keep)
        result.selected = sum_counts(result.selected, selection.counts(order_ids))
        result.unknown += selection.unknown
    result.rows = file.metadata.num_rows
    return np.concatenate(masks)


class _FileChunk(NamedTuple):
    """The deciding columns of some row groups of a file."""

    table: pa.Table
    columns: Columns


def _read_chunks(
    file: pq.ParquetFile,
    name: str,
    columns: Columns | None,
    shared_values: Mapping[str, str | None],
) -> Iterator[_FileChunk]:
    stored_names = file.schema_arrow.names
    shared_names = [key for key in shared_values if key not in stored_names]
    names = [*stored_names, *shared_names]
    deciding = find_columns(names, columns, holder=f"The file {name!r}")
    stored = [key for key in deciding.names if key in stored_names]
    for groups in _group_batches(file.metadata):
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        table = file.read_row_groups(list(groups), columns=stored, use_threads=False)
        for key in deciding.names:
            if key in shared_values:
                table = _with_shared_value(table, rows, key, shared_values[key], name)
        yield _FileChunk(table, deciding)


def _with_shared_value(
    table: pa.Table, rows: int, key: str, value: str | None, name: str
) -> pa.Table:
    """Return the table with a column of one value, unless it has the column with that value.

    Raises InvalidInput where a row says otherwise.
    """
    column = pa.array([value], pa.string()).take(pa.array([0] * rows, pa.int32()))
    if key not in table.column_names:
        if not table.num_columns:
            return pa.table({key: column})
        return table.append_column(key, column)
    own = table[key].cast(pa.string())
    is_same = pc.or_kleene(pc.equal(own, column), pc.is_null(own))
    if not pc.all(is_same, min_count=0).as_py():
        raise InvalidInput(
            f"The file {name!r} has a column {key!r} that does not say what its folder says.",
            code="input.dataset",
            fix="readers differ in which they believe: remove the column, or move the rows to the "
            "right folder",
        )
    return table


def _group_batches(metadata: pq.FileMetaData) -> Iterator[range]:
    """Yield spans of neighbouring row groups that have about CHUNK_ROWS rows together."""
    start = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= CHUNK_ROWS or group == metadata.num_row_groups - 1:
            yield range(start, group + 1)
            start, rows = group + 1, 0


# ---- doing tasks


TaskRunner = Callable[[FileWorker, Sequence[FileTask]], Iterator[FileResult]]
"""Does the tasks with the worker; the results may come in any order."""


def run_here(worker: FileWorker, tasks: Sequence[FileTask]) -> Iterator[FileResult]:
    """Examine the files of a purge one after the other, in this process."""
    return map(worker, tasks)


def result_fields(result: FileResult) -> Mapping[str, Any]:
    """Return a purged file's result as plain fields, as another machine sends it."""
    return {name: getattr(result, name) for name in FileResult.__slots__}


def read_result(fields: Mapping[str, Any]) -> FileResult:
    """Return the result of a purged file that `result_fields` made the fields of."""
    result = FileResult(**fields)
    if result.old is not None:
        result.old = Fingerprint(*result.old)
    if result.new is not None:
        result.new = Fingerprint(*result.new)
    return result
