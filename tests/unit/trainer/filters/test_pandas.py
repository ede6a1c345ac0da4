"""pandas: the index stays, and object columns count by what is in them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters import pandas_

MEMBERS = ["m:0", "m:1", None, "m:2"]


@pytest.mark.parametrize("kind", ["object", "str", "string", "category", "string[python]"])
def test_text_ids_of_every_type_are_the_same_ids(decider: SnapshotDecider, kind: Any) -> None:
    """Which type pandas reads a file with depends on its version."""
    frame = pd.DataFrame({"member_id": pd.Series(MEMBERS, dtype=kind), "row": range(4)})
    tally = Counter[Reason]()
    left = pandas_.filter(decider, frame, purpose=PURPOSE, tally=tally)
    assert left["row"].tolist() == [0, 3]
    pd.testing.assert_series_equal(left.dtypes, frame.dtypes)
    assert tally == {Reason.DEFAULT_ON: 2, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 1}


def test_integers_count_and_what_pandas_makes_of_a_gap_does_not(decider: SnapshotDecider) -> None:
    """1000.0 is no id: a number of seventeen digits would be another one by then."""
    for values, kept in (
        (pd.Series([1000, 1001, 1002]), [0, 2]),
        (pd.Series([1000, None, 1002], dtype="Int64"), [0, 2]),
        (pd.Series([1000, None, 1002], dtype=object), [0, 2]),
        (pd.Series([1000, None, 1002]), []),
    ):
        tally = Counter[Reason]()
        frame = pd.DataFrame({"member_id": values})
        assert pandas_.filter(decider, frame, purpose=PURPOSE, tally=tally).index.tolist() == kept
        assert tally.total() == 3


def test_texts_count_in_a_column_of_several_types_and_nothing_else_does(
    decider: SnapshotDecider,
) -> None:
    """An object column holds whatever somebody put there."""
    values = [
        "m:0",
        1000,
        1.5,
        None,
        np.nan,
        pd.NA,
        pd.NaT,
        b"m:0",
        ["m:0"],
        "m:1",
        "\ud800",
        "m:2",
    ]
    frame = pd.DataFrame({"member_id": pd.Series(values, dtype=object)})
    tally = Counter[Reason]()
    assert pandas_.filter(decider, frame, purpose=PURPOSE, tally=tally).index.tolist() == [0, 11]
    assert tally == {Reason.DEFAULT_ON: 2, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 9}


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([10, 10, 5, 7], name="n"),
        pd.date_range("2024-01-01", periods=4),
        pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", "y"]),
    ],
    ids=["numbers", "days", "several"],
)
def test_the_index_and_attributes_of_rows_stay(decider: SnapshotDecider, index: Any) -> None:
    """Labels and features are joined by it later."""
    frame = pd.DataFrame({"member_id": MEMBERS, "list": [[1], [2], [3], [4]]}, index=index)
    frame.attrs["source"] = "posts"
    left = pandas_.filter(decider, frame, purpose=PURPOSE)
    pd.testing.assert_frame_equal(left, frame.iloc[[0, 3]])
    assert left.attrs == {"source": "posts"}


def test_neither_frame_changes_with_the_other(decider: SnapshotDecider) -> None:
    """Whoever overwrites a column of what is left must not overwrite what was given."""
    frame = pd.DataFrame({"member_id": MEMBERS, "row": range(4)})
    before = frame.copy(deep=True)
    left = pandas_.filter(decider, frame, purpose=PURPOSE)
    left["row"] = -1
    pd.testing.assert_frame_equal(frame, before)


def test_other_columns_may_share_a_name_and_labels_need_not_be_texts(
    decider: SnapshotDecider,
) -> None:
    """Joins and spreadsheets leave such frames."""
    frame = pd.DataFrame(
        [["m:0", 1, 2, 3], ["m:1", 4, 5, 6]], columns=pd.Index(["member_id", "x", "x", 7])
    )
    assert pandas_.filter(decider, frame, purpose=PURPOSE).to_numpy().tolist() == [["m:0", 1, 2, 3]]
    frame.columns = pd.Index(["member_id", "x", "member_id", 7])
    with pytest.raises(InvalidInput, match="2 columns named 'member_id'"):
        pandas_.filter(decider, frame, purpose=PURPOSE)


def test_a_label_that_only_reads_like_the_column_is_not_the_column(
    decider: SnapshotDecider,
) -> None:
    """The number 7 and the text "7" are two columns to pandas."""
    frame = pd.DataFrame({"member_id": ["m:0"], 7: ["US"]})
    with pytest.raises(InvalidInput, match="'7'"):
        pandas_.filter(decider, frame, purpose=PURPOSE, columns=Columns(jurisdiction="7"))


def test_members_in_the_index_are_in_no_column(decider: SnapshotDecider) -> None:
    """The error tells which columns there are."""
    frame = pd.DataFrame({"member_id": MEMBERS, "row": range(4)}).set_index("member_id")
    with pytest.raises(InvalidInput, match="it has 'row'"):
        pandas_.filter(decider, frame, purpose=PURPOSE)
