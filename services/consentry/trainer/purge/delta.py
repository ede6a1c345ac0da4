"""Purging a Delta table: touched files are replaced in one transaction, the old ones stay until
they are vacuumed.
"""

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
from consentry.trainer.purge.file_worker import FileResult, look
from consentry.trainer.purge.files import folder_values
from consentry.trainer.purge.journal import Total
from consentry.trainer.purge.rewrite import check_same, rewrite
from consentry.trainer.purge.row_selector import RowSelector
from consentry.trainer.purge.versions import Conflict, Unopened, VersionedTable

_ROWS: Final = "consentry.purge.rows"
_BEFORE: Final = "consentry.purge.before"
_STATISTICS_BYTES_MAX: Final = 32
_LOG: Final = "_delta_log"
_BASE: Final = re.compile(
    r"(0{20})\.json|(\d{20})\.checkpoint\..*parquet|(\d{20})\.checkpoint\..*json"
)
"""The log entries that a version can be read from without any that is older."""


def delta_table(uri: str, *, clock: Clock, columns: Columns | None = None) -> VersionedTable:
    """The Delta table at a path or address. Raises InvalidInput where there is none."""
    return VersionedTable(uri.rstrip("/").rpartition("/")[2], _DeltaTable(uri, clock, columns))


class _DeltaTable:
    """See versions.Versions."""

    def __init__(self, uri: str, clock: Clock, columns: Columns | None) -> None:
        self._uri = uri
        self._clock = clock
        self._columns = columns
        self.newest()

    def newest(self) -> _DeltaVersion:
        return _DeltaVersion(self._load(), self._clock, self._columns)

    def older(self) -> Iterator[_DeltaVersion | Unopened]:
        newest = self.newest()
        # Below the oldest base the log was cleaned away: nobody can read these versions; `strays`
        # has their files.
        for number in range(int(newest.id) - 1, newest.oldest() - 1, -1):
            yield self._opened(number)

    def _opened(self, number: int) -> _DeltaVersion | Unopened:
        try:
            version = _DeltaVersion(self._load(number), self._clock, self._columns)
            assert (
                version.files is not None
            )  # read here, where an error is a version that cannot be looked at
        except (DeltaError, OSError, InvalidInput) as error:
            return Unopened(str(number), f"it cannot be opened: {type(error).__name__}")
        return version

    def strays(self, named: Collection[str]) -> Collection[str]:
        lying = self.newest().lying()
        # Loaded after they were listed: what somebody commits meanwhile is no stray.
        return lying - set(named) - self.newest().files.keys()

    def totals(self) -> Mapping[str, Total]:
        found: dict[str, Total] = {}
        for commit in reversed(self._load().history()):
            for key, rows in json.loads(commit.get(_ROWS, "{}")).items():
                found.setdefault(key, Total(0, commit[_BEFORE])).rows += rows
        return found

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
        return {
            unquote(action["path"]): action
            for action in pa.table(self._table.get_add_actions()).to_pylist()
        }

    @cached_property
    def files(self) -> Mapping[str, int]:
        return {path: action["size_bytes"] for path, action in self._actions.items()}

    def oldest(self) -> int:
        """The first version that the log can still lead to."""
        found = [_BASE.fullmatch(name.rpartition("/")[2]) for name in self._names_in(_LOG)]
        return min((int(next(filter(None, one.groups()))) for one in found if one), default=0)

    def lying(self) -> set[str]:
        """Every data file in the table's folder, those of the change data feed too."""
        return {
            path
            for path in self._names_in("")
            if path.endswith(".parquet") and not path.startswith(f"{_LOG}/")
        }

    def _names_in(self, folder: str) -> list[str]:
        selector = pyarrow.fs.FileSelector(folder, recursive=not folder)
        return [
            told.path.lstrip("/")
            for told in self._filesystem.get_file_info(selector)
            if told.is_file
        ]

    def look(self, path: str, selector: RowSelector) -> FileResult:
        done = FileResult(name=path)
        with self._open(path) as source:
            look(pq.ParquetFile(source), selector, self._columns, done, self._said(path, source))
        return done

    def _open(self, path: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(path)

    def _said(self, path: str, source: pa.NativeFile) -> dict[str, str | None]:
        """The partition's values; null for the columns that the table was given after the file was
        written.
        """
        stored = pq.read_schema(source).names
        missing = dict.fromkeys(name for name in self._names if name not in stored)
        return missing | self._partition(path)

    def _partition(self, path: str) -> dict[str, str | None]:
        if path not in self._actions:
            return folder_values(path)
        values = self._actions[path].get("partition") or {}
        return {name: None if value is None else str(value) for name, value in values.items()}

    def commit(
        self, done: list[FileResult], selector: RowSelector, rows: Mapping[str, int]
    ) -> None:
        written: list[AddAction] = []
        try:
            written = [
                added for one in done if (added := self._replace(one.name, selector)) is not None
            ]
            removed = [self._removed(one.name) for one in done]
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

    def _removed(self, path: str) -> RemoveAction:
        size = self._actions[path]["size_bytes"]
        return RemoveAction(path, True, self._clock() // 1000, size, self._partition(path))

    def _replace(self, path: str, selector: RowSelector) -> AddAction | None:
        """Write a file's successor; None where no row of it is left."""
        done = FileResult(name=path)
        folder, _, _name = path.rpartition("/")
        new = f"{folder}/" * bool(folder) + f"part-00000-{uuid.uuid4()}-c000.parquet"
        with self._open(path) as source:
            old = pq.ParquetFile(source)
            keep = look(old, selector, self._columns, done, self._said(path, source))
            if not keep.any():
                return None
            with self._filesystem.open_output_stream(new) as sink:
                rewrite(old, keep, sink)
            with self._filesystem.open_input_file(new) as written:
                size, successor = written.size(), pq.ParquetFile(written)
                check_same(old, successor, int(keep.sum()), path)
                stats = _statistics(successor.metadata)
        return AddAction(
            path=new,
            size=size,
            partition_values=self._partition(path),
            modification_time=self._clock() // 1000,
            data_change=True,
            stats=json.dumps(stats),
        )


def _statistics(told: pq.FileMetaData) -> dict[str, Any]:
    """The number of rows, and the bounds of plain columns: a reader skips by them.

    What is left out is not skipped.
    """
    bounds: dict[str, tuple[Any, Any]] = {}
    nulls: dict[str, int] = {}
    for place in range(told.num_columns):
        chunks = [told.row_group(group).column(place) for group in range(told.num_row_groups)]
        name, found = chunks[0].path_in_schema, [chunk.statistics for chunk in chunks]
        if "." in name or any(one is None or not one.has_null_count for one in found):
            continue
        nulls[name] = sum(one.null_count for one in found)
        with_bounds = [one for one in found if one.has_min_max]
        if len(with_bounds) == len(found) and all(_is_plain(one) for one in with_bounds):
            bounds[name] = min(one.min for one in with_bounds), max(one.max for one in with_bounds)
    return {
        "numRecords": told.num_rows,
        "minValues": {name: least for name, (least, _) in bounds.items()},
        "maxValues": {name: greatest for name, (_, greatest) in bounds.items()},
        "nullCount": nulls,
    }


def _is_plain(found: pq.Statistics) -> bool:
    """Whether the bounds are exact in JSON: whole numbers, and texts too short to have been cut."""
    if found.logical_type.type in ("INT", "NONE") and found.physical_type in ("INT32", "INT64"):
        return True
    return (
        found.logical_type.type == "STRING"
        and max(len(found.min), len(found.max)) <= _STATISTICS_BYTES_MAX
    )
