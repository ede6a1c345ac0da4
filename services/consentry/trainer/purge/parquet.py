"""Purging a directory of Parquet files: partition by partition, each file swapped in one step,
resumable.
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
from consentry.trainer.purge.file_worker import FileResult, FileTask, FileWorker, Run, run_here
from consentry.trainer.purge.files import (
    Fingerprint,
    dataset_files,
    dataset_version,
    listing,
    understood_files,
    version_of_listing,
)
from consentry.trainer.purge.journal import Journal, Staged, Total, leftovers, order_key
from consentry.trainer.purge.replace_files import swap, sync_folders
from consentry.trainer.purge.row_selector import RowSelector, merged


class ParquetDirectory:
    """A directory of Parquet files, hive-partitioned or not.

    Without `columns` each file's columns are found by their conventional names. `run` does the work
    on the files, some `files_at_once` in one go, but always whole partitions.
    """

    def __init__(
        self,
        directory: Path,
        *,
        columns: Columns | None = None,
        run: Run = run_here,
        files_at_once: int = 1,
    ) -> None:
        self.directory = directory.resolve()
        self._columns = columns
        self._run = run
        self._files_at_once = files_at_once
        dataset_files(directory)  # refuses what is not there

    keeps_versions = False

    @property
    def name(self) -> str:
        """See Dataset."""
        return self.directory.name

    def version(self) -> str:
        """See Dataset."""
        return dataset_version(self.directory)

    def vacuum(self) -> tuple[str, ...]:
        """See Dataset."""
        raise Refused(
            "A directory of Parquet files keeps no old versions.",
            code="purge.vacuum",
            fix="leave --vacuum out",
        )

    def plan(self, selector: RowSelector, progress: Progress = no_progress) -> PurgePlan:
        """See Dataset."""
        self._expect_data()
        found = listing(self.directory)
        files, unknown, rows = [], 0, 0
        for number, done in enumerate(self._looked(found, FileWorker(selector, self._columns)), 1):
            unknown += done.unknown
            rows += done.rows
            if done.covered:
                files.append(FilePlan(done.name, done.rows, found[done.name].size, done.covered))
            progress(number, len(found))
        files.sort(key=lambda file: file.name)
        return PurgePlan(
            version=version_of_listing(found),
            files=tuple(files),
            files_looked_at=len(found),
            rows_looked_at=rows,
            unknown=unknown,
        )

    def verify(
        self, selector: RowSelector, progress: Progress = no_progress, *, old_versions: bool = True
    ) -> Verified:
        """See Dataset. Raises DatasetChanged where files came or went while it looked."""
        paths = understood_files(self.directory)
        names = [path.relative_to(self.directory).as_posix() for path in paths]
        left: dict[str, int] = {}
        unknown, rows, unreadable = 0, 0, []
        tasks = [FileTask(directory=str(self.directory), name=name) for name in names]
        for number, done in enumerate(
            self._run(FileWorker(selector, self._columns, tolerant=True), tasks), 1
        ):
            left, unknown, rows = (
                merged(left, done.covered),
                unknown + done.unknown,
                rows + done.rows,
            )
            if done.unreadable:
                unreadable.append(done.unreadable)
            progress(number, len(names))
        if understood_files(self.directory) != paths:
            raise DatasetChanged("Files came or went while the data set was looked through.")
        version = "" if unreadable else self.version()
        if not names:
            unreadable.append("there is no data file there")
        if leftovers(self.directory):
            # Whole Parquet files of old rows, where no reader of the data set looks.
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
        """See Dataset."""
        self._expect_data()
        with Journal(self.directory) as journal:
            purge = _Apply(self, selector, journal)
            purge.run(progress)
            return purge.result

    def _expect_data(self) -> None:
        """Raise InvalidInput where nothing is there to look at:

        `not found` has to mean that somebody looked.
        """
        if not understood_files(self.directory):
            raise InvalidInput(
                f"There is no data file in {str(self.directory)!r}.",
                code="input.dataset",
                fix="name the directory that holds the Parquet files",
            )

    def _looked(self, found: dict[str, Fingerprint], worker: FileWorker) -> Iterator[FileResult]:
        tasks = [FileTask(directory=str(self.directory), name=name) for name in found]
        for done in self._run(worker, tasks):
            _expect_same(done, found)
            yield done

    def batches(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Whole partitions, so many together that there is work for `files_at_once`."""
        batch: list[str] = []
        for _folder, members in groupby(
            sorted(names, key=_by_folder), key=lambda name: _by_folder(name)[0]
        ):
            batch += members
            if len(batch) >= self._files_at_once:
                yield batch
                batch = []
        if batch:
            yield batch

    def work(
        self, selector: RowSelector, names: Sequence[str], journal: Journal
    ) -> Iterator[FileResult]:
        """Look into files and stage the successors of those that hold covered rows."""
        worker = FileWorker(selector, self._columns)
        tasks = [
            FileTask(
                directory=str(self.directory),
                name=name,
                staged=str(journal.folder / journal.new_name()),
            )
            for name in names
        ]
        return self._run(worker, tasks)


class _Apply:
    """One run over a directory whose journal is held."""

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
        """Partition by partition: stage, look whether anything else changed, swap."""
        finished = 0
        for names in self._dataset.batches(list(self._listed)):
            done = []
            for one in self._dataset.work(self._selector, names, self._journal):
                _expect_same(one, self._listed)
                self.result.unknown += one.unknown
                self.result.notes += one.notes
                if one.new is not None:
                    done.append(one)
                finished += 1
                progress(finished, len(self._listed))
            if done:
                self._swap(sorted(done, key=lambda one: one.name))
        self._expect_nothing_changed()
        self.result.version_after = version_of_listing(self._listed)
        for order in self._selector.order_ids:
            total = self._journal.totals().get(order_key(order), Total())
            self.result.rows_in_all[order] = total.rows
            self.result.versions_first[order] = total.version_before or self.result.version_before

    def _swap(self, many: Sequence[FileResult]) -> None:
        self._expect_nothing_changed()
        self._journal.stage([_as_staged(one) for one in many], self.result.version_before)
        try:
            for one in many:
                self._swap_one(one)
        finally:
            sync_folders(
                [*(self._directory / one.name for one in many), self._journal.folder / "any"]
            )
            self._note_other_names([self._journal.folder / one.staged for one in many])
            self._journal.settle()

    def _swap_one(self, one: FileResult) -> None:
        assert one.old is not None
        assert one.new is not None
        path = self._directory / one.name
        # Hadoop keeps a checksum beside each file, and refuses the file if it does not fit; without
        # one it reads on.
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
        swap(path, self._journal.folder / one.staged, one.old, one.new)
        self._listed[one.name] = one.new
        self.result.files_rewritten += 1
        self.result.bytes_rewritten += one.old.size
        self.result.rows_removed = merged(self.result.rows_removed, one.covered)

    def _note_other_names(self, old: Sequence[Path]) -> None:
        for path in old:
            if path.exists() and os.stat(path).st_nlink > 1:
                self.result.notes.append(
                    "an old file has another name outside of the data set, which keeps its rows"
                )

    def _expect_nothing_changed(self) -> None:
        """Raise DatasetChanged where a file appeared, vanished or changed since it was listed."""
        found = {
            path.relative_to(self._directory).as_posix()
            for path in understood_files(self._directory)
        }
        for name in sorted(found ^ self._listed.keys()):
            how = "appeared in" if name in found else "vanished from"
            raise DatasetChanged(f"The file {name!r} {how} the data set while it was purged.")
        for name, listed in self._listed.items():
            try:
                told = os.stat(self._directory / name)
            except FileNotFoundError as error:
                raise DatasetChanged(
                    f"The file {name!r} vanished from the data set while it was purged."
                ) from error
            if (told.st_size, told.st_mtime_ns) != (listed.size, listed.modified_ns):
                raise DatasetChanged(
                    f"The file {name!r} was written anew while the data set was purged."
                )


def _as_staged(one: FileResult) -> Staged:
    assert one.old is not None
    assert one.new is not None
    rows = {order_key(order): number for order, number in one.covered.items()}
    return Staged(file=one.name, staged=one.staged, old=one.old, new=one.new, rows=rows)


def _expect_same(done: FileResult, listed: dict[str, Fingerprint]) -> None:
    """Raise DatasetChanged where what was looked into is not what was listed."""
    if done.old != listed[done.name]:
        raise DatasetChanged(
            f"The file {done.name!r} was written anew while the data set was purged."
        )


def _by_folder(name: str) -> tuple[str, str]:
    return str(PurePosixPath(name).parent), name
