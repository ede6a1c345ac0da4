"""Purging a directory that is larger than one machine: Spark gives each file to a machine, this one swaps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import SparkSession

from consentry.domain import errors
from consentry.domain.errors import ConsentryError
from consentry.trainer.filter import Columns
from consentry.trainer.purge.outcome import DatasetChanged
from consentry.trainer.purge.parquet import ParquetDirectory
from consentry.trainer.purge.work import Done, Run, Task, Worker, as_fields, from_fields

_TASKS_MAX: Final = 1000
_FILES_AT_ONCE: Final = 1000


def spark_directory(
    directory: Path, *, columns: Columns | None = None, spark: SparkSession | None = None, master: str = ""
) -> ParquetDirectory:
    """A directory that this machine and every executor see under the same path, such as on NFS.

    The executors need this package. The cover is sent to each of them with the view that it asks.
    """
    if spark is None:
        builder = SparkSession.builder.appName("consentry-purge")
        spark = (builder.master(master) if master else builder).getOrCreate()
    return ParquetDirectory(directory, columns=columns, run=run_on(spark), files_at_once=_FILES_AT_ONCE)


def run_on(spark: SparkSession) -> Run:
    """Does the work on files by the executors of a session: one task per file, and no row ever leaves them."""

    def run(worker: Worker, tasks: Sequence[Task]) -> Iterator[Done]:
        asked = spark.createDataFrame([(json.dumps(asdict(task)),) for task in tasks], "task string")
        spread = asked.repartition(min(len(tasks), _TASKS_MAX))
        for row in spread.mapInArrow(_worked(worker), "done string").collect():
            yield _answer(json.loads(row["done"]))

    return run


def _worked(worker: Worker) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            done = [json.dumps(_work(worker, json.loads(task))) for task in batch.column("task").to_pylist()]
            yield pa.RecordBatch.from_pydict({"done": pa.array(done, pa.string())})

    return work


def _work(worker: Worker, task: dict[str, Any]) -> dict[str, Any]:
    """What was done, or our own error, which would come back as Spark's otherwise."""
    try:
        return dict(as_fields(worker(Task(**task))))
    except ConsentryError as error:
        return {"error": type(error).__name__, "message": error.message, "code": error.code, "fix": error.fix}
    except FileNotFoundError:
        return {"error": "DatasetChanged", "message": f"The file {task['name']!r} has vanished."}


def _answer(fields: dict[str, Any]) -> Done:
    if "error" not in fields:
        return from_fields(fields)
    if fields["error"] == "DatasetChanged":
        raise DatasetChanged(fields["message"])
    kind = getattr(errors, fields["error"], ConsentryError)
    raise kind(fields["message"], code=fields["code"], fix=fields["fix"])
