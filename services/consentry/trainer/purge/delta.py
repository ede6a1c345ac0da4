"""Purge a Delta table: one transaction replaces touched files; vacuum destroys the old ones."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import (
    CommitFailedError,
    DeltaError,
    DeltaProtocolError,
    TableNotFoundError,
)
from deltalake.transaction import AddAction, RemoveAction

from consentry.domain.errors import InvalidInput, Refused
from consentry.ops.clock import Clock
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.purge.file_worker import FileResult, examine_file
from consentry.trainer.purge.files import folder_values
from consentry.trainer.purge.journal import OrderTotal
from consentry.trainer.purge.rewrite import check_same_rows, rewrite
from consentry.trainer.purge.row_selector import RowSelector
from consentry.trainer.purge.versions import Conflict, UnopenedVersion, VersionedTable

_ROWS: Final = "consentry.purge.rows"
_BEFORE: Final = "consentry.purge.before"
_STATISTICS_BYTES_MAX: Final = 32
_LOG: Final = "_delta_log"
_BASE: Final = re.compile(
    r"(0{20})\.json|(\d{20})\.checkpoint\..*parquet|(\d{20})\.checkpoint\..*json"
)
"""The log entries that a version can be read from without any that is older."""


def delta_table(uri: str, *, clock: Clock, columns: Columns | None = None) -> VersionedTable:
    """Return the Delta table to purge at a path or address. Raises InvalidInput if none."""
    name = uri.rstrip("/").rpartition("/")[2]
    return VersionedTable(name, _DeltaTable(uri, clock, columns))


class _DeltaTable:
    """See versions.Versions. Raises InvalidInput where there is no such table."""

    def __init__(self, uri: str, clock: Clock, columns: Columns | None) -> None:
        self._uri = uri
        self._clock = clock
        self._columns = columns
        self.newest()

    def newest(self) -> _DeltaVersion:
        return _DeltaVersion(self._load(), self._clock, self._columns)

    def older(self) -> Iterator[_DeltaVersion | UnopenedVersion]:
        newest = self.newest()
        # Below the oldest base the log was cleaned away: nobody can read these versions; their
        # files are among `stray_files`.
        for number in range(int(newest.id) - 1, newest.oldest() - 1, -1):
            yield self._open_older(number)

    def _open_older(self, number: int) -> _DeltaVersion | UnopenedVersion:
        try:
            version = _DeltaVersion(self._load(number), self._clock, self._columns)
            # The list of files is read here, where an error means a version that cannot be opened.
            assert version.files is not None
        except (DeltaError, OSError, InvalidInput) as error:
            return UnopenedVersion(str(number), f"it cannot be opened: {type(error).__name__}")
        return version

    def stray_files(self, named: Collection[str]) -> Collection[str]:
        files_on_disk = self.newest().files_on_disk()
        # Loaded after they were listed: what somebody commits meanwhile is no stray.
        return files_on_disk - set(named) - self.newest().files.keys()

    def totals(self) -> Mapping[str, OrderTotal]:
        totals: dict[str, OrderTotal] = {}
        for commit in reversed(self._load().history()):
            for key, rows in json.loads(commit.get(_ROWS, "{}")).items():
                total = totals.setdefault(key, OrderTotal(0, commit[_BEFORE]))
                total.rows += rows
        return totals

    def vacuum(self) -> tuple[str, ...]:
        table = self._load()
        return tuple(
            table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
        )

    def _load(self, version: int | None = None) -> DeltaTable:
        try:
            return DeltaTable(self._uri, version=version)
        except TableNotFoundError as error:
            raise InvalidInput(
                f"There is no Delta table at {self._uri!r}.",
                code="input.dataset",
                fix="name the folder of _delta_log",
            ) from error


class _DeltaVersion:
    """See versions.Version."""

    def __init__(self, table: DeltaTable, clock: Clock, columns: Columns | None) -> None:
        self._table = table
        self._clock = clock
        try:
            dataset = table.to_pyarrow_dataset()
        except DeltaProtocolError as error:
            raise Refused(
                "The Delta table uses a feature under which its files do not say which rows it "
                "has, such as deletion "
                f"vectors: {error}",
                code="purge.delta_feature",
                fix="have it rewritten first, by REORG TABLE … APPLY (PURGE), and switch the "
                "feature off",
            ) from error
        self._names = dataset.schema.names
        self._named_columns = columns
        self._filesystem: pyarrow.fs.FileSystem = dataset.filesystem

    @property
    def id(self) -> str:
        return str(self._table.version())

    @cached_property
    def _columns(self) -> Columns:
        # Found when a file is read: an old version without one of them may have no file of its own.
        return find_columns(self._names, self._named_columns)

    @cached_property
    def _actions(self) -> dict[str, dict[str, Any]]:
        # The log encodes paths; a file is opened, and a transaction takes them, as they are on the
        # disk.
        actions: dict[str, dict[str, Any]] = {}
        for action in pa.table(self._table.get_add_actions()).to_pylist():
            path = unquote(action["path"])
            actions[path] = action
        return actions

    @cached_property
    def files(self) -> Mapping[str, int]:
        return {path: action["size_bytes"] for path, action in self._actions.items()}

    def oldest(self) -> int:
        """Return the first version that the log can still lead to."""
        bases: list[int] = []
        for name in self._names_in(_LOG):
            match = _BASE.fullmatch(name.rpartition("/")[2])
            if match is not None:
                number = next(filter(None, match.groups()))
                bases.append(int(number))
        return min(bases, default=0)

    def files_on_disk(self) -> set[str]:
        """Return every data file in the table's folder, those of the change data feed too."""
        paths: set[str] = set()
        for path in self._names_in(""):
            is_of_log = path.startswith(f"{_LOG}/")
            if path.endswith(".parquet") and not is_of_log:
                paths.add(path)
        return paths

    def _names_in(self, folder: str) -> list[str]:
        selector = pyarrow.fs.FileSelector(folder, recursive=not folder)
        infos = self._filesystem.get_file_info(selector)
        return [info.path.lstrip("/") for info in infos if info.is_file]

    def examine(self, path: str, selector: RowSelector) -> FileResult:
        result = FileResult(name=path)
        with self._open(path) as source:
            file = pq.ParquetFile(source)
            shared_values = self._shared_values(path, source)
            examine_file(file, selector, self._columns, result, shared_values)
        return result

    def _open(self, path: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(path)

    def _shared_values(self, path: str, source: pa.NativeFile) -> dict[str, str | None]:
        """Return the partition's values, and null for columns that the table got after the file."""
        stored = pq.read_schema(source).names
        missing = [name for name in self._names if name not in stored]
        return dict.fromkeys(missing) | self._partition(path)

    def _partition(self, path: str) -> dict[str, str | None]:
        if path not in self._actions:
            return folder_values(path)
        partition: dict[str, str | None] = {}
        values = self._actions[path].get("partition") or {}
        for name, value in values.items():
            if value is None:
                partition[name] = None
            else:
                partition[name] = str(value)
        return partition

    def commit(
        self, files: list[FileResult], selector: RowSelector, rows: Mapping[str, int]
    ) -> None:
        successors = [self._write_successor(file.name, selector) for file in files]
        written = [added for added in successors if added is not None]
        removed = [self._remove_action(file.name) for file in files]
        try:
            self._table.create_write_transaction(
                [*removed, *written],
                "append",
                self._table.schema(),
                self._table.metadata().partition_columns,
                commit_properties=CommitProperties(
                    custom_metadata={_ROWS: json.dumps(rows), _BEFORE: self.id},
                    max_commit_retries=0,
                ),
            )
        except CommitFailedError as error:
            for added in written:
                self._filesystem.delete_file(added.path)
            raise Conflict from error

    def _remove_action(self, path: str) -> RemoveAction:
        size = self._actions[path]["size_bytes"]
        return RemoveAction(path, True, self._clock() // 1000, size, self._partition(path))

    def _write_successor(self, path: str, selector: RowSelector) -> AddAction | None:
        """Write a file's successor; return None where no row of it is left."""
        result = FileResult(name=path)
        folder, slash, _name = path.rpartition("/")
        new = f"{folder}{slash}part-00000-{uuid.uuid4()}-c000.parquet"
        with self._open(path) as source:
            old = pq.ParquetFile(source)
            shared_values = self._shared_values(path, source)
            keep = examine_file(old, selector, self._columns, result, shared_values)
            if not keep.any():
                return None
            with self._filesystem.open_output_stream(new) as sink:
                rewrite(old, keep, sink)
            with self._filesystem.open_input_file(new) as written:
                size, successor = written.size(), pq.ParquetFile(written)
                check_same_rows(old, successor, int(keep.sum()), path)
                stats = _statistics(successor.metadata)
        return AddAction(
            path=new,
            size=size,
            partition_values=self._partition(path),
            modification_time=self._clock() // 1000,
            data_change=True,
            stats=json.dumps(stats),
        )


def _statistics(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Return the number of rows, and the bounds of columns, by which readers skip files.

    A column whose bounds are not exact is left out, and readers then do not skip by it.
    """
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index in range(metadata.num_columns):
        chunks = [
            metadata.row_group(group).column(index) for group in range(metadata.num_row_groups)
        ]
        name = chunks[0].path_in_schema
        statistics = [chunk.statistics for chunk in chunks]
        if "." in name or not all(map(_has_null_count, statistics)):
            continue
        nulls[name] = sum(part.null_count for part in statistics)
        if all(map(_has_exact_bounds, statistics)):
            least[name] = min(part.min for part in statistics)
            greatest[name] = max(part.max for part in statistics)
    return {
        "numRecords": metadata.num_rows,
        "minValues": least,
        "maxValues": greatest,
        "nullCount": nulls,
    }


def _has_null_count(statistics: pq.Statistics | None) -> bool:
    return statistics is not None and statistics.has_null_count


def _has_exact_bounds(statistics: pq.Statistics) -> bool:
    """True where the bounds are exact in JSON: whole numbers, and texts too short to be cut off."""
    if not statistics.has_min_max:
        return False
    kind = statistics.logical_type.type
    if kind in ("INT", "NONE") and statistics.physical_type in ("INT32", "INT64"):
        return True
    if kind != "STRING":
        return False
    longest = max(len(statistics.min), len(statistics.max))
    return longest <= _STATISTICS_BYTES_MAX
