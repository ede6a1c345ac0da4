"""Purge a Parquet directory with Spark: executors examine files, this machine replaces them."""

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
    TaskRunner,
    read_result,
    result_fields,
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
    """Return a directory for Spark to purge, under one path on all machines, as on NFS.

    The executors need this package. The selector is sent to each of them with its snapshot.
    """
    if spark is None:
        builder = SparkSession.builder.appName("consentry-purge")
        if master:
            builder = builder.master(master)
        spark = builder.getOrCreate()
    return ParquetDirectory(
        directory, columns=columns, run=run_on(spark), files_at_once=_FILES_AT_ONCE
    )


def run_on(spark: SparkSession) -> TaskRunner:
    """Return what examines a purge's files on a Spark session's executors, one task a file.

    No row ever leaves the executors. Raises Refused for Spark Connect.
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
        partitions = min(len(tasks), _TASKS_MAX) or 1
        distributed = context.parallelize([asdict(task) for task in tasks], partitions)
        # A function of this module only, so that executors need this package and nothing of the
        # caller.
        answers = distributed.map(partial(_work, worker)).collect()
        return map(_read_answer, answers)

    return run


def _work(worker: FileWorker, task: dict[str, Any]) -> dict[str, Any]:
    """Return the result's fields, or those of our own error, which Spark would wrap in its own."""
    try:
        return dict(result_fields(worker(FileTask(**task))))
    except ConsentryError as error:
        return {
            "error": type(error).__name__,
            "message": error.message,
            "code": error.code,
            "fix": error.fix,
        }


def _read_answer(fields: dict[str, Any]) -> FileResult:
    """Return the result that an executor sent. Raises the ConsentryError that it sent instead."""
    if "error" not in fields:
        return read_result(fields)
    if fields["error"] == "DatasetChanged":
        raise DatasetChanged(fields["message"])
    kind = getattr(errors, fields["error"], ConsentryError)
    raise kind(fields["message"], code=fields["code"], fix=fields["fix"])
