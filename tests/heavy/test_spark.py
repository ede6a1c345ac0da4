"""Spark: the same rows as everywhere, by plain joins, and nobody let through by a file, a name or a delay."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from tests.contract.filters import corpus
from tests.contract.filters.corpus import Corpus

from consentry.domain.values import Reason

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Spark's own, on the versions of pandas and of Python
    from pyspark.sql import DataFrame, SparkSession

    from consentry.trainer.integrations import spark_


@pytest.fixture(scope="module")
def small() -> Corpus:
    """The small corpus."""
    return corpus.small()


def kept(frame: DataFrame) -> list[int]:
    """The rows that are left."""
    return sorted(frame.toArrow()["row"].to_pylist())


@pytest.mark.parametrize("ids", ["text", "integers"])
def test_spark_keeps_the_rows_that_the_rules_allow(spark: SparkSession, ids: Any) -> None:
    """Whoever trains on Spark trains on the same people as everybody else."""
    given = corpus.small(ids)
    frame = spark.createDataFrame(given.table)

    found = spark_.filter(given.judge, frame, purpose=given.purpose)

    assert found.columns == frame.columns
    table = found.toArrow()
    assert table.sort_by("row").cast(given.kept.schema).equals(given.kept.combine_chunks())
    reasons = spark_.with_reasons(given.judge, frame, purpose=given.purpose).groupBy("consentry_reason").count()
    assert {Reason(row["consentry_reason"]): row["count"] for row in reasons.collect()} == dict(given.reasons)
