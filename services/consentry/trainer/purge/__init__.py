"""Purge a data set: delete the rows that purge orders name, or that may not be used.

Each file is rewritten whole, or not at all. `purge` is for directories of Parquet files;
`open_dataset.open_dataset` opens every kind of data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from consentry.domain.orders import PurgeOrder
from consentry.domain.values import Micros
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge.dataset import PurgeResult
from consentry.trainer.purge.files import dataset_files, dataset_version, read_dataset, read_file
from consentry.trainer.purge.parquet import ParquetDirectory
from consentry.trainer.purge.row_selector import OrdersSelector

__all__ = ["PurgeResult", "dataset_files", "dataset_version", "purge", "read_dataset", "read_file"]


def purge(
    directory: Path,
    orders: Sequence[PurgeOrder],
    snapshot: Snapshot,
    *,
    now: Micros,
    columns: Columns | None = None,
) -> PurgeResult:
    """Purge Parquet files: rewrite every one that holds rows of the orders, without these rows.

    It is idempotent: killed anywhere, each file is the old or the new one, and running again
    finishes the rest. `now` is in microseconds. Without `columns` each file's columns are found by
    their conventional names. Raises DatasetChanged where somebody else writes meanwhile.
    """
    selector = OrdersSelector(orders, snapshot, now)
    return ParquetDirectory(directory, columns=columns).apply(selector)
