"""A million rows through every filter: the same ones come out of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import datasets
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from tests.contract.filters import corpus
from tests.sizes import size

from consentry.domain.values import Reason
from consentry.trainer.filters.dispatch import filter_any


@pytest.mark.sized
def test_a_million_rows_come_out_of_every_filter_alike() -> None:
    """A team that changes its library would otherwise train on other members than before, and
    nobody would notice.
    """
    found = corpus.big(rows=size(small=200_000, full=corpus.BIG_ROWS))
    narrow = found.table.drop_columns(["text", "score"])
    frame = pl.from_arrow(narrow)
    assert isinstance(frame, pl.DataFrame)
    held = datasets.Dataset(narrow)
    with duckdb.connect() as connection:
        forms: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "table": (narrow, lambda left: left["row"]),
            "data set": (pads.dataset(narrow), lambda left: left.read_all()["row"]),
            "frame": (frame, lambda left: left["row"]),
            "lazy frame": (
                frame.lazy(),
                lambda left: left.select("row").collect(engine="streaming")["row"],
            ),
            "pandas": (narrow.to_pandas(), lambda left: left["row"]),
            "relation": (
                connection.from_arrow(narrow),
                lambda left: left.select("row").to_arrow_table()["row"],
            ),
            "map-style": (held, lambda left: left.data.table["row"].take(left._indices.column(0))),
            "stream": (
                held.to_iterable_dataset(num_shards=4).with_format("arrow"),
                lambda left: pa.concat_tables(left.iter(batch_size=50_000))["row"],
            ),
        }
        expected = np.flatnonzero(found.expected)
        assert 0 < len(expected) < narrow.num_rows
        for form, (data, rows) in forms.items():
            tally = Counter[Reason]()
            left = rows(filter_any(found.decider, data, purpose=found.purpose, tally=tally))
            assert np.array_equal(np.asarray(left), expected), form
            assert tally == found.reasons, form
