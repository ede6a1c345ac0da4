"""DuckDB: a relation stays one, on its connection, and its rows are decided each time that it is
read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from tests.contract.filters.corpus import opt_out
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters import duckdb_

ROWS = "(VALUES ('m:0', 0), ('m:1', 1), (NULL, 2), ('m:2', 3)) AS made(member_id, row)"


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def rows(relation: duckdb.DuckDBPyRelation, name: str = "row") -> list[Any]:
    found: list[Any] = relation.to_arrow_table()[name].to_pylist()
    return found


@pytest.mark.parametrize("kind", ["VARCHAR", "ENUM('m:2', 'm:0', 'm:1')"])
def test_text_ids_of_every_type_are_the_same_ids(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection, kind: str
) -> None:
    """An enumeration is what most ids become that are read often."""
    relation = connection.sql(f"SELECT member_id::{kind} AS member_id, row FROM {ROWS}")
    tally = Counter[Reason]()
    left = duckdb_.filter(decider, relation, purpose=PURPOSE, tally=tally)
    assert left.types == relation.types
    assert rows(left) == [0, 3]
    assert tally == {Reason.DEFAULT_ON: 2, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 1}


@pytest.mark.parametrize("kind", ["SMALLINT", "BIGINT", "UBIGINT"])
def test_integer_ids_of_every_width_are_the_same_ids(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection, kind: str
) -> None:
    """A platform that numbers its members exports them in the smallest type that fits."""
    relation = connection.sql(f"SELECT unnest([1000, 1001, NULL, 1002])::{kind} AS member_id")
    assert rows(duckdb_.filter(decider, relation, purpose=PURPOSE), "member_id") == [1000, 1002]


@pytest.mark.parametrize(
    "value",
    ["NULL", "'m:0'::BLOB", "1000.0::DOUBLE", "['m:0']", "{'id': 'm:0'}", "true", "1000::HUGEINT"],
)
def test_what_is_no_member_id_is_held_and_counted(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection, value: str
) -> None:
    """A column of the wrong type is somebody's mistake, which must not pass for consent."""
    tally = Counter[Reason]()
    relation = connection.sql(f"SELECT {value} AS member_id FROM range(3)")
    assert rows(duckdb_.filter(decider, relation, purpose=PURPOSE, tally=tally), "member_id") == []
    assert tally == {Reason.QUARANTINED: 3}


def test_types_that_only_the_engine_has_never_leave_it(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """A round trip through another format would change them."""
    relation = connection.sql(
        "SELECT *, uuid() AS id, 7::HUGEINT AS huge, '101'::BIT AS bits, INTERVAL 1 MONTH AS "
        "span, "
        f"MAP {{'a': 1}} AS pairs, 1 AS same, 2 AS same FROM {ROWS}"
    )
    left = duckdb_.filter(decider, relation, purpose=PURPOSE)
    any_filter = relation.filter("true")  # the engine itself numbers names that are there twice
    assert (left.columns, left.types) == (any_filter.columns, relation.types)
    assert len(left.fetchall()) == 2


def test_the_result_is_a_relation_like_any_other_of_its_connection(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """Joins, views, tables and temporary names go on working."""
    connection.execute(f"CREATE TEMP TABLE posts AS SELECT * FROM {ROWS}")
    connection.execute("CREATE TEMP TABLE labels AS SELECT 3 AS row, 'good' AS label")
    left = duckdb_.filter(decider, connection.table("posts"), purpose=PURPOSE)
    joined = left.join(connection.table("labels"), "row")
    assert rows(joined.select("label"), "label") == ["good"]
    left.create("kept")
    assert connection.table("kept").fetchall() == [("m:0", 0), ("m:2", 3)]
    assert left.order("row DESC").limit(1).fetchall() == [("m:2", 3)]
    assert left.aggregate("count(*)").fetchall() == [(2,)]


def test_a_condition_after_the_filter_lets_nobody_back_in(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """The engine orders conditions as it likes."""
    left = duckdb_.filter(decider, connection.sql(f"SELECT * FROM {ROWS}"), purpose=PURPOSE)
    assert rows(left.filter("member_id = 'm:1' OR row < 3")) == [0]
    best = left.query(
        "kept", "SELECT row FROM kept WHERE row = (SELECT max(row) FROM kept WHERE row < 3)"
    )
    assert best is not None
    assert rows(best) == [0]


def test_each_reading_decides_anew(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """A relation is read once an epoch."""
    tally = Counter[Reason]()
    relation = connection.sql(f"SELECT * FROM {ROWS}")
    left = duckdb_.filter(decider, relation, purpose=PURPOSE, tally=tally)
    assert tally.total() == 0, "nothing is decided before it is read"
    assert rows(left) == [0, 3]
    opt_out(decider.snapshot, "m:2")
    assert rows(left) == [0]
    assert tally.total() == 8


def test_a_value_that_repeats_is_not_decided_once_for_all_time(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """The engine may compute a constant once, which an opt-out would come too late for."""
    tally = Counter[Reason]()
    relation = connection.sql("SELECT 'm:0' AS member_id FROM range(200000)")
    left = duckdb_.filter(decider, relation, purpose=PURPOSE, tally=tally)
    reader = left.to_arrow_reader(2048)
    first = reader.read_next_batch().num_rows
    opt_out(decider.snapshot, "m:0")
    assert first + sum(batch.num_rows for batch in reader) < 200_000
    assert tally.total() == 200_000


def test_names_are_taken_as_they_are_written(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """A name with a quote in it ends nothing."""
    relation = connection.sql('SELECT \'m:0\' AS "the ""member""; id", 1 AS row')
    columns = Columns(member='the "member"; id')
    assert rows(duckdb_.filter(decider, relation, purpose=PURPOSE, columns=columns)) == [1]
    twice = connection.sql("SELECT 'm:0' AS member_id, 'm:1' AS member_id")
    with pytest.raises(InvalidInput, match="2 columns named 'member_id'"):
        duckdb_.filter(decider, twice, purpose=PURPOSE)


def test_an_answer_that_fails_ends_the_query(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """An engine that took an error for a null would leave rows out, or in, without a word."""
    relation = connection.sql("SELECT 'm:0' AS member_id, 'no time' AS collected_at")
    with pytest.raises(duckdb.Error, match="collected_at"):
        duckdb_.filter(decider, relation, purpose=PURPOSE).fetchall()


def test_an_older_engine_is_told(decider: SnapshotDecider) -> None:
    """The fix says what to do instead."""

    class Older:
        columns = ("member_id",)
        types = ("VARCHAR",)

    with pytest.raises(Unavailable, match="does not show its connection"):
        duckdb_.filter(decider, Older(), purpose=PURPOSE)  # type: ignore[arg-type]


def test_ids_are_read_by_the_two_thousand_not_one_by_one(
    decider: SnapshotDecider, connection: duckdb.DuckDBPyConnection
) -> None:
    """A Python call for each row would take longer than training on it."""
    asked: list[int] = []

    class Counting(SnapshotDecider):
        def decide_table(self, table: pa.Table, **more: Any) -> Any:
            asked.append(table.num_rows)
            return super().decide_table(table, **more)

    relation = connection.sql("SELECT 'm:' || (range % 20) AS member_id FROM range(20480)")
    left = duckdb_.filter(Counting(decider.snapshot, at=decider._at), relation, purpose=PURPOSE)
    assert left.aggregate("count(*)").fetchall() == [(10240,)]
    assert sum(asked) == 20480
    assert len(asked) <= 12
