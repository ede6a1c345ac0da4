"""Filtering an Arrow table: each row gets the very answer that deciding it alone would give."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import PURPOSE, chose, day, lift, moved, pause, policy, random_event, terms

from consentry.domain.controls import Minors, Regime
from consentry.domain.decisions import Row
from consentry.domain.errors import InvalidInput
from consentry.domain.records import Record, fold
from consentry.domain.values import MEMBER_ID_PATTERN, Choice, MemberId, Micros, Reason
from consentry.domain.wording import moment_of
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import REASONS, decide_table, encoded
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.batches import read_batch
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4
ALL = Columns(jurisdiction="place", category="category", collected="collected")


def decisions(
    table: pa.Table, snapshot: Snapshot, columns: Columns = ALL, *, is_fresh: bool = True
) -> list[Reason]:
    """The reason of each row on day 25."""
    found = decide_table(
        table,
        snapshot,
        purpose=PURPOSE,
        at=day(25),
        known_at=day(25),
        columns=columns,
        is_fresh=is_fresh,
    )
    assert found.mask.tolist() == [
        REASONS[place] in (Reason.OPTED_IN, Reason.DEFAULT_ON) for place in found.reasons
    ]
    return [REASONS[place] for place in found.reasons]


def one_by_one(table: pa.Table, snapshot: Snapshot) -> list[Reason]:
    """The same, each row decided alone."""
    found = []
    for row in table.to_pylist():
        member = row["member_id"]
        if member is None or MEMBER_ID_PATTERN.fullmatch(member) is None:
            found.append(Reason.QUARANTINED)
            continue
        collected = row["collected"]
        if isinstance(collected, datetime):
            collected = (
                collected.replace(tzinfo=UTC) - moment_of(Micros(0))
            ).total_seconds() * 1_000_000
        asked = Row(jurisdiction=row["place"], category=row["category"], collected=collected)
        question = {"purpose": PURPOSE, "at": day(25), "known_at": day(25), "stale_detail": ""}
        found.append(snapshot.decide(MemberId(member), asked, **question).reason)  # type: ignore[arg-type]
    return found


def view_by_chance(random: Random) -> Snapshot:
    """A view of some members with histories, a pause, a lift and terms with conditions."""
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    snapshot.apply_control(policy(900, terms("*"), on=0))
    if random.random() < 0.7:
        conditions: dict[str, Any] = {
            "regime": random.choice([Regime.DEFAULT_ON, Regime.OPT_IN, Regime.NOT_OFFERED]),
            "minors": random.choice([Minors.ALLOW, Minors.EXCLUDE, Minors.EXCLUDE_UNLESS_ADULT]),
            "categories": random.choice([None, ("posts",)]),
            "collected_from": random.choice([None, day(3)]),
            "notice_until": random.choice([None, day(30)]),
        }
        snapshot.apply_control(
            policy(901, terms(random.choice(["*", "US", "EEA"]), **conditions), on=1)
        )
        snapshot.apply_control(policy(902, terms("HK", collected_from=day(6)), on=1))
    if random.random() < 0.6:
        snapshot.apply_control(
            pause(
                903, random.choice(["HK", "US"]), on=2, categories=random.choice([None, ("posts",)])
            )
        )
    if random.random() < 0.4:
        snapshot.apply_control(lift(904, on=20))
    for number in range(6):
        key = b"member-%d" % number
        record: Record | None = None
        for event in [random_event(random, place) for place in range(1, random.randrange(2, 8))]:
            record = fold(record, event)
        assert record is not None
        named = Record(member=MemberId(key.decode()), version=record.version, facts=record.facts)
        snapshot.apply_records(
            partition_of(key, PARTITIONS), [key], [write_record(named, frame(1))]
        )
    if random.random() < 0.3:
        snapshot.apply_records(0, [b"member-2"], [b"damaged, whatever it was"])
    if random.random() < 0.3:
        snapshot.apply_frontier(
            Frontier(random.randrange(PARTITIONS), "life", day(5), 0, 0, 0, True)
        )
    return snapshot


def table_by_chance(random: Random) -> pa.Table:
    """Rows with known, unknown, null and malformed values, in the types that data sets come in."""
    size = random.randrange(1, 40)

    def column(choices: list[Any], *types: pa.DataType) -> pa.Array:
        values = [random.choice(choices) for _ in range(size)]
        array = pa.array(values, random.choice(types))
        return array.dictionary_encode() if random.random() < 0.3 else array

    members = [*(f"member-{number}" for number in range(8)), None, "", "no such id", "é"]
    times = [None, day(0), day(3), day(3) - 1, day(6), day(30)]
    collected = pa.array([random.choice(times) for _ in range(size)], pa.int64())
    kind = random.choice([pa.int64(), pa.timestamp("us"), pa.timestamp("ns")])
    table = pa.table(
        {
            "member_id": column(members, pa.string(), pa.large_string()),
            "place": column(
                ["US", "HK", "DE", "US-CA", "XX", "", None], pa.string(), pa.large_string()
            ),
            "category": column(["posts", "profile", None], pa.string()),
            "collected": collected.cast(kind)
            if kind != pa.timestamp("ns")
            else collected.cast(pa.timestamp("us")).cast(kind),
        }
    )
    return pa.concat_tables([table.slice(0, size // 2), table.slice(size // 2)])


class TestEveryRow:
    @settings(max_examples=250)
    @given(st.integers(0, 2**48))
    def test_each_row_gets_the_answer_that_it_would_get_alone(self, seed: int) -> None:
        """The quick way and the plain way must not disagree about anybody."""
        random = Random(seed)
        snapshot, table = view_by_chance(random), table_by_chance(random)

        assert decisions(table, snapshot) == one_by_one(table, snapshot)

    def test_nothing_is_allowed_where_freshness_is_not_proven(self, snapshot: Snapshot) -> None:
        """Old consent is no consent."""
        table = pa.table({"member_id": ["a", None], "place": ["US", "US"]})

        assert (
            decisions(table, snapshot, Columns(jurisdiction="place"), is_fresh=False)
            == [Reason.STALE] * 2
        )

    def test_a_table_without_rows_has_no_answers(self, snapshot: Snapshot) -> None:
        """The last batch of a reader is often empty."""
        assert (
            decisions(pa.table({"member_id": pa.array([], pa.string())}), snapshot, Columns()) == []
        )

    @pytest.mark.parametrize(
        "members", [pa.nulls(2), pa.array([1.0, 2.0]), pa.array([None, None], pa.string())]
    )
    def test_members_that_are_no_pseudonyms_are_held_and_not_dropped(
        self, snapshot: Snapshot, members: pa.Array
    ) -> None:
        """A row that vanishes from a report is a row that nobody asks about."""
        table = pa.table({"member_id": members, "place": ["US", "US"]})

        assert decisions(table, snapshot, Columns(jurisdiction="place")) == [Reason.QUARANTINED] * 2

    def test_a_missing_member_of_a_categorical_column_is_held(self, snapshot: Snapshot) -> None:
        """It would otherwise be answered for the first member of the table, whoever that is."""
        members = pa.array(["known", None]).dictionary_encode()
        table = pa.table({"member_id": members, "place": ["US", "US"]})

        assert decisions(table, snapshot, Columns(jurisdiction="place")) == [
            Reason.DEFAULT_ON,
            Reason.QUARANTINED,
        ]

    def test_the_counts_add_up_to_the_rows(self, snapshot: Snapshot) -> None:
        """The report of a training run is checked against the data set's size."""
        table = pa.table({"member_id": ["a", "b", None], "place": ["US", "XX", "US"]})

        found = decide_table(
            table,
            snapshot,
            purpose=PURPOSE,
            at=day(25),
            known_at=day(25),
            columns=Columns(jurisdiction="place"),
            is_fresh=True,
        )

        assert found.counts() == {
            Reason.DEFAULT_ON: 1,
            Reason.JURISDICTION_UNKNOWN: 1,
            Reason.QUARANTINED: 1,
        }
        assert found.reasons.dtype == np.int8


class TestTimes:
    @pytest.mark.parametrize(
        "values",
        [
            pa.array([day(4), day(5)], pa.int64()),
            pa.array([day(4) // 1000, day(5) // 1000], pa.timestamp("ms")),
            pa.array([day(4), day(5)], pa.timestamp("us", tz="Asia/Hong_Kong")),
            pa.array([day(4) * 1000 + 999, day(5) * 1000 + 1], pa.timestamp("ns")),
            pa.array([moment_of(day(4)).date(), moment_of(day(5)).date()], pa.date32()),
            pa.array([moment_of(day(4)).date(), moment_of(day(5)).date()], pa.date64()),
        ],
    )
    def test_a_cut_off_is_kept_whatever_type_the_time_has(
        self, snapshot: Snapshot, values: pa.Array
    ) -> None:
        """Data from before the date that was promised must not slip in by its column's type."""
        snapshot.apply_control(policy(901, terms("*", collected_from=day(5)), on=1))
        table = pa.table({"member_id": ["a", "b"], "place": ["US", "US"], "collected": values})

        found = decisions(table, snapshot, Columns(jurisdiction="place", collected="collected"))

        assert found == [Reason.OUTSIDE_TERMS, Reason.DEFAULT_ON]

    @pytest.mark.parametrize("values", [["2024-01-01"], [1.5], [[1]]])
    def test_a_column_that_holds_no_times_is_refused_by_name(
        self, snapshot: Snapshot, values: list[Any]
    ) -> None:
        """A guess would let all of it through, or none."""
        table = pa.table({"member_id": ["a"], "place": ["US"], "when": values})

        with pytest.raises(InvalidInput, match="'when'"):
            decisions(table, snapshot, Columns(jurisdiction="place", collected="when"))


class TestColumns:
    @pytest.mark.parametrize(
        "values",
        [
            pa.array([1_700_000_000], pa.duration("ns")),
            pa.array([True]),
            pa.array(["2024-01-01"]),
            pa.array([1], pa.time64("us")),
            pa.array([-9_223_372_036_855], pa.timestamp("s")),
            pa.array([-106_751_992], pa.date32()),
            pa.array([1.5]),
        ],
    )
    def test_what_is_no_time_of_collection_is_refused(self, values: pa.Array) -> None:
        """Read as one all the same, or wrapped round, it would pass a cut-off that the data does
        not.
        """
        snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
        snapshot.apply_control(policy(901, terms("*", collected_from=day(5)), on=1))

        with pytest.raises(InvalidInput, match="not a time of collection"):
            decisions(
                pa.table({"member_id": ["a"], "when": values}), snapshot, Columns(collected="when")
            )

    @pytest.mark.parametrize(
        "columns", [Columns(member="user"), Columns(jurisdiction="place"), Columns(collected="x")]
    )
    def test_a_missing_column_is_named_with_those_that_are_there(
        self, snapshot: Snapshot, columns: Columns
    ) -> None:
        """Whoever mistyped it finds the right one in the message."""
        table = pa.table({"member_id": ["a"], "text": ["b"]})

        with pytest.raises(InvalidInput, match="'member_id', 'text'"):
            decisions(table, snapshot, columns, is_fresh=False)

    def test_conventional_names_are_found(self) -> None:
        """Data sets that follow the convention need no settings."""
        found = find_columns(["member_id", "jurisdiction", "collected_at"], None)

        assert found == Columns(jurisdiction="jurisdiction", collected="collected_at")


def test_an_opted_out_member_is_excluded_among_many() -> None:
    """The one row in a million that this is about."""
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    snapshot.apply_control(policy(900, terms("*"), on=0))
    record = fold(fold(None, moved("US", 1, on=1)), chose(Choice.OPT_OUT, 2, on=2))
    snapshot.apply_records(
        partition_of(b"member-1", PARTITIONS), [b"member-1"], [write_record(record, frame(1))]
    )
    members = [f"other-{number}" for number in range(5000)]
    members[4321] = "member-1"

    found = decisions(
        pa.table({"member_id": members, "place": ["US"] * 5000}),
        snapshot,
        Columns(jurisdiction="place"),
    )

    assert [place for place, reason in enumerate(found) if reason is not Reason.DEFAULT_ON] == [
        4321
    ]
    assert found[4321] is Reason.OPTED_OUT


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize(
    "texts",
    [
        ["US", None, "", "DE", "US-CA", "Ü"],
        ["US", "DE", "HK"],
        ["", ""],
        ["US\0", "US", "US\0\0"],
        ["a longer text", "US", None],
        ["a text of more than twelve bytes", None],
    ],
)
def test_many_rows_have_the_codes_of_few(texts: list[str | None], kind: pa.DataType) -> None:
    """Another way is taken for many rows, and yet another for texts of one length: no country
    becomes another.
    """
    whole = pa.array(texts * 4000, kind)
    column = pa.chunked_array(
        [whole, whole.slice(1, 20_000), pa.array(texts * 10, kind), whole.slice(3)]
    )

    values, codes = encoded(column)

    assert [values[code] for code in codes.tolist()] == column.to_pylist()
    assert len(set(values)) == len(values)


def test_what_stands_behind_a_short_view_is_no_part_of_its_text() -> None:
    """Arrow demands zeroes there, and not every writer sees to it: a pause of 'posts' has to find
    them.
    """
    whole = pa.array(["posts", "hi"] * 10_000, pa.string_view())
    snapshots = np.frombuffer(whole.buffers()[1], np.uint8).copy().reshape(-1, 16)
    snapshots[:, 11:] = 3
    column = pa.Array.from_buffers(pa.string_view(), len(whole), [None, pa.py_buffer(snapshots)])

    values, codes = encoded(pa.chunked_array([column]))

    assert [values[code] for code in codes.tolist()] == ["posts", "hi"] * 10_000


@pytest.mark.parametrize("name", ["Jurisdiction", "CATEGORY", "Member_ID", "Collected_At"])
def test_a_column_that_is_ours_but_for_its_case_is_refused(name: str) -> None:
    """Spark and DuckDB would take it for ours: a row of a paused country must not pass here."""
    with pytest.raises(InvalidInput) as caught:
        find_columns(["member_id", name] if name != "Member_ID" else [name], None)
    assert caught.value.code == "input.column"


@pytest.mark.parametrize("named", [{}, {"member": "member_id"}, "member_id", ["member_id"]])
def test_columns_that_are_none_are_refused_and_not_guessed(named: Any) -> None:
    """An empty mapping that counted as "find them yourself" would filter by other columns than was
    meant.
    """
    table = pa.table({"member_id": ["a"]})
    for asked in (
        lambda: find_columns(table.column_names, named),
        lambda: read_batch(table, named),
    ):
        with pytest.raises(InvalidInput) as caught:
            asked()
        assert caught.value.code == "input.columns"
