"""Purge an Iceberg table: one snapshot replaces files; the old ones stay until it expires."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, ValidationException
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot

from consentry.domain.errors import InvalidInput, Refused
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.purge.file_worker import FileResult
from consentry.trainer.purge.journal import OrderTotal
from consentry.trainer.purge.row_selector import RowSelector
from consentry.trainer.purge.versions import Conflict, VersionedTable

_PREFIX: Final = "consentry.purge."
"""Properties of the table: the rows removed by order key, and the version before the first of them.
"""


def iceberg_table(
    name: str, *, columns: Columns | None = None, properties: Mapping[str, str] | None = None
) -> VersionedTable:
    """Return the Iceberg table to purge, CATALOG.NAMESPACE.TABLE.

    pyiceberg's settings name the catalog. Raises InvalidInput.
    """
    catalog, _, identifier = name.partition(".")
    if "." not in identifier:
        raise InvalidInput(
            f"The Iceberg table {name!r} is not CATALOG.NAMESPACE.TABLE.",
            code="input.dataset",
            fix="write it so",
        )
    try:
        table = load_catalog(catalog, **(properties or {})).load_table(identifier)
    except NoSuchTableError as error:
        raise InvalidInput(
            f"There is no table {identifier!r} in the Iceberg catalog {catalog!r}.",
            code="input.dataset",
            fix="check the name, and pyiceberg's settings of the catalog",
        ) from error
    return VersionedTable(identifier, _IcebergTable(table, columns))


class _IcebergTable:
    """See versions.Versions."""

    def __init__(self, table: Table, columns: Columns | None) -> None:
        self._table = table
        self._columns = columns

    def newest(self) -> _IcebergVersion:
        self._table.refresh()
        return _IcebergVersion(self._table, self._table.current_snapshot(), self._columns)

    def older(self) -> Iterator[_IcebergVersion]:
        current = self._table.current_snapshot()
        snapshots = sorted(
            self._table.snapshots(), key=lambda snapshot: snapshot.timestamp_ms, reverse=True
        )
        for snapshot in snapshots:
            if current is None or snapshot.snapshot_id != current.snapshot_id:
                yield _IcebergVersion(self._table, snapshot, self._columns)

    def stray_files(self, named: Collection[str]) -> Collection[str]:
        """Return nothing: the catalog, not a folder, says which files are the table's.

        Several tables may lie in one folder.
        """
        return ()

    def totals(self) -> Mapping[str, OrderTotal]:
        self._table.refresh()
        totals: dict[str, OrderTotal] = {}
        for name, value in self._table.properties.items():
            if name.startswith(_PREFIX):
                key = name.removeprefix(_PREFIX)
                totals[key] = OrderTotal(*json.loads(value))
        return totals

    def vacuum(self) -> tuple[str, ...]:
        """Expire all snapshots but those that a branch or tag names, and delete their own files."""
        self._table.refresh()
        before = {snapshot.snapshot_id: snapshot for snapshot in self._table.snapshots()}
        referenced = {reference.snapshot_id for reference in self._table.metadata.refs.values()}
        expired = [number for number in before if number not in referenced]
        if not expired:
            return ()
        files = {number: set(self._files_of(snapshot)) for number, snapshot in before.items()}
        self._table.maintenance.expire_snapshots().by_ids(expired).commit()
        self._table.refresh()
        still_used: set[str] = set()
        for snapshot in self._table.snapshots():
            still_used |= files.get(snapshot.snapshot_id) or set(self._files_of(snapshot))
        of_expired: set[str] = set()
        for number in expired:
            of_expired |= files[number]
        for path in sorted(of_expired - still_used):
            self._table.io.delete(path)
        return tuple(str(number) for number in expired)

    def _files_of(self, snapshot: Snapshot) -> Iterator[str]:
        """Yield the data files of a snapshot, and the lists of them, which hold values of rows."""
        if snapshot.manifest_list:
            yield snapshot.manifest_list
        for manifest in snapshot.manifests(self._table.io):
            yield manifest.manifest_path
            for entry in manifest.fetch_manifest_entry(self._table.io, discard_deleted=True):
                yield entry.data_file.file_path


class _IcebergVersion:
    """See versions.Version."""

    def __init__(self, table: Table, snapshot: Snapshot | None, columns: Columns | None) -> None:
        self._table = table
        self._snapshot = snapshot
        if snapshot is None:
            self._schema = table.schema()
        else:
            self._schema = _schema_of(table, snapshot)
        names = [field.name for field in self._schema.fields]
        self._columns = find_columns(names, columns)

    @property
    def id(self) -> str:
        if self._snapshot is None:
            return "none"
        return str(self._snapshot.snapshot_id)

    @cached_property
    def _tasks(self) -> dict[str, FileScanTask]:
        if self._snapshot is None:
            return {}
        try:
            planned = list(self._table.scan(snapshot_id=self._snapshot.snapshot_id).plan_files())
        except ValueError as error:
            raise Refused(
                f"The Iceberg table deletes rows in a way that cannot be read here: {error}",
                code="purge.iceberg_feature",
                fix="have it compacted first",
            ) from error
        return {task.file.file_path: task for task in planned}

    @cached_property
    def files(self) -> Mapping[str, int]:
        return {path: task.file.file_size_in_bytes for path, task in self._tasks.items()}

    def examine(self, path: str, selector: RowSelector) -> FileResult:
        table = self._read(path, self._schema.select(*self._columns.names))
        selection = selector.select_rows(table, self._columns)
        return FileResult(
            name=path,
            rows=table.num_rows,
            selected=selection.counts(selector.order_ids),
            unknown=selection.unknown,
        )

    def _read(self, path: str, schema: Schema) -> pa.Table:
        scan = ArrowScan(self._table.metadata, self._table.io, schema, AlwaysTrue())
        return scan.to_table(tasks=[self._tasks[path]])

    def commit(
        self, files: list[FileResult], selector: RowSelector, rows: Mapping[str, int]
    ) -> None:
        commit_id = uuid.uuid4()
        counter = itertools.count(0)
        new: list[DataFile] = []
        try:
            with self._table.transaction() as transaction:
                with transaction.update_snapshot().overwrite(commit_uuid=commit_id) as overwrite:
                    # All manifests are searched for the files that are deleted below.
                    overwrite.delete_by_predicate(AlwaysTrue())
                    for file in files:
                        overwrite.delete_data_file(self._tasks[file.name].file)
                        for added in self._write_rest(file.name, selector, commit_id, counter):
                            new.append(added)
                            overwrite.append_data_file(added)
                transaction.set_properties(self._properties_with(rows))
        except (CommitFailedException, ValidationException) as error:
            for added in new:
                self._table.io.delete(added.file_path)
            raise Conflict from error

    def _write_rest(
        self, path: str, selector: RowSelector, commit_id: uuid.UUID, counter: Any
    ) -> Iterator[DataFile]:
        """Write the rows of a file that stay; no file where none does."""
        table = self._read(path, self._schema)
        keep = selector.select_rows(table, self._columns).keep
        rest = table.filter(pa.array(keep))
        if rest.num_rows:
            yield from _dataframe_to_data_files(
                self._table.metadata, rest, self._table.io, write_uuid=commit_id, counter=counter
            )

    def _properties_with(self, rows: Mapping[str, int]) -> dict[str, str]:
        """Return the table's totals by order key, after these rows were removed too."""
        known = self._table.properties
        properties: dict[str, str] = {}
        for key, number in rows.items():
            total = OrderTotal(0, self.id)
            if _PREFIX + key in known:
                total = OrderTotal(*json.loads(known[_PREFIX + key]))
            properties[_PREFIX + key] = json.dumps([total.rows + number, total.version_before])
        return properties


def _schema_of(table: Table, snapshot: Snapshot) -> Schema:
    schemas = table.schemas()
    if snapshot.schema_id in schemas:
        return schemas[snapshot.schema_id]
    return table.schema()
