"""The columns that decide: one answer to which they are, and one to what their values say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from tests.contract.filters.member_ids import (
    NAMED,
    NOBODY,
    decider_of_all_opted_out,
    reasons_of,
)
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.checking.data_files import table_of
from consentry.trainer.deciding.columns import (
    NO_ONE_TYPE,
    Columns,
    ColumnSpec,
    find_columns,
    json_text_of,
    member_id,
    micros_of,
    plain_texts_of,
    text_of,
)
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.filters.batch_filter import BatchFilter
from consentry.trainer.filters.polars_ import arrow_of
from consentry.trainer.runs.batches import read_batch


class CannotHold(Exception):
    """A library has no form for these values."""


Read = Callable[[SnapshotDecider, list[Any]], pa.Table]


def _filter_of(decider: SnapshotDecider) -> BatchFilter:
    return BatchFilter(
        decider, ["member_id"], purpose=PURPOSE, columns=None, at_least=None, tally=None
    )


def _as_python(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    return pa.table({"member_id": _filter_of(decider).column("member_id", values)})


def _as_numpy_objects(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    objects: Any = np.empty(len(values), dtype=object)
    objects[:] = values
    return pa.table({"member_id": _filter_of(decider).column("member_id", objects)})


def _as_pandas(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    return pa.table({"member_id": _filter_of(decider).column("member_id", pd.Series(values))})


def _as_arrow(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    return pa.table({"member_id": pa.array(values)})


def _as_arrow_dictionary(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    return pa.table({"member_id": pa.array(values).dictionary_encode()})


def _as_polars(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    try:
        series = pl.Series(values)
    except Exception as error:
        raise CannotHold from error
    return pa.table(
        {
            "member_id": arrow_of(
                series, lambda listed: _filter_of(decider).column("member_id", listed)
            )
        }
    )


def _as_polars_objects(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    return pa.table(
        {
            "member_id": arrow_of(
                pl.Series(values, dtype=pl.Object),
                lambda listed: _filter_of(decider).column("member_id", listed),
            )
        }
    )


def _as_batch_of_a_run(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    return read_batch({"member_id": values}, None).table


def _as_json_rows(decider: SnapshotDecider, values: list[Any]) -> pa.Table:
    if any(isinstance(value, np.generic) for value in values):
        raise CannotHold
    try:
        rows = json.loads(json.dumps(values))
    except TypeError as error:
        raise CannotHold from error
    return table_of(Columns(), {"member_id": rows}, len(rows))


READERS: list[Read] = [
    _as_python,
    _as_numpy_objects,
    _as_pandas,
    _as_arrow,
    _as_arrow_dictionary,
    _as_polars,
    _as_polars_objects,
    _as_batch_of_a_run,
    _as_json_rows,
]
READERS_OF_OBJECTS = [
    read for read in READERS if read not in (_as_arrow, _as_arrow_dictionary, _as_polars)
]
"""Those whose values are still as somebody gave them: the others made one type of them before."""


@pytest.fixture
def decider(snapshot: Snapshot) -> SnapshotDecider:
    """Decides by a snapshot in which every member that some value names opted out."""
    return decider_of_all_opted_out(snapshot)


class TestMemberIds:
    @pytest.mark.parametrize("read", READERS)
    def test_every_reader_finds_the_same_member_in_a_value(
        self, decider: SnapshotDecider, read: Read
    ) -> None:
        """An opt-out that one library finds and another one misses is no opt-out."""
        for value, member in NAMED:
            assert member_id(value) == member
            if read is _as_json_rows and isinstance(value, np.generic):
                continue
            assert reasons_of(decider, read(decider, [value])) == [Reason.OPTED_OUT], repr(value)

    @pytest.mark.parametrize("read", READERS)
    def test_no_reader_finds_a_member_in_a_value_that_names_nobody(
        self, decider: SnapshotDecider, read: Read
    ) -> None:
        """Rounded or written out, such a value would be the id of somebody else."""
        held = 0
        for value in NOBODY:
            try:
                table = read(decider, [value])
            except (CannotHold, *NO_ONE_TYPE):
                continue
            held += 1
            assert reasons_of(decider, table) == [Reason.QUARANTINED], repr(value)
        assert held >= 8, "the reader was hardly tried"

    @pytest.mark.parametrize("beside", [1000, "m:2"])
    @pytest.mark.parametrize("read", READERS_OF_OBJECTS)
    def test_a_value_that_names_nobody_does_not_begin_to_beside_others(
        self, decider: SnapshotDecider, read: Read, beside: Any
    ) -> None:
        """Arrow looks for one type for all values, and makes a 1 of True among numbers."""
        for value in NOBODY:
            try:
                table = read(decider, [beside, value])
            except (CannotHold, *NO_ONE_TYPE):
                continue
            assert reasons_of(decider, table)[1] is Reason.QUARANTINED, repr(value)

    def test_numbers_among_texts_name_somebody_only_where_rows_are_read_one_by_one(
        self, decider: SnapshotDecider
    ) -> None:
        """In a data frame they show that two columns were mixed up; a loader mixes its sources."""
        values = ["m:1", 1001]
        for read in (_as_python, _as_numpy_objects, _as_pandas, _as_polars_objects):
            found = reasons_of(decider, read(decider, values))
            assert found == [Reason.OPTED_OUT, Reason.QUARANTINED]
        for read in (_as_batch_of_a_run, _as_json_rows):
            found = reasons_of(decider, read(decider, values))
            assert found == [Reason.OPTED_OUT, Reason.OPTED_OUT]


class TestTexts:
    @pytest.mark.parametrize("value", [True, 1.5, 7, b"\xff", "\ud800", ["US"], {"a": 1}])
    def test_nonsense_is_a_text_that_is_no_code_and_never_none(self, value: Any) -> None:
        """A row without a jurisdiction is decided by its member's; one with nonsense is excluded."""
        assert text_of(value) not in (None, "US")
        assert json_text_of(value) not in (None, "US") or isinstance(value, bytes)

    def test_bytes_are_read_as_the_text_that_they_are(self) -> None:
        """Some writers leave out that a column is text."""
        assert text_of(b"US") == "US"

    def test_a_run_reads_nonsense_beside_texts_as_the_filters_do(self) -> None:
        """Read as null, the row would count as one that says nothing of where it is from."""
        batch = {"member_id": ["a"] * 4, "jurisdiction": ["US", 1.5, b"US", "\ud800"]}
        assert read_batch(batch, None).table["jurisdiction"].to_pylist() == ["US", "1.5", "US", "?"]

    @pytest.mark.parametrize(
        "column",
        [
            pa.array([7, None]),
            pa.array([7, None]).dictionary_encode(),
            pa.array(["7", None]).cast(pa.string_view()),
            pa.DictionaryArray.from_arrays([0, None], pa.array(["7"]).cast(pa.string_view())),
            pa.array([b"7", None]),
        ],
    )
    def test_every_layout_of_a_column_is_written_out_alike(self, column: pa.Array) -> None:
        """What a run records must not depend on the library that read the rows."""
        texts = plain_texts_of(pa.chunked_array([column]))
        assert (texts.type, texts.to_pylist()) == (pa.string(), ["7", None])


class TestTimes:
    @pytest.mark.parametrize(
        "kind", [pa.timestamp("s"), pa.timestamp("ns", tz="UTC"), pa.date32(), pa.int64()]
    )
    def test_times_of_every_type_are_microseconds(self, kind: pa.DataType) -> None:
        """Read in another unit a row is on the wrong side of a cut-off."""
        day = 86_400_000_000
        column = pa.array([day, None], pa.int64())
        if not pa.types.is_integer(kind):
            column = column.cast(pa.timestamp("us")).cast(kind)
        for given in (column, column.dictionary_encode()):
            assert micros_of(pa.chunked_array([given]), "t").to_pylist() == [day, None]


class TestFindingColumns:
    def test_only_the_member_has_to_be_there(self) -> None:
        """Most data sets say nothing of where a row is from."""
        assert find_columns(["text", "member_id"], None) == Columns()
        assert ColumnSpec().find_among(["text", "member_id"]) == Columns()

    @pytest.mark.parametrize("name", ["Jurisdiction", " category", "COLLECTED_AT"])
    def test_a_run_refuses_another_spelling_as_the_filters_do(self, name: str) -> None:
        """A paused place in such a column must not pass without a word."""
        with pytest.raises(InvalidInput, match=r"The batch .* only in case or spaces"):
            read_batch({"member_id": ["a"], name: ["HK"]}, None)

    def test_another_spelling_beside_ours_is_a_column_of_its_own(self) -> None:
        """A table in memory is read by us alone; files are read by others too."""
        names = ["member_id", "category", "Category"]
        assert find_columns(names, None) == Columns(category="category")
        with pytest.raises(InvalidInput, match="'Category'"):
            ColumnSpec().find_among(names)

    def test_a_column_that_is_there_twice_is_refused(self) -> None:
        """After a join nobody knows which of the two is the author."""
        for find in (lambda names: find_columns(names, None), ColumnSpec().find_among):
            with pytest.raises(InvalidInput, match="2 columns named 'member_id'"):
                find(["member_id", "member_id"])

    def test_each_column_is_read_once(self) -> None:
        """One column may say two things."""
        assert Columns(member="m", jurisdiction="c", category="c").names == ["m", "c"]
