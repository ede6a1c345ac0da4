"""Purging by Spark: the same data set as on one machine, from files that Spark wrote and can still
read.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from tests.strategies import PURPOSE, day, policy, terms
from tests.unit.trainer.purge.dataset_contract import DatasetContract, erasure, many, of_scope

from consentry.domain.controls import Controls
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge.dataset import Dataset
from consentry.trainer.purge.files import listing
from consentry.trainer.purge.parquet import ParquetDirectory
from consentry.trainer.purge.row_selector import ExcludedSelector, JointSelector, OrdersSelector
from consentry.trainer.purge.spark import run_on, spark_directory
from consentry.wire.jurisdictions import iso_jurisdictions

PARTITIONS = 4


@pytest.fixture
def snapshot() -> Snapshot:
    """Nobody is known yet; one policy allows the purpose everywhere."""
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    snapshot.apply_control(policy(900, terms("*"), on=0))
    assert isinstance(snapshot.controls, Controls)
    return snapshot


class TestSparkDirectory(DatasetContract):
    @pytest.fixture(autouse=True)
    def _session(self, spark: Any) -> None:
        self.spark = spark

    def make(
        self, directory: Path, tables: Sequence[pa.Table], columns: Columns | None = None
    ) -> Dataset:
        directory.mkdir()
        for table in tables:
            self.append(directory, table)
        return spark_directory(directory, columns=columns, spark=self.spark)

    def append(self, directory: Path, table: pa.Table) -> None:
        pq.write_table(table, directory / f"{uuid4()}.parquet")

    def read(self, directory: Path) -> pa.Table:
        return pyarrow.dataset.dataset(directory, format="parquet").to_table()

    # What happens in the selector happens in another process here, which has no hand in this one.
    test_what_another_writer_adds_meanwhile_is_not_lost_and_not_overlooked = None  # type: ignore[assignment]
    test_an_error_half_way_leaves_what_was_not_reached = None  # type: ignore[assignment]


def test_spark_and_one_machine_make_equal_data_sets(
    spark: Any, tmp_path: Path, snapshot: Snapshot
) -> None:
    """Whoever moves a job to Spark must not keep other rows by it; and Spark must read on what it
    wrote itself.
    """
    table = pa.concat_tables([many(4000, seed=seed) for seed in range(1, 6)])
    pq.write_table(table, tmp_path / "all.parquet")
    written = spark.read.parquet(str(tmp_path / "all.parquet")).selectExpr(
        "member_id",
        "case when hash(text) % 10 = 0 then 'HK' else jurisdiction end as jurisdiction",
        "text",
        "timestamp_micros(hash(text)) as collected_at",
        "cast(hash(text) % 1000 as decimal(9, 2)) as price",
        "array(text, member_id) as words",
    )
    by_spark, by_one = tmp_path / "by-spark", tmp_path / "by-one"
    written.repartition(5).write.partitionBy("jurisdiction").parquet(str(by_spark))
    shutil.copytree(by_spark, by_one)
    selector = JointSelector(
        [
            OrdersSelector([erasure("m3"), erasure("m77"), of_scope("HK")], snapshot, day(30)),
            ExcludedSelector(SnapshotDecider(snapshot, at=day(30)), PURPOSE),
        ]
    )

    here = ParquetDirectory(by_one).apply(selector)
    there = spark_directory(by_spark, spark=spark).apply(selector)

    assert here.rows_removed == there.rows_removed
    assert here.rows_removed["pause:p:1"] > 0
    assert {name: found.footer for name, found in listing(by_one).items()} == {
        name: found.footer for name, found in listing(by_spark).items()
    }
    left, right = (spark.read.parquet(str(path)) for path in (by_one, by_spark))
    assert left.schema == right.schema
    assert left.exceptAll(right).count() == right.exceptAll(left).count() == 0
    expected = written.where("member_id not in ('m3', 'm77') and jurisdiction <> 'HK'").select(
        *left.columns
    )
    assert right.exceptAll(expected).count() == expected.exceptAll(right).count() == 0
    # A directory of its own is looked through again by both.
    for dataset in (
        ParquetDirectory(by_spark),
        ParquetDirectory(by_one, run=run_on(spark), files_at_once=3),
    ):
        assert dataset.verify(selector).exit_status in (0, 2)
        assert dataset.verify(selector).rows_left == {}
