"""What every kind of data set promises when it is purged."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.strategies import PURPOSE, chose, day, folded, moved

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import Choice, MemberId
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge.dataset import Dataset, DatasetChanged
from consentry.trainer.purge.row_selector import (
    ExcludedSelector,
    JointSelector,
    OrdersSelector,
    RowSelector,
    Selection,
)
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4
SCHEMA = pa.schema({"member_id": pa.string(), "jurisdiction": pa.string(), "text": pa.string()})


def rows(*many: tuple[str | None, str | None, str]) -> pa.Table:
    """Rows of member, jurisdiction, text."""
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in many], SCHEMA)


FIRST = rows(("ana", "US", "a1"), ("bob", "US", "b1"), ("ana", "HK", "a2"), (None, "US", "n1"))
SECOND = rows(("cleo", "US", "c1"), ("ana", "US", "a3"), ("wing", None, "w1"))
THIRD = rows(("bob", "US", "b2"), ("cleo", "US", "c2"))


def erasure(member: str) -> PurgeOrder:
    """An order for one member."""
    return PurgeOrder(
        order_id=f"erasure:{member}",
        because=PurgeReason.ERASURE,
        recorded_at=day(1),
        due_at=day(31),
        member=MemberId(member),
    )


def of_scope(*jurisdictions: str) -> PurgeOrder:
    """An order for the scope of a pause."""
    return PurgeOrder(
        order_id="pause:p:1",
        because=PurgeReason.PAUSE,
        recorded_at=day(1),
        due_at=day(31),
        pause="p",
        scope=Scope(jurisdictions=jurisdictions),
    )


def apply_record(snapshot: Snapshot, member: str, *events: Any) -> None:
    """Let the snapshot hold what these events fold to."""
    record = folded(*events)
    assert record is not None
    key = member.encode()
    snapshot.apply_records(partition_of(key, PARTITIONS), [key], [write_record(record, frame(1))])


class OnFirstLook:
    """A selector during whose first call something happens."""

    def __init__(self, selector: RowSelector, happens: Callable[[], object]) -> None:
        self._selector = selector
        self._happens: Callable[[], object] | None = happens

    @property
    def order_ids(self) -> Sequence[str]:
        """See RowSelector."""
        return self._selector.order_ids

    def select_rows(self, table: pa.Table, columns: Columns) -> Selection:
        """See RowSelector."""
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        return self._selector.select_rows(table, columns)


class DatasetContract(ABC):
    """Subclasses make the data set."""

    FILES = (3, 2)
    """How many files the three tables make, and in how many of them Ana is."""

    @abstractmethod
    def make(
        self, directory: Path, tables: Sequence[pa.Table], columns: Columns | None = None
    ) -> Dataset:
        """A data set that holds each of these tables in a file of its own."""

    @abstractmethod
    def append(self, directory: Path, table: pa.Table) -> None:
        """What another writer does: add the rows in a file of their own."""

    @abstractmethod
    def read(self, directory: Path) -> pa.Table:
        """All rows, as anybody would read them."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Where the data set is."""
        return tmp_path / "posts"

    @pytest.fixture
    def dataset(self, directory: Path) -> Dataset:
        """Three files."""
        return self.make(directory, [FIRST, SECOND, THIRD])

    @pytest.fixture
    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Bob opted out, and lives where all is allowed; of ana and cleo that is known too;

        Wing lives in Hong Kong.
        """
        for number, member in enumerate(("ana", "bob", "cleo")):
            home = moved("US", number, on=1, member=member)
            choice = chose(
                Choice.OPT_OUT if member == "bob" else Choice.OPT_IN,
                number + 10,
                on=2,
                member=member,
            )
            apply_record(snapshot, member, home, choice)
        apply_record(snapshot, "wing", moved("HK", 9, on=1, member="wing"))
        for partition in range(PARTITIONS):
            snapshot.apply_frontier(Frontier(partition, "g", day(30), 0, 0, 0, False))
        snapshot.settle_frontiers()
        return snapshot

    def texts(self, directory: Path) -> list[str]:
        """What is left."""
        return sorted(self.read(directory)["text"].to_pylist())

    def orders(self, snapshot: Snapshot, *orders: PurgeOrder) -> OrdersSelector:
        """A selector of orders."""
        return OrdersSelector(orders, snapshot, day(30))

    def test_a_plan_tells_files_rows_and_bytes_and_writes_nothing(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """Whoever has to allow a purge sees its price before, not after."""
        before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

        plan = dataset.plan(self.orders(snapshot, erasure("ana"), erasure("nobody")))

        files, count, size = plan.touched_by("erasure:ana")
        assert (plan.files_looked_at, files) == self.FILES
        assert (count, plan.rows_looked_at) == (3, 9)
        assert size == sum(file.bytes for file in plan.files) > 0
        assert plan.touched_by("erasure:nobody") == (0, 0, 0)
        assert plan.version == dataset.version()
        assert {
            path: path.read_bytes() for path in directory.rglob("*") if path.is_file()
        } == before

    def test_the_covered_rows_go_and_all_others_stay(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """The one thing that a member asked for, and the one thing that the owner of the data asks
        for.
        """
        result = dataset.apply(self.orders(snapshot, erasure("ana"), of_scope("HK")))

        assert self.texts(directory) == ["b1", "b2", "c1", "c2", "n1"]
        assert result.rows_removed == {"erasure:ana": 3, "pause:p:1": 1}
        assert result.files_rewritten >= self.FILES[1]
        assert (
            dataset.verify(
                self.orders(snapshot, erasure("ana"), of_scope("HK")), old_versions=False
            ).exit_status
            == 0
        )
        assert self.read(directory).schema.equals(SCHEMA)

    def test_the_version_moves_with_the_rows(self, dataset: Dataset, snapshot: Snapshot) -> None:
        """A receipt says which state of the data it is about."""
        before = dataset.version()

        result = dataset.apply(self.orders(snapshot, erasure("ana")))

        assert result.version_before == before != result.version_after == dataset.version()

    def test_twice_is_once_and_the_rows_stay_counted(
        self, dataset: Dataset, snapshot: Snapshot
    ) -> None:
        """Who was killed before the receipt was sent must not answer that there was nothing."""
        first = dataset.apply(self.orders(snapshot, erasure("ana")))

        again = dataset.apply(self.orders(snapshot, erasure("ana")))

        assert again.rows_removed == {"erasure:ana": 0}
        assert again.rows_in_all == first.rows_in_all == {"erasure:ana": 3}
        assert again.versions_first == {"erasure:ana": first.version_before}
        assert again.version_before == again.version_after == first.version_after

    def test_rows_that_come_back_are_removed_and_added_to_the_count(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """A backfill from an old copy is how the erased come back."""
        dataset.apply(self.orders(snapshot, erasure("ana")))
        self.append(directory, rows(("ana", "US", "a9")))

        again = dataset.apply(self.orders(snapshot, erasure("ana")))

        assert again.rows_removed == {"erasure:ana": 1}
        assert again.rows_in_all == {"erasure:ana": 4}

    def test_verify_counts_what_is_left(self, dataset: Dataset, snapshot: Snapshot) -> None:
        """A receipt can be wrong; a second look must not take its word."""
        found = dataset.verify(self.orders(snapshot, erasure("ana"), erasure("nobody")))

        assert found.rows_left == {"erasure:ana": 3}
        assert (found.files, found.rows, found.exit_status) == (self.FILES[0], 9, 1)

    def test_the_excluded_go_and_rows_of_nobody_known_are_kept_and_counted(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """A broken id is no reason to destroy a row, and no reason to call the data set clean."""
        selector = ExcludedSelector(SnapshotDecider(snapshot, at=day(30)), PURPOSE)

        result = dataset.apply(selector)

        assert self.texts(directory) == ["a1", "a2", "a3", "c1", "c2", "n1", "w1"]
        assert result.rows_removed == {f"excluded:{PURPOSE}": 2}
        assert result.unknown == 1
        assert dataset.verify(selector, old_versions=False).exit_status == 2

    def test_rows_of_nobody_known_go_when_asked(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """Some may only keep what they can answer for."""
        result = dataset.apply(
            ExcludedSelector(SnapshotDecider(snapshot, at=day(30)), PURPOSE, purge_unknown=True)
        )

        assert "n1" not in self.texts(directory)
        assert result.unknown == 0

    def test_a_stale_decider_removes_nothing(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """To somebody who knows nothing everybody is excluded: a broker's failure would empty the
        data set.
        """
        decider = SnapshotDecider(snapshot, clock=lambda: day(60), stale_after_seconds=1)

        with pytest.raises(Unavailable) as caught:
            dataset.apply(ExcludedSelector(decider, PURPOSE))

        assert caught.value.code == "purge.stale"
        assert len(self.texts(directory)) == 9

    def test_orders_and_the_excluded_go_in_one_pass(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """Each file is rewritten once, not once for every reason."""
        selector = JointSelector(
            [
                self.orders(snapshot, erasure("ana")),
                ExcludedSelector(SnapshotDecider(snapshot, at=day(30)), PURPOSE),
            ]
        )

        result = dataset.apply(selector)

        assert result.rows_removed == {"erasure:ana": 3, f"excluded:{PURPOSE}": 2}
        assert self.texts(directory) == ["c1", "c2", "n1", "w1"]

    def test_a_file_of_which_nothing_is_left_leaves_no_row(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """The last row of a file is somebody's too."""
        dataset.apply(self.orders(snapshot, erasure("bob"), erasure("cleo")))

        assert self.texts(directory) == ["a1", "a2", "a3", "n1", "w1"]
        assert dataset.plan(self.orders(snapshot, erasure("bob"))).files == ()

    def test_a_missing_column_is_refused_by_name_and_nothing_is_removed(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """Skipped, it would keep the rows that the order is about."""
        dataset = self.make(directory, [FIRST], Columns(member="user"))

        with pytest.raises(InvalidInput, match=r"'user'.*'member_id'"):
            dataset.apply(self.orders(snapshot, erasure("ana")))

        assert len(self.texts(directory)) == FIRST.num_rows

    def test_what_another_writer_adds_meanwhile_is_not_lost_and_not_overlooked(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """A receipt that says deleted, over rows that nobody looked at, is a false one."""
        late = rows(("ana", "US", "late-ana"), ("dora", "US", "late-dora"))
        selector = OnFirstLook(
            self.orders(snapshot, erasure("ana")), lambda: self.append(directory, late)
        )

        try:
            dataset.apply(selector)
        except DatasetChanged:
            assert len(self.texts(directory)) == 9 + late.num_rows
            dataset.apply(selector)

        assert self.texts(directory) == ["b1", "b2", "c1", "c2", "late-dora", "n1", "w1"]

    def test_an_error_half_way_leaves_what_was_not_reached(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """A selector that can no longer tell must stop the purge, and a later one must be able to
        finish it.
        """
        calls = itertools.count()

        class Failing(OnFirstLook):
            def select_rows(self, table: pa.Table, columns: Columns) -> Selection:
                if next(calls) == 2:
                    raise Unavailable("It cannot tell any more.", code="purge.stale")
                return super().select_rows(table, columns)

        selector = self.orders(snapshot, erasure("ana"), erasure("bob"))
        with pytest.raises(Unavailable):
            dataset.apply(Failing(selector, lambda: None))
        assert {"c1", "c2", "n1", "w1"} <= set(self.texts(directory))

        result = dataset.apply(selector)

        assert self.texts(directory) == ["c1", "c2", "n1", "w1"]
        assert result.rows_in_all == {"erasure:ana": 3, "erasure:bob": 2}

    def test_no_old_bytes_of_the_removed_are_left_on_the_disk(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """What a file browser finds was not deleted, whatever the table's log says."""
        dataset.apply(self.orders(snapshot, erasure("wing")))
        if dataset.keeps_versions:
            dataset.vacuum()

        # Only data: the log of a Delta table keeps each file's least and greatest value until it is
        # cleaned.
        files = [path for path in directory.rglob("*.parquet") if path.is_file()]
        assert files
        assert not [path for path in files if b"wing" in path.read_bytes()]


class VersionedDatasetContract(DatasetContract):
    """For formats whose older versions can still be read."""

    def test_old_versions_are_named_until_they_are_vacuumed(
        self, dataset: Dataset, directory: Path, snapshot: Snapshot
    ) -> None:
        """Rows that a time traveller can still read are not gone."""
        result = dataset.apply(self.orders(snapshot, erasure("ana")))
        found = dataset.verify(self.orders(snapshot, erasure("ana")))
        assert found.old_versions[result.version_before] == 3
        assert (found.rows_left, found.exit_status) == ({}, 1)

        assert dataset.vacuum()

        clean = dataset.verify(self.orders(snapshot, erasure("ana")))
        assert (clean.old_versions, clean.exit_status) == ({}, 0)
        assert self.texts(directory) == ["b1", "b2", "c1", "c2", "n1", "w1"]


def many(number: int, *, seed: int = 1, members: int = 100) -> pa.Table:
    """So many rows, their members drawn at random."""
    drawn = np.random.default_rng(seed).integers(0, members, number)
    return pa.table(
        {
            "member_id": pa.array([f"m{one}" for one in drawn.tolist()]),
            "jurisdiction": pa.array(["US"] * number),
            "text": pa.array([f"{seed}-{place}" for place in range(number)]),
        }
    )
