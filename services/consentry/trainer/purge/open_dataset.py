"""Open the data set to purge that an argument names: a directory, a Delta or Iceberg table."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from consentry.domain.errors import InvalidInput, Refused
from consentry.ops.clock import Clock
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.purge.dataset import Dataset
from consentry.trainer.purge.parquet import ParquetDirectory

DELTA: Final = "delta:"
ICEBERG: Final = "iceberg:"
_EXTRAS: Final = {
    "deltalake": "delta",
    "pyiceberg": "iceberg",
    "sqlalchemy": "iceberg",
    "pyspark": "spark",
}


def open_dataset(
    name: str, *, clock: Clock, columns: Columns | None = None, spark_master: str | None = None
) -> Dataset:
    """Return the data set to purge: DIRECTORY, delta:PATH, iceberg:CATALOG.NAMESPACE.TABLE.

    A directory with a _delta_log is a Delta table. With `spark_master` Spark does the work on the
    files of a directory; '' is the master that Spark is set up with. Raises InvalidInput, and
    Refused where the library is not installed.
    """
    try:
        return _open(name, clock, columns, spark_master)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        raise Refused(
            f"The data set {name!r} needs the package {package!r}, which is not installed.",
            code="install.extra",
            fix=f"pip install 'consentry[{_EXTRAS[package]}]'",
        ) from error


def _open(name: str, clock: Clock, columns: Columns | None, spark_master: str | None) -> Dataset:
    is_iceberg = name.startswith(ICEBERG)
    has_delta_log = not is_iceberg and Path(name, "_delta_log").is_dir()
    is_delta = name.startswith(DELTA) or has_delta_log
    if spark_master is not None and (is_delta or is_iceberg):
        raise InvalidInput(
            f"The data set {name!r} is not a directory of Parquet files: Spark cannot purge it.",
            code="input.dataset",
            fix="leave --spark out; each touched file of a table is read and written one after "
            "the other",
        )
    if is_delta:
        from consentry.trainer.purge.delta import delta_table  # noqa: PLC0415 - an extra

        return delta_table(name.removeprefix(DELTA), clock=clock, columns=columns)
    if is_iceberg:
        from consentry.trainer.purge.iceberg import iceberg_table  # noqa: PLC0415 - an extra

        return iceberg_table(name.removeprefix(ICEBERG), columns=columns)
    if spark_master is not None:
        from consentry.trainer.purge.spark import spark_directory  # noqa: PLC0415 - an extra

        return spark_directory(Path(name), columns=columns, master=spark_master)
    return ParquetDirectory(Path(name), columns=columns)
