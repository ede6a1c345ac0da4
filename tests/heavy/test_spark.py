"""Spark: the same rows as everywhere, by plain joins, and nobody let through by a file, a name or a
delay.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.contract.filters import corpus
from tests.contract.filters.corpus import Corpus
from tests.heavy.conftest import packed_java_home

from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.wire.partitions import partitions_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Spark's own, on the versions of pandas and of Python
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as F

    from consentry.trainer.filters import spark_

COLUMN_BY_COLUMN = "member_id", "jurisdiction", "category", "collected_at"


@pytest.fixture(scope="module")
def small() -> Corpus:
    """The small corpus."""
    return corpus.small()


def kept(frame: DataFrame) -> list[int]:
    """The rows that are left."""
    rows: list[int] = frame.toArrow()["row"].to_pylist()
    return sorted(rows)


def plan_of(frame: DataFrame) -> str:
    """What Spark would do."""
    found: str = frame._jdf.queryExecution().executedPlan().toString()
    return found


@pytest.mark.parametrize("ids", ["text", "integers"])
@pytest.mark.parametrize("join", ["auto", "broadcast", "shuffle"])
def test_spark_keeps_the_rows_that_the_rules_allow(
    spark: SparkSession, ids: Any, join: Any, tmp_path: Path
) -> None:
    """Whoever trains on Spark trains on the same people as everybody else, however Spark joins
    them.
    """
    given, tally = corpus.small(ids), Counter[Reason]()
    frame = spark.createDataFrame(given.table)
    directory = tmp_path if join == "shuffle" else None

    found = spark_.filter(
        given.decider,
        frame,
        purpose=given.purpose,
        tally=tally,
        join=join,
        directory=directory,
        checkpoint=ids == "text",
    )

    table = found.toArrow().sort_by("row")
    assert table.select(given.kept.column_names).cast(given.kept.schema) == given.kept
    assert found.columns == frame.columns
    assert tally == given.reasons


def test_a_million_rows_are_the_very_rows_of_the_other_filters(spark: SparkSession) -> None:
    """What no small table shows: many members, in files, joined as Spark sees fit."""
    given = corpus.big()
    frame = spark.createDataFrame(given.table.select(["row", *COLUMN_BY_COLUMN]))

    assert kept(spark_.filter(given.decider, frame, purpose=given.purpose)) == given.kept_rows


@pytest.mark.parametrize("join", ["broadcast", "shuffle"])
def test_no_python_runs_on_the_executors_and_nothing_is_joined_row_by_row(
    spark: SparkSession, small: Corpus, join: Any
) -> None:
    """A Python function for each row takes days where a join takes minutes; a nested loop takes for
    ever.
    """
    frame = spark.range(10).selectExpr(
        "concat('m:', id) member_id", "hex(id) jurisdiction", "hex(id) category"
    )

    plan = plan_of(spark_.filter(small.decider, frame, purpose=small.purpose, join=join))

    assert re.search("Python|Pandas|InArrow", plan) is None
    assert re.search("NestedLoop|Cartesian", plan) is None
    assert ("SortMergeJoin" in plan) is (join == "shuffle")
    assert plan.count("Join") == 4


def test_every_type_of_time_is_read_as_arrow_reads_it(spark: SparkSession, small: Corpus) -> None:
    """The session's zone is Hong Kong: a time read in it would be eight hours off, and on another
    side of a cut-off.
    """
    table = small.table.append_column(
        "zoneless", small.table["collected_at"].cast(pa.timestamp("us"))
    )
    table = table.append_column("micros", table["collected_at"].cast(pa.int64()))
    table = table.append_column("day", table["zoneless"].cast(pa.date32(), safe=False))
    table = table.append_column("nothing", pa.nulls(table.num_rows))
    # Spark takes a zoneless time of Arrow for one of the session's zone, but reads one from Parquet
    # as what it is.
    told = table.set_column(
        table.column_names.index("zoneless"), "zoneless", table["zoneless"].cast(pa.string())
    )
    frame = spark.createDataFrame(told).withColumn(
        "zoneless", F.col("zoneless").cast("timestamp_ntz")
    )
    for name in ("collected_at", "zoneless", "micros", "day", "nothing", None):
        columns = Columns(jurisdiction="jurisdiction", category="category", collected=name)
        decisions = small.decider.decide_table(table, purpose=small.purpose, columns=columns)
        expected = table.filter(pa.array(decisions.mask))["row"].to_pylist()

        assert (
            kept(spark_.filter(small.decider, frame, purpose=small.purpose, columns=columns))
            == expected
        ), name
    with pytest.raises(InvalidInput, match="'score' holds double"):
        spark_.filter(
            small.decider, frame, purpose=small.purpose, columns=Columns(collected="score")
        )
    with pytest.raises(InvalidInput, match="'score' holds double"):
        spark_.filter(
            small.decider, frame, purpose=small.purpose, columns=Columns(jurisdiction="score")
        )


def test_unrecorded_members_of_a_tainted_partition_are_held(spark: SparkSession) -> None:
    """Somebody's event there could not even be told whose it was: it may have been anybody's
    opt-out.
    """
    given = corpus.small()
    ids = [f"{'x' * (number % 60)}:{number}"[-64:] for number in range(2_000)]
    frame = spark.createDataFrame(
        pa.table({"row": range(len(ids)), "member_id": ids, "jurisdiction": ["IN"] * len(ids)})
    )
    for partition in (1, 2):
        given.snapshot.freshness.tainted.add(partition)

    found = kept(spark_.filter(given.decider, frame, purpose=given.purpose))

    homes = partitions_of([one.encode() for one in ids], given.snapshot.partitions)
    assert found == [row for row, home in enumerate(homes) if home not in (1, 2)]


def test_murmur2_in_columns_is_the_one_of_kafka(spark: SparkSession) -> None:
    """Another hash would hold the wrong people, and allow those whom nothing is known of."""
    ids = [("aZ9:_-" * 11)[start : start + length] for length in range(1, 65) for start in range(3)]
    frame = spark.createDataFrame(pa.table({"id": ids}))

    found = (
        frame.select(spark_._partition(F.col("id"), 1_000_003).alias("home"))
        .toArrow()["home"]
        .to_pylist()
    )

    assert found == partitions_of([one.encode() for one in ids], 1_000_003).tolist()


def test_where_nothing_is_proven_every_row_is_left_out_and_counted(
    spark: SparkSession, small: Corpus
) -> None:
    """A plan that is made while nothing is known must not let through whom nothing is known of."""
    decider, tally = (
        SnapshotDecider(small.snapshot, at=small.at, stale_after_seconds=1),
        Counter[Reason](),
    )
    frame = spark.createDataFrame(small.table)

    found = spark_.filter(decider, frame, purpose=small.purpose, tally=tally)

    assert found.count() == 0
    assert tally == {Reason.STALE: small.table.num_rows}
    assert found.columns == frame.columns
    with pytest.raises(Unavailable, match="cannot wait for a consistency token"):
        spark_.filter(small.decider, frame, purpose=small.purpose, at_least="ct1.x")


def test_a_plan_that_is_run_too_late_fails(spark: SparkSession, small: Corpus) -> None:
    """Spark runs a plan when it is asked for its rows, be it a day later: who opted out meanwhile
    is not in it.
    """
    frame = spark.createDataFrame(small.table)
    old = spark_.filter(small.decider, frame, purpose=small.purpose, good_for_seconds=-1)
    with pytest.raises(Exception, match=r"trainer\.stale"):
        old.count()
    decided = spark_.filter(small.decider, frame, purpose=small.purpose, checkpoint=True)
    assert decided.count() == len(small.kept_rows)


def test_lost_files_of_members_fail_the_job_also_where_lost_files_are_ignored(
    spark: SparkSession, small: Corpus, tmp_path: Path
) -> None:
    """Whoever is in a file that nobody reads would be unknown, and allowed: the opt-outs would be
    gone.
    """
    spark.conf.set("spark.sql.files.ignoreMissingFiles", "true")
    spark.conf.set("spark.sql.files.ignoreCorruptFiles", "true")
    try:
        frame = spark.createDataFrame(small.table)
        found = spark_.filter(small.decider, frame, purpose=small.purpose, directory=tmp_path)
        assert kept(found) == small.kept_rows
        for place in tmp_path.iterdir():
            shutil.rmtree(place)
        with pytest.raises(Exception, match=r"(?i)does not exist|not found|FILE_NOT_EXIST"):
            found.select("row").toArrow()
    finally:
        spark.conf.unset("spark.sql.files.ignoreMissingFiles")
        spark.conf.unset("spark.sql.files.ignoreCorruptFiles")


def test_names_that_differ_in_case_alone_and_other_types_are_nobody(spark: SparkSession) -> None:
    """With another collation m:A and m:a are one: the opt-out of the one would be that of the
    other, or of nobody.
    """
    given = corpus.small()
    member = corpus.allowed_member(given)
    corpus.opt_out(given.snapshot, member)
    frame = spark.createDataFrame(pa.table({"row": [0, 1], "member_id": [member, member.upper()]}))
    frame = frame.withColumn("member_id", F.collate("member_id", "UTF8_LCASE")).withColumn(
        "jurisdiction", F.lit("IN")
    )
    assert kept(spark_.filter(given.decider, frame, purpose=given.purpose)) == [1]
    for kind in ("double", "boolean", "binary", "decimal(10,0)"):
        other = spark.range(3).select(
            F.col("id").alias("row"), F.col("id").cast("string").cast(kind).alias("member_id")
        )
        tally = Counter[Reason]()
        spark_.filter(given.decider, other, purpose=given.purpose, tally=tally)
        assert tally == {Reason.QUARANTINED: 3}, kind


def test_the_written_rows_say_under_which_view_they_were_allowed(
    spark: SparkSession, small: Corpus, tmp_path: Path
) -> None:
    """Whoever finds the files a year later can tell what was known when they were made."""
    found = spark_.filter(small.decider, spark.createDataFrame(small.table), purpose=small.purpose)
    found.write.parquet(str(tmp_path / "out"))

    told = spark.read.parquet(str(tmp_path / "out")).schema["member_id"].metadata["consentry"]
    assert told == {"snapshot": small.decider.snapshot_id, "purpose": small.purpose}


def test_each_row_can_be_given_its_reason(spark: SparkSession, small: Corpus) -> None:
    """Who asks why so few rows are left gets an answer for each row, not a number."""
    decisions = small.decider.decide_table(small.table, purpose=small.purpose)
    expected = [REASONS[place].value for place in decisions.reasons]
    frame = spark.createDataFrame(small.table)

    every = (
        spark_.with_reasons(small.decider, frame, purpose=small.purpose).toArrow().sort_by("row")
    )
    some = (
        spark_.filter(small.decider, frame, purpose=small.purpose, reason_column="why")
        .toArrow()
        .sort_by("row")
    )

    assert every["consentry_reason"].to_pylist() == expected
    assert some["why"].to_pylist() == [one for one in expected if Reason(one).allows]


def test_what_spark_cannot_filter_is_refused(
    spark: SparkSession, small: Corpus, tmp_path: Path
) -> None:
    """A filter that takes the wrong column, or a stream for a table, lets through whom it never
    looked at.
    """
    frame = spark.createDataFrame(small.table)
    asked: dict[str, Any] = {"purpose": small.purpose}
    with pytest.raises(InvalidInput, match="has no column 'member'; it has 'row', 'member_id'"):
        spark_.filter(small.decider, frame, columns=Columns(member="member"), **asked)
    with pytest.raises(InvalidInput, match="cannot be told apart"):
        spark_.filter(
            small.decider, frame.withColumn("x", F.lit(1)).withColumnRenamed("x", "Row"), **asked
        )
    with pytest.raises(InvalidInput, match="cannot be told apart"):
        spark_.filter(small.decider, frame, reason_column="Text", **asked)
    stream = spark.readStream.format("rate").load().selectExpr("string(value) as member_id")
    with pytest.raises(InvalidInput, match="foreachBatch"):
        spark_.filter(small.decider, stream, **asked)

    class Blind:
        snapshot_id = ""
        stale_detail = ""
        decide_table = small.decider.decide_table

    with pytest.raises(Refused, match="cannot list them"):
        spark_.filter(Blind(), frame, **asked)


def test_dots_in_names_and_other_columns_stay_as_they_are(
    spark: SparkSession, small: Corpus
) -> None:
    """A data set is not renamed to be filtered."""
    columns = Columns(member="who.id", jurisdiction="a`b")
    frame = spark.createDataFrame(
        small.table.rename_columns(
            ["row", "who.id", "a`b", "category", "collected_at", "text", "score"]
        )
    )
    decisions = small.decider.decide_table(
        small.table, purpose=small.purpose, columns=Columns(jurisdiction="jurisdiction")
    )

    found = spark_.filter(small.decider, frame, purpose=small.purpose, columns=columns)

    assert found.columns == frame.columns
    assert kept(found) == small.table.filter(pa.array(decisions.mask))["row"].to_pylist()


def test_the_packed_java_runs_what_spark_starts(tmp_path: Path) -> None:
    """On a machine without Java Spark runs on the package;

    Spark asks it for a module that it does not have.
    """
    home = packed_java_home(tmp_path / "java")
    done = subprocess.run(
        [f"{home}/bin/java", "--add-modules=jdk.incubator.vector", "-version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
