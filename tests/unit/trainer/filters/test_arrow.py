"""PyArrow in all the types and layouts that files have, and rows decided when they are read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from tests.contract.filters.corpus import opt_out
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters import arrow

TEXTS = ["m:0", "m:1", None, "m:2", "not an id", "m:3"]
KEPT = [0, 3]


def table_of(members: Any, **more: Any) -> pa.Table:
    return pa.table({"member_id": members, "row": range(len(members)), **more})


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.uint32(), pa.large_string())),
        pa.dictionary(pa.int32(), pa.string_view()),
    ],
    ids=str,
)
def test_text_ids_of_every_type_are_the_same_ids(
    decider: SnapshotDecider, kind: pa.DataType
) -> None:
    """Which of them a file has is chosen by its writer, not by the member."""
    tally = Counter[Reason]()
    left = arrow.filter(decider, table_of(pa.array(TEXTS).cast(kind)), purpose=PURPOSE, tally=tally)
    assert left["row"].to_pylist() == KEPT
    assert left.schema.field("member_id").type == kind
    assert tally == {Reason.DEFAULT_ON: 2, Reason.OPTED_OUT: 2, Reason.QUARANTINED: 2}


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.int32(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())], ids=str
)
def test_integer_ids_of_every_width_are_the_same_ids(
    decider: SnapshotDecider, kind: pa.DataType
) -> None:
    """A platform that numbers its members exports them in the smallest type that fits."""
    numbers = pa.array([1000, 1001, None, 1002], pa.int64())
    numbers = (
        numbers.dictionary_encode().cast(kind)
        if pa.types.is_dictionary(kind)
        else numbers.cast(kind)
    )
    assert arrow.filter(decider, table_of(numbers), purpose=PURPOSE)["row"].to_pylist() == [0, 3]


@pytest.mark.parametrize(
    "members",
    [
        *(
            pa.array([b"m:0", b"m:2"]),
            pa.array([1000.0, 1002.0]),
            pa.nulls(2),
            pa.array([["m:0"], ["m:2"]]),
        ),
        *(
            pa.array([True, False]),
            pa.array([{"id": "m:0"}, {"id": "m:2"}]),
            pa.array([0, 1], pa.timestamp("us")),
        ),
        pa.array([b"m:0", b"m:2"]).dictionary_encode(),
    ],
    ids=lambda members: str(members.type),
)
def test_what_is_no_member_id_is_held_and_counted(
    decider: SnapshotDecider, members: pa.Array
) -> None:
    """A column of the wrong type is somebody's mistake, which must not pass for consent."""
    tally = Counter[Reason]()
    assert arrow.filter(decider, table_of(members), purpose=PURPOSE, tally=tally).num_rows == 0
    assert tally == {Reason.QUARANTINED: 2}


def test_slices_and_chunks_are_read_where_they_begin(decider: SnapshotDecider) -> None:
    """An offset forgotten moves every answer to the next member."""
    whole = pa.array(["m:1", "m:1", "m:0", "m:1", "m:2", "m:1"])
    batch = pa.RecordBatch.from_arrays([whole, pa.array(range(6))], names=["member_id", "row"])
    assert arrow.filter(decider, batch.slice(2, 3), purpose=PURPOSE)["row"].to_pylist() == [2, 4]
    chunks = pa.chunked_array([whole[1:3], whole[3:3], whole[3:]])
    assert arrow.filter(decider, table_of(chunks), purpose=PURPOSE)["row"].to_pylist() == [1, 3]
    encoded = pa.chunked_array([whole[1:3].dictionary_encode(), whole[4:].dictionary_encode()])
    assert arrow.filter(decider, table_of(encoded), purpose=PURPOSE)["row"].to_pylist() == [1, 2]


def test_other_columns_keep_their_names_types_and_notes(decider: SnapshotDecider) -> None:
    """Two columns of one name, thousands of columns, views that Arrow cannot filter: none of it is
    ours to change.
    """
    odd = [
        pa.array(["a", "b", "c"], pa.string_view()),
        pa.array([{"x": "a"}, None, {"x": "c"}], pa.struct([("x", pa.string_view())])),
        pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]),
        pa.array([[1], None, [2, 3]], pa.list_view(pa.int16())),
        pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float16(), 2)),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.nulls(3),
        *(pa.array([1, 2, 3]) for _ in range(5000)),
    ]
    fields = [pa.field("member_id", pa.string(), metadata={"note": "author"})]
    fields += [
        pa.field("same" if place < 3 else f"c{place}", array.type)
        for place, array in enumerate(odd)
    ]
    schema = pa.schema(fields, metadata={"about": "odd"})
    table = pa.Table.from_arrays([pa.array(["m:0", "m:1", "m:2"]), *odd], schema=schema)
    left = arrow.filter(decider, table, purpose=PURPOSE)
    assert left.schema.equals(schema, check_metadata=True)
    for before, after in zip(table.columns, left.columns, strict=True):
        values = before.to_pylist()
        assert after.to_pylist() == [values[0], values[2]]
    batch = arrow.filter(decider, table.to_batches()[0], purpose=PURPOSE)
    assert batch.schema.equals(schema, check_metadata=True)
    assert pa.Table.from_batches([batch]).equals(left)


def test_a_record_batch_of_which_nothing_is_left_is_still_one(decider: SnapshotDecider) -> None:
    """A loop over batches would fall over anything else."""
    batch = table_of(pa.array(["m:1"], pa.string_view())).to_batches()[0]
    left = arrow.filter(decider, batch, purpose=PURPOSE)
    assert (left.num_rows, left.schema) == (0, batch.schema)


def test_who_opts_out_between_two_batches_is_left_out_from_the_next_one_on(
    decider: SnapshotDecider,
) -> None:
    """An epoch lasts for days; who opts out on the first need not be in the last batch."""
    table = table_of(["m:0", "m:2", "m:0", "m:2", "m:0", "m:2"])
    tally = Counter[Reason]()
    reader = arrow.filter(decider, table.to_reader(max_chunksize=2), purpose=PURPOSE, tally=tally)
    assert tally.total() == 0, "nothing is decided before it is read"
    assert reader.read_next_batch()["row"].to_pylist() == [0, 1]
    opt_out(decider.snapshot, "m:2")
    assert [batch["row"].to_pylist() for batch in reader] == [[2], [4]]
    assert tally == {Reason.DEFAULT_ON: 4, Reason.OPTED_OUT: 2}


def test_rows_are_stale_from_the_batch_on_before_which_freshness_was_lost(
    decider: SnapshotDecider,
) -> None:
    """The network fails in the middle of an epoch, not before it."""

    class Failing(SnapshotDecider):
        detail = ""

        @property
        def stale_detail(self) -> str:
            return self.detail

    failing, tally = Failing(decider.snapshot, at=decider._at), Counter[Reason]()
    data = table_of(["m:0", "m:2", "m:0", "m:2"]).to_reader(max_chunksize=1)
    reader = arrow.filter(failing, data, purpose=PURPOSE, tally=tally)
    assert reader.read_next_batch().num_rows == 1
    Failing.detail = "the broker is gone"
    assert list(reader) == []
    assert tally == {Reason.DEFAULT_ON: 1, Reason.STALE: 3}


def test_files_are_filtered_without_being_held_whole(
    decider: SnapshotDecider, tmp_path: Path
) -> None:
    """A data set that is larger than the machine is read in batches of its own files."""
    for part in range(3):
        pq.write_table(
            table_of([f"m:{number}" for number in range(20)]), tmp_path / f"{part}.parquet"
        )
    data = pads.dataset(tmp_path)
    even = list(range(0, 20, 2))
    assert arrow.filter(decider, data, purpose=PURPOSE).read_all()["row"].to_pylist() == even * 3
    scanner = data.scanner(columns=["member_id", "row"], filter=pads.field("row") < 4, batch_size=5)
    assert (
        arrow.filter(decider, scanner, purpose=PURPOSE).read_all()["row"].to_pylist() == [0, 2] * 3
    )
    with pytest.raises(InvalidInput, match="it has 'row'"):
        arrow.filter(decider, data.scanner(columns=["row"]), purpose=PURPOSE)


def test_a_named_column_decides_where_rows_were_written(decider: SnapshotDecider) -> None:
    """A row from where nothing is known of is not the member's own country's."""
    table = table_of(["m:0", "m:0"], country=["US", "XX"])
    left = arrow.filter(decider, table, purpose=PURPOSE, columns=Columns(jurisdiction="country"))
    assert left["row"].to_pylist() == [0]
