"""Purge a directory of Parquet files: partition by partition, each file replaced in one step.

A purge that is killed can be run again: it goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath

from consentry.domain.errors import InvalidInput, Refused
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.purge.dataset import (
    DatasetChanged,
    FilePlan,
    Progress,
    PurgePlan,
    PurgeResult,
    Verified,
    no_progress,
)
from consentry.trainer.purge.file_worker import (
    FileResult,
    FileTask,
    FileWorker,
    TaskRunner,
    run_here,
)
from consentry.trainer.purge.files import (
    Fingerprint,
    dataset_files,
    dataset_version,
    listing,
    understood_files,
    version_of_listing,
)
from consentry.trainer.purge.journal import (
    Journal,
    OrderTotal,
    StagedFile,
    leftover_files,
    order_key,
)
from consentry.trainer.purge.replace_files import replace_file, sync_folders
from consentry.trainer.purge.row_selector import RowSelector, sum_counts


class ParquetDirectory:
    """A directory of Parquet files that can be purged, hive-partitioned or not.

    Without `columns` each file's columns are found by their conventional names. `run` does the work
    on the files, of whole partitions, at least `files_at_once` in one go. Raises InvalidInput where
    there is no such directory.
    """

    keeps_versions = False

    def __init__(
        self,
        directory: Path,
        *,
        columns: Columns | None = None,
        run: TaskRunner = run_here,
        files_at_once: int = 1,
    ) -> None:
        self.directory = directory.resolve()
        self._columns = columns
        self._run = run
        self._files_at_once = files_at_once
        dataset_files(directory)  # raises where there is no such directory

    @property
    def name(self) -> str:
        """The name that a purge's receipts give the directory; see Dataset."""
        return self.directory.name

    def version(self) -> str:
        """Return the identity of the Parquet directory's content; see Dataset."""
        return dataset_version(self.directory)

    def vacuum(self) -> tuple[str, ...]:
        """Refuse: a purged directory keeps no older versions; see Dataset."""
        raise Refused(
            "A directory of Parquet files keeps no old versions.",
            code="purge.vacuum",
            fix="leave --vacuum out",
        )

    def plan(self, selector: RowSelector, progress: Progress = no_progress) -> PurgePlan:
        """Return what a purge of the directory would do; see Dataset."""
        self._check_has_data()
        listed = listing(self.directory)
        files: list[FilePlan] = []
        unknown = rows = 0
        for number, result in enumerate(self._examine(selector, list(listed)), 1):
            _check_same(result, listed)
            unknown += result.unknown
            rows += result.rows
            if result.selected:
                size = listed[result.name].size
                files.append(FilePlan(result.name, result.rows, size, result.selected))
            progress(number, len(listed))
        files.sort(key=lambda file: file.name)
        return PurgePlan(
            version=version_of_listing(listed),
            files=tuple(files),
            files_looked_at=len(listed),
            rows_looked_at=rows,
            unknown=unknown,
        )

    def verify(
        self, selector: RowSelector, progress: Progress = no_progress, *, old_versions: bool = True
    ) -> Verified:
        """Look for rows left in the directory after a purge; see Dataset.

        Raises DatasetChanged where files came or went while it was examined.
        """
        paths = understood_files(self.directory)
        names = [path.relative_to(self.directory).as_posix() for path in paths]
        left: dict[str, int] = {}
        unreadable: list[str] = []
        unknown = rows = 0
        for number, result in enumerate(self._examine(selector, names, tolerant=True), 1):
            left = sum_counts(left, result.selected)
            unknown += result.unknown
            rows += result.rows
            if result.unreadable:
                unreadable.append(result.unreadable)
            progress(number, len(names))
        if understood_files(self.directory) != paths:
            raise DatasetChanged("Files came or went while the data set was looked through.")
        version = ""
        if not unreadable:
            version = self.version()
        if not names:
            unreadable.append("there is no data file there")
        if leftover_files(self.directory):
            # Whole Parquet files of old rows, in a folder that no reader of the data set reads.
            unreadable.append(
                "a purge is not finished, and what it left holds rows: run apply again"
            )
        return Verified(
            version=version,
            files=len(names),
            rows=rows,
            rows_left=left,
            unknown=unknown,
            unreadable=tuple(sorted(unreadable)),
        )

    def apply(self, selector: RowSelector, progress: Progress = no_progress) -> PurgeResult:
        """Purge the directory of the selected rows; see Dataset."""
        self._check_has_data()
        with Journal(self.directory) as journal:
            purge = _ParquetPurge(self, selector, journal)
            purge.run(progress)
            return purge.result

    def _check_has_data(self) -> None:
        """Raise InvalidInput where there is no file to examine.

        The answer NOT_FOUND has to mean that somebody looked.
        """
        if not understood_files(self.directory):
            raise InvalidInput(
                f"There is no data file in {str(self.directory)!r}.",
                code="input.dataset",
                fix="name the directory that holds the Parquet files",
            )

    def _examine(
        self, selector: RowSelector, names: Sequence[str], *, tolerant: bool = False
    ) -> Iterator[FileResult]:
        worker = FileWorker(selector, self._columns, tolerant=tolerant)
        directory = str(self.directory)
        tasks = [FileTask(directory=directory, name=name) for name in names]
        return self._run(worker, tasks)

    def batches(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Yield the files to purge in batches of whole partitions.

        Each has `files_at_once` or more files.
        """
        batch: list[str] = []
        in_order = sorted(names, key=_by_folder)
        for _folder, partition in groupby(in_order, key=lambda name: _by_folder(name)[0]):
            batch += partition
            if len(batch) >= self._files_at_once:
                yield batch
                batch = []
        if batch:
            yield batch

    def stage(
        self, selector: RowSelector, names: Sequence[str], journal: Journal
    ) -> Iterator[FileResult]:
        """Examine files to purge, and write successors of those that hold selected rows."""
        tasks: list[FileTask] = []
        for name in names:
            staged = str(journal.folder / journal.new_name())
            tasks.append(FileTask(directory=str(self.directory), name=name, staged=staged))
        return self._run(FileWorker(selector, self._columns), tasks)


class _ParquetPurge:
    """One purge of a directory whose journal is locked."""

    def __init__(self, dataset: ParquetDirectory, selector: RowSelector, journal: Journal) -> None:
        self._dataset = dataset
        self._directory = dataset.directory
        self._selector = selector
        self._journal = journal
        self._listed = listing(self._directory)
        self.result = PurgeResult(
            version_before=version_of_listing(self._listed),
            rows_removed=dict.fromkeys(selector.order_ids, 0),
        )

    def run(self, progress: Progress) -> None:
        """Purge partition by partition: write successors, check for other changes, replace."""
        finished = 0
        for names in self._dataset.batches(list(self._listed)):
            successors: list[FileResult] = []
            for result in self._dataset.stage(self._selector, names, self._journal):
                _check_same(result, self._listed)
                self.result.unknown += result.unknown
                self.result.notes += result.notes
                if result.new is not None:
                    successors.append(result)
                finished += 1
                progress(finished, len(self._listed))
            if successors:
                self._replace_files(sorted(successors, key=lambda result: result.name))
        self._check_nothing_changed()
        self.result.version_after = version_of_listing(self._listed)
        self._add_totals()

    def _add_totals(self) -> None:
        totals = self._journal.totals()
        for order_id in self._selector.order_ids:
            total = totals.get(order_key(order_id), OrderTotal())
            version_first = total.version_before or self.result.version_before
            self.result.rows_in_all[order_id] = total.rows
            self.result.versions_first[order_id] = version_first

    def _replace_files(self, successors: Sequence[FileResult]) -> None:
        """Replace files by their successors, with a line in the journal before and after."""
        self._check_nothing_changed()
        staged_files = [_staged_file(successor) for successor in successors]
        self._journal.stage(staged_files, self.result.version_before)
        try:
            for successor in successors:
                self._replace_one(successor)
        finally:
            paths = [self._directory / successor.name for successor in successors]
            sync_folders([*paths, self._journal.folder / "any"])
            self._note_other_names(successors)
            self._journal.settle()

    def _replace_one(self, successor: FileResult) -> None:
        assert successor.old is not None
        assert successor.new is not None
        path = self._directory / successor.name
        # Hadoop keeps a checksum beside each file, and refuses the file if it does not fit; without
        # one it reads on.
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
        staged = self._journal.folder / successor.staged
        replace_file(path, staged, successor.old, successor.new)
        self._listed[successor.name] = successor.new
        self.result.files_rewritten += 1
        self.result.bytes_rewritten += successor.old.size
        self.result.rows_removed = sum_counts(self.result.rows_removed, successor.selected)

    def _note_other_names(self, successors: Sequence[FileResult]) -> None:
        """Note old files that have a hard link elsewhere: it keeps their rows."""
        for successor in successors:
            old = self._journal.folder / successor.staged
            if old.exists() and os.stat(old).st_nlink > 1:
                self.result.notes.append(
                    "an old file has another name outside of the data set, which keeps its rows"
                )

    def _check_nothing_changed(self) -> None:
        """Raise DatasetChanged where a file appeared, vanished or changed since it was listed."""
        names = {
            path.relative_to(self._directory).as_posix()
            for path in understood_files(self._directory)
        }
        for name in sorted(names ^ self._listed.keys()):
            how = "vanished from"
            if name in names:
                how = "appeared in"
            raise DatasetChanged(f"The file {name!r} {how} the data set while it was purged.")
        for name, listed in self._listed.items():
            try:
                status = os.stat(self._directory / name)
            except FileNotFoundError as error:
                raise DatasetChanged(
                    f"The file {name!r} vanished from the data set while it was purged."
                ) from error
            if (status.st_size, status.st_mtime_ns) != (listed.size, listed.modified_ns):
                raise DatasetChanged(
                    f"The file {name!r} was written anew while the data set was purged."
                )


def _staged_file(successor: FileResult) -> StagedFile:
    assert successor.old is not None
    assert successor.new is not None
    return StagedFile(
        file=successor.name,
        staged=successor.staged,
        old=successor.old,
        new=successor.new,
        rows={order_key(order_id): rows for order_id, rows in successor.selected.items()},
    )


def _check_same(result: FileResult, listed: dict[str, Fingerprint]) -> None:
    """Raise DatasetChanged where the file that was examined is not the one that was listed."""
    if result.old != listed[result.name]:
        raise DatasetChanged(
            f"The file {result.name!r} was written anew while the data set was purged."
        )


def _by_folder(name: str) -> tuple[str, str]:
    return str(PurePosixPath(name).parent), name
