"""Which filter a data set gets, by its type alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters.dispatch import LIBRARIES, filter_any


class Mine(pd.DataFrame):  # type: ignore[misc] # pandas has no types
    """What a library makes that builds on pandas."""


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pa.table({"member_id": ["m:0"]}), pa.Table),
        (pa.table({"member_id": ["m:0"]}).to_batches()[0], pa.RecordBatch),
        (pads.dataset(pa.table({"member_id": ["m:0"]})), pa.RecordBatchReader),
        (pl.DataFrame({"member_id": ["m:0"]}), pl.DataFrame),
        (pl.LazyFrame({"member_id": ["m:0"]}), pl.LazyFrame),
        (pd.DataFrame({"member_id": ["m:0"]}), pd.DataFrame),
        (Mine({"member_id": ["m:0"]}), pd.DataFrame),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_type_gets_the_filter_of_its_library(
    decider: SnapshotDecider, data: Any, kind: type
) -> None:
    """One line is the same in every job, whatever it reads with."""
    assert isinstance(filter_any(decider, data, purpose=PURPOSE), kind)


@pytest.mark.parametrize(
    "data", [["m:0"], {"member_id": ["m:0"]}, pd.Series(["m:0"]), pa.array(["m:0"]), None, 7]
)
def test_what_cannot_be_filtered_is_told_with_what_can(decider: SnapshotDecider, data: Any) -> None:
    """Handed back as it came it would be trained on unfiltered."""
    with pytest.raises(InvalidInput, match="cannot be filtered: it is not a data set") as caught:
        filter_any(decider, data, purpose=PURPOSE)
    for package in LIBRARIES:
        assert package in caught.value.fix


def test_nothing_is_imported_that_whoever_reads_has_not_imported() -> None:
    """A job that reads with Arrow has no Polars, and one second more at each start is paid by
    everybody.
    """
    program = """
import sys
from consentry.trainer.filters import dispatch
named = {*dispatch.LIBRARIES, "_duckdb"} - {"pyarrow"}
assert not named & set(sys.modules), named & set(sys.modules)
import pyarrow as pa
try:
    dispatch.filter_any(None, pa.table({"author": ["m:0"]}), purpose="genai_training")
except Exception as error:
    assert "'author'" in str(error), error
else:
    raise SystemExit("it was filtered")
# PyArrow itself looks whether there is a pandas.
assert not (named - {"pandas"}) & set(sys.modules), named & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
