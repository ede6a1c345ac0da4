"""Columns of values as Python has them: whatever they are, no row is lost and none that is not
understood is used.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import PURPOSE, policy, terms

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import Decisions
from consentry.trainer.deciding.decider import Decider, SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.filters.batch_filter import BatchFilter
from consentry.wire.jurisdictions import iso_jurisdictions

SCALARS: list[Any] = [
    *(
        None,
        "m:0",
        "m:1",
        "",
        "é",
        "\ud800",
        "a\n",
        b"m:0",
        b"\xff",
        0,
        7,
        -1,
        1 << 70,
        1.5,
        float("nan"),
        True,
    ),
    *(
        date(2024, 1, 1),
        datetime(2024, 1, 1, tzinfo=UTC),
        (),
        [],
        ["m:0"],
        {"a": 1},
        object(),
        Ellipsis,
    ),
]


def batch_filter_of(
    decider: Decider,
    *names: str,
    tally: Counter[Reason] | None = None,
    columns: Columns | None = None,
) -> BatchFilter:
    return BatchFilter(
        decider,
        names or ["member_id"],
        purpose=PURPOSE,
        columns=columns,
        at_least=None,
        tally=tally,
    )


def test_texts_count_in_a_column_of_several_types_and_nothing_else_does(
    decider: SnapshotDecider,
) -> None:
    """The number 0 is not the member "0" where others are texts: somebody mixed up two columns."""
    tally = Counter[Reason]()
    values = ["m:0", 1000, "m:1", None, 1.0, b"m:0", "\ud800", float("nan"), ("m:0",), "m:2"]
    found = batch_filter_of(decider, tally=tally).mask_of({"member_id": values})
    assert found.tolist() == [True, *[False] * 8, True]
    assert tally == {Reason.DEFAULT_ON: 2, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 7}


def test_whole_numbers_count_as_their_decimal_text(decider: SnapshotDecider) -> None:
    """Most platforms number their members."""
    assert batch_filter_of(decider).mask_of({"member_id": [1000, 1001, 1002, None]}).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_floating_point_numbers_and_bytes_are_no_ids(decider: SnapshotDecider) -> None:
    """1000.0 may have been another id before it lost its last digits."""
    assert batch_filter_of(decider).mask_of({"member_id": [b"m:0", "m:2"]}).tolist() == [
        False,
        True,
    ]
    for values in ([1000.0, 1002.0], [b"m:0", b"m:2"], [True, False], [date(2024, 1, 1)] * 2):
        tally = Counter[Reason]()
        assert not batch_filter_of(decider, tally=tally).mask_of({"member_id": values}).any()
        assert tally == {Reason.QUARANTINED: 2}


@pytest.mark.parametrize("odd", [np.True_, np.float16(1.0), np.float32(1.0), True])
@pytest.mark.parametrize(
    "form", [list, lambda values: np.array(values, dtype=object), pd.Series, pd.Categorical]
)
def test_what_arrow_would_round_to_a_number_is_no_id(
    decider: SnapshotDecider, odd: Any, form: Any
) -> None:
    """Arrow makes a 1 of each of them among numbers: somebody else's id."""
    tally = Counter[Reason]()
    values = form([1000, odd])
    assert not batch_filter_of(decider, tally=tally).mask_of({"member_id": values})[1]
    assert tally[Reason.QUARANTINED] >= 1


@given(
    members=st.lists(st.sampled_from(SCALARS), max_size=6),
    others=st.lists(
        st.tuples(st.sampled_from(SCALARS), st.sampled_from(SCALARS)), min_size=6, max_size=6
    ),
)
def test_whatever_the_values_are_every_row_is_answered_and_counted(
    members: list[Any], others: list[tuple[Any, Any]]
) -> None:
    """One odd value in a billion rows must stop no job, and let nobody through."""
    snapshot = Snapshot(4, iso_jurisdictions())
    snapshot.apply_control(policy(900, terms("*"), on=0))
    tally = Counter[Reason]()
    batch_filter = batch_filter_of(
        SnapshotDecider(snapshot), "member_id", "jurisdiction", "category", tally=tally
    )
    places, categories = zip(*others[: len(members)], strict=True) if members else ((), ())
    found = batch_filter.mask_of(
        {"member_id": members, "jurisdiction": places, "category": categories}
    )
    assert len(found) == len(members) == tally.total()
    assert not found.any(), "nobody is known, and none of the values is a jurisdiction"


def test_an_odd_jurisdiction_is_unknown_and_an_odd_category_is_another_one(
    decider: SnapshotDecider,
) -> None:
    """What nobody can read decides for the member, not against them."""
    tally = Counter[Reason]()
    batch_filter = batch_filter_of(decider, "member_id", "jurisdiction", "category", tally=tally)
    places = ["US", "\ud800", 5, b"US", float("nan"), None]
    kinds = ["posts", "\ud800", 1, b"posts", ("posts",), None]
    found = batch_filter.mask_of(
        {"member_id": ["m:0"] * 6, "jurisdiction": places, "category": kinds}
    )
    assert found.tolist() == [True, False, False, True, False, True]
    assert tally == {Reason.DEFAULT_ON: 3, Reason.JURISDICTION_UNKNOWN: 3}


@pytest.mark.parametrize(
    "values",
    [
        [date(2024, 1, 1), None],
        [datetime(2024, 1, 1), None],  # noqa: DTZ001 - what a data set without zones holds
        [
            datetime(2024, 1, 1, tzinfo=UTC),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=8))),
        ],
        [1_704_067_200_000_000, None],
        [None, None],
    ],
)
def test_times_of_collection_may_be_dates_timestamps_or_microseconds(
    decider: SnapshotDecider, values: list[Any]
) -> None:
    """Each of them is what some exporter writes."""
    batch_filter = batch_filter_of(decider, "member_id", "collected_at")
    assert batch_filter.mask_of({"member_id": ["m:0", "m:1"], "collected_at": values}).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "values", [["2024-01-01", None], [date(2024, 1, 1), "yesterday"], [1.5, 2.5], [object(), 1]]
)
def test_what_is_no_time_of_collection_is_refused(
    decider: SnapshotDecider, values: list[Any]
) -> None:
    """A date read wrong puts a row on the wrong side of a cut-off."""
    batch_filter = batch_filter_of(decider, "member_id", "collected_at")
    with pytest.raises(InvalidInput, match="'collected_at'"):
        batch_filter.mask_of({"member_id": ["m:0", "m:1"], "collected_at": values})


def test_a_column_that_is_there_twice_is_refused(decider: SnapshotDecider) -> None:
    """After a join nobody knows which of the two is the author."""
    with pytest.raises(InvalidInput, match="2 columns named 'member_id'"):
        batch_filter_of(decider, "member_id", "text", "member_id")
    with pytest.raises(InvalidInput, match="2 columns named 'category'"):
        batch_filter_of(decider, "member_id", "category", "category")
    assert batch_filter_of(decider, "member_id", "text", "text").names == ["member_id"]


def test_one_column_may_say_two_things(decider: SnapshotDecider) -> None:
    """Nobody has to copy a column for us."""
    batch_filter = batch_filter_of(
        decider, "m", "c", columns=Columns(member="m", jurisdiction="c", category="c")
    )
    assert batch_filter.names == ["m", "c"]
    assert batch_filter.mask_of({"m": ["m:0"], "c": ["US"]}).tolist() == [True]


def test_no_row_is_lost_from_the_count_when_threads_count_at_once(decider: SnapshotDecider) -> None:
    """Polars and DuckDB ask on several threads."""

    class Same(SnapshotDecider):
        """Answers at once, so that the threads meet where they count."""

        def decide_table(self, table: pa.Table, **_: Any) -> Decisions:
            return decisions

    table = pa.table({"member_id": ["m:0", "m:1"]})
    decisions = decider.decide_table(table, purpose=PURPOSE)
    tally = Counter[Reason]()
    batch_filter = batch_filter_of(Same(decider.snapshot), tally=tally)
    threads = [
        threading.Thread(target=lambda: [batch_filter.mask(table) for _ in range(5000)])
        for _ in range(4)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert tally == {Reason.DEFAULT_ON: 20_000, Reason.OPTED_OUT: 20_000}
