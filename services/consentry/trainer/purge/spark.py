"""Purging a directory that is larger than one machine:

Spark gives each file to a machine, this one swaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from pyspark.sql import SparkSession

from consentry.domain import errors
from consentry.domain.errors import ConsentryError, Refused
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.purge.dataset import DatasetChanged
from consentry.trainer.purge.file_worker import (
    FileResult,
    FileTask,
    FileWorker,
    Run,
    as_fields,
    from_fields,
)
from consentry.trainer.purge.parquet import ParquetDirectory

_TASKS_MAX: Final = 1000
_FILES_AT_ONCE: Final = 1000


def spark_directory(
    directory: Path,
    *,
    columns: Columns | None = None,
    spark: SparkSession | None = None,
    master: str = "",
) -> ParquetDirectory:
    """A directory that this machine and every executor see under the same path, such as on NFS.

    The executors need this package. The cover is sent to each of them with the view that it asks.
    """
    if spark is None:
        builder = SparkSession.builder.appName("consentry-purge")
        spark = (builder.master(master) if master else builder).getOrCreate()
    return ParquetDirectory(
        directory, columns=columns, run=run_on(spark), files_at_once=_FILES_AT_ONCE
    )


def run_on(spark: SparkSession) -> Run:
    """Does the work on files by the executors of a session: one task per file, and no row ever
    leaves them.
    """

    try:
        context = spark.sparkContext
    except AttributeError as error:
        raise Refused(
            "Spark Connect cannot give files to machines.",
            code="purge.spark_connect",
            fix="run this on the cluster's own driver, such as by spark-submit",
        ) from error

    def run(worker: FileWorker, tasks: Sequence[FileTask]) -> Iterator[FileResult]:
        asked = context.parallelize(
            [asdict(task) for task in tasks], min(len(tasks), _TASKS_MAX) or 1
        )
        # A function of this module only, so that executors need this package and nothing of the
        # caller.
        return map(_answer, asked.map(partial(_work, worker)).collect())

    return run


def _work(worker: FileWorker, task: dict[str, Any]) -> dict[str, Any]:
    """What was done, or our own error, which would come back as Spark's otherwise."""
    try:
        return dict(as_fields(worker(FileTask(**task))))
    except ConsentryError as error:
        return {
            "error": type(error).__name__,
            "message": error.message,
            "code": error.code,
            "fix": error.fix,
        }


def _answer(fields: dict[str, Any]) -> FileResult:
    if "error" not in fields:
        return from_fields(fields)
    if fields["error"] == "DatasetChanged":
        raise DatasetChanged(fields["message"])
    kind = getattr(errors, fields["error"], ConsentryError)
    raise kind(fields["message"], code=fields["code"], fix=fields["fix"])
