"""Purging a Parquet data set: what the orders name goes, all else stays as it was, and twice is
once.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.strategies import PURPOSE, day, moved

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.records import Record, fold
from consentry.domain.values import MemberId, Reason
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge import dataset_files, dataset_version, purge, read_dataset
from consentry.trainer.purge import row_selector as row_selector_module
from consentry.trainer.purge.row_selector import (
    UNKNOWN_REASONS,
    ExcludedSelector,
    JointSelector,
    OrdersSelector,
)
from consentry.wire.frames import frame
from consentry.wire.partitions import partition_of
from consentry.wire.records import read_record, write_record

PARTITIONS = 4


def member_order(member: str) -> PurgeOrder:
    """An order for one member."""
    return PurgeOrder(
        order_id=f"erasure:{member}",
        because=PurgeReason.ERASURE,
        recorded_at=day(1),
        due_at=day(31),
        member=MemberId(member),
    )


def scope_order(*jurisdictions: str, categories: tuple[str, ...] | None = None) -> PurgeOrder:
    """An order for the scope of a pause."""
    return PurgeOrder(
        order_id="pause:p:1",
        because=PurgeReason.PAUSE,
        recorded_at=day(1),
        due_at=day(31),
        pause="p",
        scope=Scope(jurisdictions=jurisdictions, categories=categories),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two files of rows, one in a folder of its own."""
    (tmp_path / "more").mkdir()
    pq.write_table(
        pa.table(
            {
                "member_id": ["ana", "wing", None, "ana"],
                "jurisdiction": ["US", None, "HK", "HK"],
                "category": ["posts", "posts", "profile", None],
                "text": ["a", "b", "c", "d"],
            }
        ),
        tmp_path / "one.parquet",
    )
    pq.write_table(
        pa.table(
            {"member_id": ["bob"], "jurisdiction": ["US"], "category": ["posts"], "text": ["e"]}
        ),
        tmp_path / "more" / "two.parquet",
    )
    return tmp_path


@pytest.fixture
def snapshot(snapshot: Snapshot) -> Snapshot:
    """Wing lives in Hong Kong; of the others nothing is recorded."""
    record = fold(None, moved("HK", 1, on=1, member="wing"))
    snapshot.apply_records(
        partition_of(b"wing", PARTITIONS), [b"wing"], [write_record(record, frame(1))]
    )
    return snapshot


def left(data: Path) -> list[str]:
    """The texts that are left."""
    return sorted(text for _, table in read_dataset(data) for text in table["text"].to_pylist())


class TestOrdersSelector:
    def test_the_rows_of_a_member_are_removed_and_counted(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """The receipt tells the regulator how many."""
        result = purge(data, [member_order("ana")], snapshot, now=day(30))

        assert left(data) == ["b", "c", "e"]
        assert result.rows_removed == {"erasure:ana": 2}
        assert result.files_rewritten == 1

    def test_the_rows_of_a_scope_are_those_of_its_residents_and_of_its_rows(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """A commitment to remove a country means people who live there and data from there."""
        result = purge(data, [scope_order("HK")], snapshot, now=day(30))

        assert left(data) == ["a", "e"]
        assert result.rows_removed == {"pause:p:1": 3}

    def test_a_scope_of_some_categories_leaves_the_others_and_takes_what_has_none(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """What a row does not say cannot save it."""
        purge(data, [scope_order("HK", categories=("posts",))], snapshot, now=day(30))

        assert left(data) == ["a", "c", "e"]

    def test_everywhere_is_everybody(self, data: Path, snapshot: Snapshot) -> None:
        """Members of whom nothing is recorded live somewhere."""
        purge(data, [scope_order("*")], snapshot, now=day(30))

        assert left(data) == []

    def test_a_row_that_two_orders_name_is_counted_once(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """The sum of the receipts is what was removed."""
        result = purge(data, [member_order("wing"), scope_order("HK")], snapshot, now=day(30))

        assert result.rows_removed == {"erasure:wing": 1, "pause:p:1": 2}

    def test_a_missing_member_of_a_categorical_column_is_nobody(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """It must not be purged as the first member of the file, nor shield them."""
        table = pq.read_table(data / "one.parquet")
        place = table.column_names.index("member_id")
        encoded = table.set_column(place, "member_id", table["member_id"].dictionary_encode())
        pq.write_table(encoded, data / "one.parquet")

        purge(data, [member_order("ana")], snapshot, now=day(30))

        assert left(data) == ["b", "c", "e"]


class TestWhatCannotBeSeen:
    @pytest.mark.parametrize("members", [pa.array([b"ana", b"wing"]), pa.array([1.0, 2.0])])
    def test_a_member_column_that_holds_no_ids_is_refused(
        self, data: Path, snapshot: Snapshot, members: pa.Array
    ) -> None:
        """Nobody is found in it, and the erasure would be answered: there was nothing."""
        pq.write_table(pa.table({"member_id": members}), data / "other.parquet")

        with pytest.raises(InvalidInput) as caught:
            purge(data, [member_order("ana")], snapshot, now=day(30))

        assert caught.value.code == "input.member_column"

    def test_a_file_of_another_kind_is_refused(self, data: Path, snapshot: Snapshot) -> None:
        """Its rows would stay, under a receipt that says deleted."""
        (data / "rest.parq").write_bytes((data / "one.parquet").read_bytes())

        with pytest.raises(InvalidInput) as caught:
            purge(data, [member_order("ana")], snapshot, now=day(30))

        assert caught.value.code == "input.dataset"

    def test_a_category_of_no_type_is_any_category(self, data: Path, snapshot: Snapshot) -> None:
        """A column of nothing but nulls has no type; it must not stop every other order."""
        pq.write_table(
            pa.table({"member_id": ["wing"], "category": pa.nulls(1), "text": ["n"]}),
            data / "n.parquet",
        )

        purge(data, [scope_order("HK", categories=("posts",))], snapshot, now=day(30))

        assert "n" not in left(data)

    def test_who_moved_away_since_the_pause_was_recorded_is_purged_too(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """The order is about who lived there then, not about where they are when somebody gets to
        it.
        """
        record = fold(
            fold(None, moved("HK", 1, on=1, member="wing")), moved("US", 2, on=2, member="wing")
        )
        snapshot.apply_records(
            partition_of(b"wing", PARTITIONS), [b"wing"], [write_record(record, frame(1))]
        )

        purge(data, [scope_order("HK")], snapshot, now=day(30))

        assert "b" not in left(data)


class TestFiles:
    def test_files_without_such_rows_stay_byte_for_byte(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """A rewrite of everything would cost days, and break every checksum that others keep."""
        before = (data / "more" / "two.parquet").read_bytes()

        purge(data, [member_order("ana")], snapshot, now=day(30))

        assert (data / "more" / "two.parquet").read_bytes() == before

    def test_a_second_purge_removes_nothing_more(self, data: Path, snapshot: Snapshot) -> None:
        """A subscriber that fell before its receipt was sent runs it again."""
        first = purge(data, [member_order("ana")], snapshot, now=day(30))

        again = purge(data, [member_order("ana")], snapshot, now=day(30))

        assert again.rows_removed == {"erasure:ana": 0}
        assert again.version_before == again.version_after == first.version_after

    def test_the_version_changes_with_the_content_and_only_then(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """Before and after stand in the receipt."""
        before = dataset_version(data)

        result = purge(data, [member_order("ana")], snapshot, now=day(30))

        assert result.version_before == before
        assert result.version_after == dataset_version(data) != before

    def test_what_a_killed_purge_left_behind_is_removed_and_never_read(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """Half a file beside the whole one would bring its rows back."""
        (data / ".consentry-purge").mkdir()
        leftover = data / ".consentry-purge" / "00000001.new"
        leftover.write_bytes(b"half")

        purge(data, [], snapshot, now=day(30))

        assert not leftover.exists()
        assert [path.name for path in dataset_files(data)] == ["two.parquet", "one.parquet"]

    def test_a_data_set_that_is_not_there_is_refused(
        self, tmp_path: Path, snapshot: Snapshot
    ) -> None:
        """NOT_FOUND in a receipt has to mean that somebody looked."""
        with pytest.raises(InvalidInput, match="is not a directory"):
            purge(tmp_path / "nowhere", [], snapshot, now=day(30))

    def test_a_file_without_the_members_column_is_refused_by_name(
        self, data: Path, snapshot: Snapshot
    ) -> None:
        """Skipped, it would keep the rows that the order is about."""
        with pytest.raises(InvalidInput, match="'user'"):
            purge(
                data, [member_order("ana")], snapshot, now=day(30), columns=Columns(member="user")
            )


class TestOtherProcesses:
    """Spark sends what decides to every executor."""

    def test_a_cover_decides_there_as_here(self, data: Path, snapshot: Snapshot) -> None:
        """A selector that remembers, and cannot be sent because of it, fails only on the cluster."""
        table = pq.read_table(data / "one.parquet")
        decider = SnapshotDecider(snapshot, at=day(30))
        selector = JointSelector(
            [
                OrdersSelector([scope_order("HK")], snapshot, day(30)),
                ExcludedSelector(decider, PURPOSE),
            ]
        )
        columns = find_columns(table.column_names, None)
        here = selector.select_rows(table, columns)

        there = pickle.loads(pickle.dumps(selector)).select_rows(table, columns)  # noqa: S301 - our own bytes

        assert there.order_indices.tolist() == here.order_indices.tolist()
        assert there.unknown == here.unknown

    def test_a_decider_that_follows_is_refused(self, snapshot: Snapshot) -> None:
        """In another process it would answer for ever by what was known when that began."""

        class Other:
            def __init__(self, decider: SnapshotDecider) -> None:
                self.snapshot_id, self.stale_detail = decider.snapshot_id, ""
                self.decide_table = decider.decide_table

        with pytest.raises(Refused, match="another process"):
            pickle.dumps(ExcludedSelector(Other(SnapshotDecider(snapshot)), PURPOSE))


class TestSpeed:
    """Nothing is looked up twice."""

    def test_each_member_is_looked_up_once_however_many_files_there_are(
        self, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Five million rows of a hundred thousand members are a hundred thousand records to read,
        not five million.
        """
        asked: list[bytes] = []

        def counting(raw: bytes, key: bytes) -> Record:
            asked.append(key)
            return read_record(raw, key)

        monkeypatch.setattr(row_selector_module, "read_record", counting)
        selector = OrdersSelector([scope_order("HK")], snapshot, day(30))
        table = pa.table({"member_id": ["ana", "wing", "ana", None] * 100})

        for _ in range(3):
            assert (~selector.select_rows(table, Columns()).keep).sum() == 100

        assert asked == [b"wing"]


DELETING_REASONS = frozenset(
    {
        Reason.ERASED,
        Reason.PAUSED,
        Reason.OPTED_OUT,
        Reason.NO_TERMS,
        Reason.NOT_OFFERED,
        Reason.OUTSIDE_TERMS,
        Reason.NOTICE_OPEN,
        Reason.OPT_IN_REQUIRED,
    }
)
"""The reasons for which `purge apply --excluded` deletes a row, said once more by hand."""


def test_every_reason_either_allows_or_deletes_or_keeps_a_row_for_another_day() -> None:
    """A new reason that nobody sorted would delete rows of members of whom little is known."""
    allowing = {reason for reason in Reason if reason.allows}

    # No row of a STALE table is purged at all: the selector raises.
    assert allowing | DELETING_REASONS | UNKNOWN_REASONS == set(Reason) - {Reason.STALE}
    assert not DELETING_REASONS & UNKNOWN_REASONS
    assert not allowing & (DELETING_REASONS | UNKNOWN_REASONS)
