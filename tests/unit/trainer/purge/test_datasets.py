"""Every kind of data set keeps the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import deltalake
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from tests.unit.trainer.purge.dataset_contract import DatasetContract, VersionedDatasetContract

from consentry.ops.clock import system_clock
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.purge.dataset import Dataset
from consentry.trainer.purge.delta import delta_table
from consentry.trainer.purge.iceberg import iceberg_table
from consentry.trainer.purge.parquet import ParquetDirectory


class TestParquetDirectory(DatasetContract):
    def make(
        self, directory: Path, tables: Sequence[pa.Table], columns: Columns | None = None
    ) -> Dataset:
        directory.mkdir()
        for table in tables:
            self.append(directory, table)
        return ParquetDirectory(directory, columns=columns)

    def append(self, directory: Path, table: pa.Table) -> None:
        pq.write_table(table, directory / f"{uuid4()}.parquet")

    def read(self, directory: Path) -> pa.Table:
        return pyarrow.dataset.dataset(directory, format="parquet").to_table()


class TestHivePartitions(TestParquetDirectory):
    """The jurisdiction of a row is told by its folder alone."""

    FILES = (5, 3)

    def append(self, directory: Path, table: pa.Table) -> None:
        options = pyarrow.dataset.ParquetFileFormat().make_write_options()
        pyarrow.dataset.write_dataset(
            table,
            directory,
            format="parquet",
            file_options=options,
            partitioning=pyarrow.dataset.partitioning(
                pa.schema({"jurisdiction": pa.string()}), flavor="hive"
            ),
            basename_template=f"{uuid4()}-{{i}}.parquet",
            existing_data_behavior="overwrite_or_ignore",
        )

    def read(self, directory: Path) -> pa.Table:
        partitioning = pyarrow.dataset.partitioning(
            pa.schema({"jurisdiction": pa.string()}), flavor="hive"
        )
        table = pyarrow.dataset.dataset(
            directory, format="parquet", partitioning=partitioning
        ).to_table()
        return table.select(["member_id", "jurisdiction", "text"])


class TestDelta(VersionedDatasetContract):
    PARTITION_BY: list[str] | None = None

    def make(
        self, directory: Path, tables: Sequence[pa.Table], columns: Columns | None = None
    ) -> Dataset:
        for table in tables:
            self.append(directory, table)
        return delta_table(str(directory), clock=system_clock, columns=columns)

    def append(self, directory: Path, table: pa.Table) -> None:
        deltalake.write_deltalake(directory, table, mode="append", partition_by=self.PARTITION_BY)

    def read(self, directory: Path) -> pa.Table:
        return pa.table(
            deltalake.DeltaTable(directory)
            .to_pyarrow_table()
            .select(["member_id", "jurisdiction", "text"])
        )


class TestPartitionedDelta(TestDelta):
    """The jurisdiction of a row is told by the log alone."""

    FILES = (5, 3)
    PARTITION_BY = ["jurisdiction"]  # noqa: RUF012 - deltalake wants a list


class TestIceberg(VersionedDatasetContract):
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return tmp_path / "warehouse"

    def properties(self, directory: Path) -> dict[str, str]:
        return {
            "type": "sql",
            "uri": f"sqlite:///{directory}/catalog.db",
            "warehouse": f"file://{directory}",
        }

    def make(
        self, directory: Path, tables: Sequence[pa.Table], columns: Columns | None = None
    ) -> Dataset:
        directory.mkdir()
        catalog = SqlCatalog("local", **self.properties(directory))
        catalog.create_namespace("lake")
        table = catalog.create_table("lake.posts", schema=tables[0].schema)
        for one in tables:
            table.append(one)
        return iceberg_table(
            "local.lake.posts", columns=columns, properties=self.properties(directory)
        )

    def append(self, directory: Path, table: pa.Table) -> None:
        SqlCatalog("local", **self.properties(directory)).load_table("lake.posts").append(table)

    def read(self, directory: Path) -> pa.Table:
        return (
            SqlCatalog("local", **self.properties(directory))
            .load_table("lake.posts")
            .scan()
            .to_arrow()
        )
