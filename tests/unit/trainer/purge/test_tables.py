"""What Delta and Iceberg tables promise beyond the contract: their own logs, other committers, what
they cannot do.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from tests.strategies import day
from tests.unit.trainer.purge.dataset_contract import (
    FIRST,
    SECOND,
    OnFirstLook,
    erasure,
    of_scope,
    rows,
)

from consentry.domain.errors import InvalidInput, Refused
from consentry.ops.clock import system_clock
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge import delta as delta_module
from consentry.trainer.purge import open_dataset as opening
from consentry.trainer.purge import versions
from consentry.trainer.purge.dataset import DatasetChanged
from consentry.trainer.purge.delta import delta_table
from consentry.trainer.purge.iceberg import iceberg_table
from consentry.trainer.purge.open_dataset import open_dataset
from consentry.trainer.purge.parquet import ParquetDirectory
from consentry.trainer.purge.row_selector import OrdersSelector
from consentry.trainer.purge.versions import VersionedTable


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A Delta table of two files."""
    for table in (FIRST, SECOND):
        deltalake.write_deltalake(tmp_path / "posts", table, mode="append")
    return tmp_path / "posts"


def selector(snapshot: Snapshot, *members: str) -> OrdersSelector:
    """Orders for members."""
    return OrdersSelector([erasure(member) for member in members], snapshot, day(30))


def opened(path: Path) -> VersionedTable:
    """The Delta table there."""
    return delta_table(str(path), clock=system_clock)


def texts(path: Path) -> list[str]:
    """What a Delta table holds."""
    return sorted(deltalake.DeltaTable(path).to_pyarrow_table()["text"].to_pylist())


class TestDelta:
    def test_the_log_says_what_was_purged_and_names_no_member(
        self, delta: Path, snapshot: Snapshot
    ) -> None:
        """The log is read by everybody who reads the table, for years."""
        opened(delta).apply(selector(snapshot, "ana"))

        commit = deltalake.DeltaTable(delta).history(1)[0]
        assert list(json.loads(commit["consentry.purge.rows"]).values()) == [3]
        assert "erasure" not in json.dumps(commit, default=str)

    def test_one_commit_replaces_all_files(self, delta: Path, snapshot: Snapshot) -> None:
        """No reader ever sees half of a purge."""
        before = deltalake.DeltaTable(delta).version()

        result = opened(delta).apply(selector(snapshot, "ana"))

        assert deltalake.DeltaTable(delta).version() == before + 1
        assert (result.version_before, result.version_after) == (str(before), str(before + 1))

    def test_who_compacts_the_table_meanwhile_wins_and_is_purged_then(
        self, delta: Path, snapshot: Snapshot
    ) -> None:
        """Both commits would keep the rows twice: once purged, once not."""
        happening = OnFirstLook(
            selector(snapshot, "ana"), lambda: deltalake.DeltaTable(delta).optimize.compact()
        )

        result = opened(delta).apply(happening)

        assert texts(delta) == ["b1", "c1", "n1", "w1"]
        assert result.rows_removed == {"erasure:ana": 3}
        assert result.files_rewritten == 1

    def test_a_table_that_never_comes_to_rest_is_told(
        self, delta: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To go round for ever tells nobody anything."""
        monkeypatch.setattr(versions, "_ATTEMPTS_MAX", 2)

        class Busy(OnFirstLook):
            def select_rows(self, *given: Any) -> Any:
                deltalake.write_deltalake(delta, rows(("ana", "US", "again")), mode="append")
                return super().select_rows(*given)

        with pytest.raises(DatasetChanged, match="while it was purged"):
            opened(delta).apply(Busy(selector(snapshot, "ana"), lambda: None))

    def test_partitions_with_odd_names_stay_what_they_are(
        self, tmp_path: Path, snapshot: Snapshot
    ) -> None:
        """A path is written encoded in one place and not in another; the wrong one loses the
        file.
        """
        table = pa.table(
            {
                "member_id": ["ana", "bob", "cleo", "ana"],
                "category": ["a b", "a b", None, "ü=1/2%"],
                "day": pa.array([1, 2, 3, 4], pa.date32()),
                "text": ["1", "2", "3", "4"],
            }
        )
        deltalake.write_deltalake(tmp_path / "t", table, partition_by=["category", "day"])

        opened(tmp_path / "t").apply(selector(snapshot, "ana", "nobody"))

        left = pa.table(deltalake.DeltaTable(tmp_path / "t").to_pyarrow_table()).select(
            table.column_names
        )
        assert left.sort_by("text").equals(table.slice(1, 2))
        assert deltalake.DeltaTable(tmp_path / "t").vacuum(
            0, dry_run=False, enforce_retention_duration=False
        )
        assert texts(tmp_path / "t") == ["2", "3"]

    def test_a_column_that_came_later_is_null_before(
        self, tmp_path: Path, snapshot: Snapshot
    ) -> None:
        """The files of last year have no jurisdiction; their residents' rows are found all the
        same.
        """
        deltalake.write_deltalake(tmp_path / "t", FIRST.drop_columns(["jurisdiction"]))
        deltalake.write_deltalake(tmp_path / "t", SECOND, mode="append", schema_mode="merge")

        opened(tmp_path / "t").apply(
            OrdersSelector([of_scope("US"), erasure("ana")], snapshot, day(30))
        )

        assert texts(tmp_path / "t") == ["b1", "n1", "w1"]

    def test_bounds_in_the_log_are_those_of_what_is_left(
        self, delta: Path, snapshot: Snapshot
    ) -> None:
        """A reader skips files by them; too narrow ones hide rows, and old ones name the erased."""
        opened(delta).apply(selector(snapshot, "ana"))

        added = pa.table(deltalake.DeltaTable(delta).get_add_actions()).to_pylist()
        assert sorted((one["min"]["member_id"], one["max"]["member_id"]) for one in added) == [
            ("bob", "bob"),
            ("cleo", "wing"),
        ]
        assert sum(one["num_records"] for one in added) == 4

    def test_deletion_vectors_are_refused_by_name(self, delta: Path, snapshot: Snapshot) -> None:
        """Its files hold rows that the table does not; read without them, deleted rows would come
        back.
        """
        deltalake.DeltaTable(delta).alter.add_feature(
            deltalake.TableFeatures.DeletionVectors, allow_protocol_versions_increase=True
        )

        with pytest.raises(Refused, match="deletion vectors"):
            opened(delta).apply(selector(snapshot, "ana"))

    def test_a_failed_commit_leaves_no_files(
        self, delta: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A copy of the kept rows that nobody knows of is the next one to be forgotten in a
        purge.
        """
        files = set(os.listdir(delta))

        def fail(*_given: object, **_more: object) -> None:
            raise deltalake.exceptions.CommitFailedError("another one was first")

        monkeypatch.setattr(deltalake.DeltaTable, "create_write_transaction", fail)
        with pytest.raises(DatasetChanged):
            opened(delta).apply(selector(snapshot, "ana"))

        assert set(os.listdir(delta)) == files

    def test_a_file_that_cannot_be_read_is_named_by_verify(
        self, delta: Path, snapshot: Snapshot
    ) -> None:
        """Nobody can say that it holds nothing."""
        path = Path(deltalake.DeltaTable(delta).file_uris()[0])
        path.write_bytes(b"broken")

        found = opened(delta).verify(selector(snapshot, "nobody"))

        assert found.exit_status == 2
        assert path.name in found.unreadable[0]

    def test_an_old_version_that_cannot_be_opened_is_not_told_clean(
        self, delta: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The store hiccups for a second, and a regulator is told that the rows are gone."""
        opened(delta).apply(selector(snapshot, "ana"))
        load = delta_module._DeltaTable._load

        def hiccup(
            table: delta_module._DeltaTable, version: int | None = None
        ) -> deltalake.DeltaTable:
            if version is not None:
                raise OSError("connection reset")
            return load(table, version)

        monkeypatch.setattr(delta_module._DeltaTable, "_load", hiccup)
        found = opened(delta).verify(selector(snapshot, "nobody"))

        assert found.exit_status == 2
        assert len(found.unreadable) == 2
        assert (
            opened(delta).verify(selector(snapshot, "nobody"), old_versions=False).exit_status == 0
        )

    def test_a_missing_log_entry_hides_no_rows(self, delta: Path, snapshot: Snapshot) -> None:
        """With one entry lost, everything older went unseen, and the answer was clean."""
        opened(delta).apply(selector(snapshot, "ana"))
        deltalake.DeltaTable(delta).create_checkpoint()
        (delta / "_delta_log" / f"{1:020}.json").unlink()

        found = opened(delta).verify(selector(snapshot, "ana"))

        assert found.exit_status != 0
        assert found.old_versions.keys() == {"0"}
        assert any("older version 1" in why for why in found.unreadable)
        assert opened(delta).verify(selector(snapshot, "nobody")).exit_status == 2

    def test_files_whose_log_was_cleaned_away_are_looked_into(
        self, delta: Path, snapshot: Snapshot
    ) -> None:
        """No version names them any more, so a vacuum by the log leaves them for ever, with the
        rows in them.
        """
        opened(delta).apply(selector(snapshot, "ana"))
        deltalake.DeltaTable(delta).create_checkpoint()
        for version in (0, 1):
            (delta / "_delta_log" / f"{version:020}.json").unlink()

        found = opened(delta).verify(selector(snapshot, "ana"))

        assert found.exit_status == 2
        assert len(found.unreadable) == 2
        assert opened(delta).verify(selector(snapshot, "nobody")).exit_status == 0

    def test_what_a_killed_writer_left_torn_is_not_told_clean(
        self, delta: Path, snapshot: Snapshot
    ) -> None:
        """Nobody can say what is in half a file; a full vacuum destroys it."""
        (delta / "part-00000-torn.parquet").write_bytes(b"PAR1 half")

        assert opened(delta).verify(selector(snapshot, "nobody")).exit_status == 2
        deltalake.DeltaTable(delta).vacuum(
            0, dry_run=False, enforce_retention_duration=False, full=True
        )
        assert opened(delta).verify(selector(snapshot, "nobody")).exit_status == 0


class TestIceberg:
    @pytest.fixture
    def properties(self, tmp_path: Path) -> dict[str, str]:
        """A catalog of one file."""
        return {
            "type": "sql",
            "uri": f"sqlite:///{tmp_path}/catalog.db",
            "warehouse": f"file://{tmp_path}",
        }

    @pytest.fixture
    def catalog(self, properties: dict[str, str]) -> SqlCatalog:
        """With a table of two files."""
        catalog = SqlCatalog("local", **properties)
        catalog.create_namespace("lake")
        table = catalog.create_table("lake.posts", schema=FIRST.schema)
        table.append(FIRST)
        table.append(SECOND)
        return catalog

    def test_the_tables_properties_keep_the_rows_and_name_no_member(
        self, catalog: SqlCatalog, properties: dict[str, str], snapshot: Snapshot
    ) -> None:
        """They outlive the snapshots, so that after a vacuum the answer is still the same."""
        dataset = iceberg_table("local.lake.posts", properties=properties)
        first = dataset.apply(selector(snapshot, "ana"))
        dataset.vacuum()

        again = iceberg_table("local.lake.posts", properties=properties).apply(
            selector(snapshot, "ana")
        )

        assert again.rows_in_all == {"erasure:ana": 3}
        assert again.versions_first == {"erasure:ana": first.version_before}
        told = catalog.load_table("lake.posts").properties
        assert not [name for name in told if "ana" in name]

    def test_a_tag_keeps_its_snapshot_and_verify_says_so(
        self, catalog: SqlCatalog, properties: dict[str, str], snapshot: Snapshot
    ) -> None:
        """A tag is somebody's word that the state is still needed; the rows in it are not gone."""
        table = catalog.load_table("lake.posts")
        kept = table.current_snapshot()
        assert kept is not None
        table.manage_snapshots().create_tag(kept.snapshot_id, "release").commit()
        dataset = iceberg_table("local.lake.posts", properties=properties)
        dataset.apply(selector(snapshot, "ana"))

        dataset.vacuum()

        found = dataset.verify(selector(snapshot, "ana"))
        assert found.old_versions == {str(kept.snapshot_id): 3}
        assert (
            sorted(table.scan(snapshot_id=kept.snapshot_id).to_arrow()["text"].to_pylist())[0]
            == "a1"
        )

    def test_who_replaces_the_rows_meanwhile_wins_and_is_purged_then(
        self, catalog: SqlCatalog, properties: dict[str, str], snapshot: Snapshot
    ) -> None:
        """Both commits would keep the rows twice."""
        late = rows(("ana", "US", "new"), ("dora", "US", "d1"))
        happening = OnFirstLook(
            selector(snapshot, "ana"), lambda: catalog.load_table("lake.posts").overwrite(late)
        )

        result = iceberg_table("local.lake.posts", properties=properties).apply(happening)

        assert catalog.load_table("lake.posts").scan().to_arrow()["text"].to_pylist() == ["d1"]
        assert result.rows_removed == {"erasure:ana": 1}

    def test_a_table_without_a_snapshot_has_nothing_to_purge(
        self, catalog: SqlCatalog, properties: dict[str, str], snapshot: Snapshot
    ) -> None:
        """It was made a minute ago; that is no error."""
        catalog.create_table("lake.empty", schema=FIRST.schema)
        dataset = iceberg_table("local.lake.empty", properties=properties)

        assert dataset.apply(selector(snapshot, "ana")).rows_in_all == {"erasure:ana": 0}
        assert dataset.verify(selector(snapshot, "ana")).exit_status == 0

    @pytest.mark.parametrize("name", ["local.posts", "local.lake.nothing"])
    def test_a_name_that_is_none_is_refused(
        self, catalog: SqlCatalog, properties: dict[str, str], name: str
    ) -> None:
        """NOT_FOUND has to mean that somebody looked."""
        assert catalog.list_tables("lake")
        with pytest.raises(InvalidInput):
            iceberg_table(name, properties=properties)


class TestOpening:
    def test_what_a_name_means(self, delta: Path, tmp_path: Path) -> None:
        """A Delta table's files taken for a plain directory would be rewritten under the log's
        feet.
        """
        (tmp_path / "plain").mkdir()
        pq.write_table(FIRST, tmp_path / "plain" / "a.parquet")

        assert isinstance(
            open_dataset(str(tmp_path / "plain"), clock=system_clock), ParquetDirectory
        )
        assert open_dataset(str(delta), clock=system_clock).keeps_versions
        assert open_dataset(f"delta:{delta}", clock=system_clock).keeps_versions

    @pytest.mark.parametrize("name", ["nowhere", "delta:nowhere", "iceberg:nowhere"])
    def test_what_is_not_there_is_refused(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing was looked at, so nothing may be answered."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InvalidInput):
            open_dataset(name, clock=system_clock)

    def test_a_table_is_not_given_to_spark(self, delta: Path) -> None:
        """Asked for and silently not done, it would run for a week on one machine."""
        with pytest.raises(InvalidInput, match="Spark"):
            open_dataset(str(delta), clock=system_clock, spark_master="local[1]")

    def test_a_missing_library_names_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever reads 'No module named deltalake' does not know what to install."""

        def absent(*_given: object) -> object:
            raise ModuleNotFoundError("No module named 'deltalake'", name="deltalake")

        monkeypatch.setattr(opening, "_open", absent)
        with pytest.raises(Refused, match=r"consentry\[delta\]"):
            open_dataset("delta:x", clock=system_clock)
