"""Polars: what the optimiser may not move, and the types that only Polars has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
import pytest
from tests.contract.filters.corpus import opt_out
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters import polars_

MEMBERS = ["m:0", "m:1", None, "m:2"]
FRAME = pl.DataFrame({"member_id": MEMBERS, "text": ["a", "b", "c", "d"], "row": [0, 1, 2, 3]})
ENGINES: list[Any] = ["in-memory", "streaming"]


@pytest.mark.parametrize(
    "kind", [pl.String(), pl.Categorical(), pl.Enum(["m:2", "m:0", "m:1"])], ids=str
)
def test_text_ids_of_every_type_are_the_same_ids(
    decider: SnapshotDecider, kind: pl.DataType
) -> None:
    """A categorical column is what most ids become that are read often."""
    frame = FRAME.with_columns(pl.col("member_id").cast(kind))
    tally = Counter[Reason]()
    left = polars_.filter(decider, frame, purpose=PURPOSE, tally=tally)
    assert left["row"].to_list() == [0, 3]
    assert left.schema == frame.schema
    assert tally == {Reason.DEFAULT_ON: 2, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 1}


@pytest.mark.parametrize(
    "kind", [pl.Categorical(), pl.Enum([f"m:{number}" for number in range(50)])], ids=str
)
def test_a_few_rows_of_a_type_with_many_values_are_decided(
    decider: SnapshotDecider, kind: pl.DataType
) -> None:
    """A batch of a stream has few rows, and the dictionary of the whole data set."""
    frame = FRAME.with_columns(pl.col("member_id").cast(kind)).tail(2)
    assert polars_.filter(decider, frame, purpose=PURPOSE)["row"].to_list() == [3]
    streamed = polars_.filter(decider, frame.lazy().filter(pl.col("row") > 1), purpose=PURPOSE)
    assert streamed.collect(engine="streaming")["row"].to_list() == [3]


@pytest.mark.parametrize("kind", [pl.Int32(), pl.Int64(), pl.UInt64(), pl.Int128()], ids=str)
def test_integer_ids_of_every_width_are_the_same_ids(
    decider: SnapshotDecider, kind: pl.DataType
) -> None:
    """Polars is the one that numbers up to 128 bits."""
    frame = pl.DataFrame(
        {"member_id": pl.Series([1000, 1001, None, 1002], dtype=kind), "row": [0, 1, 2, 3]}
    )
    assert polars_.filter(decider, frame, purpose=PURPOSE)["row"].to_list() == [0, 3]


@pytest.mark.parametrize("kind", [pl.Int128(), pl.UInt128()], ids=str)
def test_a_gap_among_integers_of_128_bits_is_nobody(
    decider: SnapshotDecider, kind: pl.DataType
) -> None:
    """Read as the text "None" it would be somebody of whom nothing is recorded, and allowed."""
    tally = Counter[Reason]()
    frame = pl.DataFrame({"member_id": pl.Series([1000, 1001, None], dtype=kind)})
    assert polars_.filter(decider, frame, purpose=PURPOSE, tally=tally)["member_id"].to_list() == [
        1000
    ]
    assert tally == {Reason.DEFAULT_ON: 1, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 1}


@pytest.mark.parametrize(
    "values", [[b"m:0"], [1000.0], [None], [["m:0"]], [{"id": "m:0"}], [True]], ids=str
)
def test_what_is_no_member_id_is_held_and_counted(
    decider: SnapshotDecider, values: list[Any]
) -> None:
    """A column of the wrong type is somebody's mistake, which must not pass for consent."""
    tally = Counter[Reason]()
    assert polars_.filter(
        decider, pl.DataFrame({"member_id": values}), purpose=PURPOSE, tally=tally
    ).is_empty()
    assert tally == {Reason.QUARANTINED: 1}


def test_python_objects_count_by_what_they_are_not_by_where_they_are(
    decider: SnapshotDecider,
) -> None:
    """Arrow would be given their addresses."""
    members = pl.Series("member_id", ["m:0", 1000, None, object(), "m:1", "m:2"], dtype=pl.Object)
    frame = pl.DataFrame([members, pl.Series("row", range(6))])
    assert polars_.filter(decider, frame, purpose=PURPOSE)["row"].to_list() == [0, 5]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_member_column_may_be_dropped_after_the_filter(
    decider: SnapshotDecider, engine: Any
) -> None:
    """A projection pushed below the filter would take away what it decides by."""
    left = polars_.filter(decider, FRAME.lazy(), purpose=PURPOSE)
    assert isinstance(left, pl.LazyFrame)
    assert left.select("text").collect(engine=engine)["text"].to_list() == ["a", "d"]
    assert left.select(pl.len()).collect(engine=engine).item() == 2
    assert left.head(2).collect(engine=engine)["row"].to_list() == [0, 3]
    assert left.tail(1).select("row").collect(engine=engine)["row"].to_list() == [3]


@pytest.mark.parametrize("engine", ENGINES)
def test_conditions_after_the_filter_see_only_who_is_left(
    decider: SnapshotDecider, engine: Any
) -> None:
    """A condition moved before would compare with the rows of members who opted out."""
    frame = FRAME.with_columns(score=pl.Series([1, 9, 9, 2]))
    left = polars_.filter(decider, frame.lazy(), purpose=PURPOSE)
    assert left.filter(pl.col("score") == pl.col("score").max()).collect(engine=engine)[
        "row"
    ].to_list() == [3]
    assert left.filter(pl.col("member_id") == "m:1").collect(engine=engine).is_empty()


@pytest.mark.parametrize("engine", ENGINES)
def test_each_run_of_a_plan_decides_anew(decider: SnapshotDecider, engine: Any) -> None:
    """One plan is collected once an epoch."""
    tally = Counter[Reason]()
    left = polars_.filter(decider, FRAME.lazy(), purpose=PURPOSE, tally=tally)
    assert tally.total() == 0, "nothing is decided before the plan runs"
    assert left.collect(engine=engine)["row"].to_list() == [0, 3]
    opt_out(decider.snapshot, "m:2")
    assert left.collect(engine=engine)["row"].to_list() == [0]
    assert tally.total() == 8


def test_who_opts_out_between_two_batches_is_left_out_from_a_later_one_on(
    decider: SnapshotDecider,
) -> None:
    """The streaming engine deciders batch by batch, a few of them ahead of whoever reads."""
    rows = 3_000_000
    lazy = pl.LazyFrame({"row": range(rows)}).with_columns(member_id=pl.lit("m:0"))
    batches = polars_.filter(decider, lazy, purpose=PURPOSE).collect_batches(
        chunk_size=50_000, maintain_order=True
    )
    first = next(iter(batches))
    assert first.height > 0
    opt_out(decider.snapshot, "m:0")
    assert first.height + sum(batch.height for batch in batches) < rows


def test_a_missing_column_is_told_before_anything_is_read(decider: SnapshotDecider) -> None:
    """Hours into a plan it would be told as an error of Polars'."""
    with pytest.raises(InvalidInput, match="it has 'author'"):
        polars_.filter(decider, pl.LazyFrame({"author": ["m:0"]}), purpose=PURPOSE)


def test_what_the_decider_raises_comes_out_of_a_plan_as_it_is(decider: SnapshotDecider) -> None:
    """A job tells "cannot tell" from a broken plan by the error."""
    lazy = pl.LazyFrame({"member_id": ["m:0"], "collected_at": ["no time"]})
    with pytest.raises(InvalidInput, match="'collected_at'"):
        polars_.filter(decider, lazy, purpose=PURPOSE).collect()
