"""What a directory of Parquet files promises beyond the contract: form, replacing, journal, and other
writers.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from tests.strategies import day
from tests.unit.trainer.purge.dataset_contract import (
    FIRST,
    SECOND,
    OnFirstLook,
    erasure,
    many,
    of_scope,
    rows,
)

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge import journal, parquet, replace_files
from consentry.trainer.purge.dataset import DatasetChanged, PurgeResult
from consentry.trainer.purge.file_worker import run_here
from consentry.trainer.purge.files import dataset_files, fingerprint, read_dataset
from consentry.trainer.purge.journal import Journal, StagedFile, order_key
from consentry.trainer.purge.parquet import ParquetDirectory
from consentry.trainer.purge.row_selector import OrdersSelector


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two files in two folders."""
    directory = tmp_path / "posts"
    (directory / "more").mkdir(parents=True)
    pq.write_table(FIRST, directory / "one.parquet")
    pq.write_table(SECOND, directory / "more" / "two.parquet")
    return directory


def texts(directory: Path) -> list[str]:
    """What is left."""
    return sorted(
        text for _, table in read_dataset(directory) for text in table["text"].to_pylist()
    )


def purge(directory: Path, snapshot: Snapshot, *members: str) -> PurgeResult:
    """Purge members."""
    return ParquetDirectory(directory).apply(selector(snapshot, *members))


def selector(snapshot: Snapshot, *members: str) -> OrdersSelector:
    """Orders for members."""
    return OrdersSelector([erasure(member) for member in members], snapshot, day(30))


class TestForm:
    """A rewritten file is what its first writer would have written without these rows."""

    def written(
        self, directory: Path, table: pa.Table, snapshot: Snapshot, **settings: object
    ) -> tuple[pq.ParquetFile, ...]:
        """A file before and after Ana's rows are removed."""
        path = directory / "form.parquet"
        pq.write_table(table, path, **settings)
        before = pq.ParquetFile(path.read_bytes() and pa.BufferReader(path.read_bytes()))
        purge(directory, snapshot, "ana")
        return before, pq.ParquetFile(pa.BufferReader(path.read_bytes()))

    def test_codec_encodings_statistics_groups_and_metadata_stay(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """A job that is tuned to its files gets slower overnight, and nobody knows why."""
        table = pa.table(
            {
                "member_id": ["ana", "bob", "cleo", "dora"] * 25,
                "number": list(range(100)),
                "text": [f"t{place}" for place in range(100)],
                "more": [[1, 2]] * 100,
            }
        ).replace_schema_metadata({"owner": "ranking"})
        before, after = self.written(
            directory,
            table,
            snapshot,
            compression={
                "member_id": "zstd",
                "number": "gzip",
                "text": "none",
                "more.list.element": "snappy",
            },
            use_dictionary=["member_id"],
            column_encoding={"number": "DELTA_BINARY_PACKED"},
            write_statistics=["number"],
            write_page_index=True,
            row_group_size=40,
            sorting_columns=[pq.SortingColumn(1)],
        )

        assert after.metadata.num_rows == 75
        assert [after.metadata.row_group(place).num_rows for place in range(3)] == [30, 30, 15]
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        assert after.schema.equals(before.schema)
        for place in range(before.metadata.num_columns):
            old, new = (file.metadata.row_group(0).column(place) for file in (before, after))
            assert (new.compression, new.encodings) == (old.compression, old.encodings)
            assert (new.is_stats_set, new.has_column_index) == (
                old.is_stats_set,
                old.has_column_index,
            )
        assert (
            after.metadata.row_group(0).sorting_columns
            == before.metadata.row_group(0).sorting_columns
        )
        assert after.read()["number"].to_pylist() == [one for one in range(100) if one % 4]

    @pytest.mark.parametrize(
        "settings",
        [
            {"use_deprecated_int96_timestamps": True},
            {"store_decimal_as_integer": True, "version": "1.0"},
            {"use_compliant_nested_type": False, "store_schema": False},
        ],
        ids=str,
    )
    def test_the_types_that_other_writers_store_stay(
        self, directory: Path, snapshot: Snapshot, settings: dict[str, object]
    ) -> None:
        """Spark's own files, half of them of other types than before, are a data set that some
        readers refuse.
        """
        table = pa.table(
            {
                "member_id": ["ana", "bob"],
                "collected_at": pa.array([1, 2], pa.timestamp("us")),
                "price": pa.array([1, 2], pa.decimal128(7, 2)),
                "list": [[1], [2]],
            }
        )

        before, after = self.written(directory, table, snapshot, **settings)

        assert after.schema.equals(before.schema)
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        assert after.metadata.num_rows == 1

    def test_modes_stay(self, directory: Path, snapshot: Snapshot) -> None:
        """A file that a team's jobs may not read any more stops them."""
        (directory / "one.parquet").chmod(0o640)

        purge(directory, snapshot, "ana")

        assert (directory / "one.parquet").stat().st_mode & 0o777 == 0o640

    def test_a_file_without_rows_is_read_as_before(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """An empty day of a data set is a day, not an error."""
        purge(directory, snapshot, "ana", "cleo", "wing")

        assert pyarrow.dataset.dataset(directory).to_table()["text"].to_pylist() == ["b1", "n1"]

    def test_the_check_sum_that_hadoop_keeps_goes_with_the_old_file(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """It does not fit the new one, and Spark would refuse to read it."""
        (directory / ".one.parquet.crc").write_bytes(b"sum")

        purge(directory, snapshot, "ana")

        assert not (directory / ".one.parquet.crc").exists()


class TestFolders:
    def test_members_may_be_told_by_folders(self, tmp_path: Path, snapshot: Snapshot) -> None:
        """A data set that is kept by member has no other place for them."""
        folder = tmp_path / "posts" / "member_id=ana"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": ["a"]}), folder / "a.parquet")
        (tmp_path / "posts" / "member_id=__HIVE_DEFAULT_PARTITION__").mkdir()
        pq.write_table(
            pa.table({"text": ["n"]}),
            tmp_path / "posts/member_id=__HIVE_DEFAULT_PARTITION__/n.parquet",
        )

        purge(tmp_path / "posts", snapshot, "ana")

        assert texts(tmp_path / "posts") == ["n"]

    def test_a_column_that_says_other_than_its_folder_is_refused(
        self, tmp_path: Path, snapshot: Snapshot
    ) -> None:
        """Readers differ in which they believe, so to some the rows would be of another country."""
        folder = tmp_path / "posts" / "jurisdiction=HK"
        folder.mkdir(parents=True)
        pq.write_table(FIRST, folder / "a.parquet")

        with pytest.raises(InvalidInput, match="folder says"):
            ParquetDirectory(tmp_path / "posts").apply(
                OrdersSelector([of_scope("HK")], snapshot, day(30))
            )

    @pytest.mark.parametrize("name", ["_metadata", "link.parquet", "half.parquet"])
    def test_what_would_keep_or_hide_rows_is_refused(
        self, directory: Path, snapshot: Snapshot, name: str
    ) -> None:
        """Each of them would leave rows under a receipt that says deleted."""
        if name.startswith("link"):
            (directory / name).symlink_to(directory / "one.parquet")
        else:
            (directory / name).write_bytes(b"PAR1 and then nothing")

        with pytest.raises(InvalidInput):
            purge(directory, snapshot, "ana")

        assert "a1" in texts_of(directory / "one.parquet")

    def test_a_partition_folder_that_begins_like_a_hidden_one_is_looked_into(
        self, tmp_path: Path, snapshot: Snapshot
    ) -> None:
        """Spark reads `_day=1`; we must not take it for hidden."""
        folder = tmp_path / "posts" / "_day=1"
        folder.mkdir(parents=True)
        pq.write_table(FIRST, folder / "a.parquet")

        assert purge(tmp_path / "posts", snapshot, "ana").rows_removed == {"erasure:ana": 2}

    def test_integer_ids_are_found(self, directory: Path, snapshot: Snapshot) -> None:
        """Half of all data sets keep numbers."""
        pq.write_table(
            pa.table({"member_id": pa.array([7, None, 8]), "text": ["x", "y", "z"]}),
            directory / "i.parquet",
        )

        assert purge(directory, snapshot, "7").rows_removed == {"erasure:7": 1}


def texts_of(path: Path) -> list[str]:
    """The texts of one file."""
    with path.open("rb") as file:
        return list(pq.read_table(file)["text"].to_pylist())


class TestOtherWriters:
    """Who writes to the data set while it is purged loses nothing, and is noticed."""

    def appear(self, directory: Path) -> None:
        pq.write_table(rows(("ana", "US", "late")), directory / "late.parquet")

    def change(self, directory: Path) -> None:
        pq.write_table(rows(("ana", "US", "late")), directory / "one.parquet")

    def vanish(self, directory: Path) -> None:
        (directory / "one.parquet").unlink()

    @pytest.mark.parametrize("how", ["appear", "change", "vanish"])
    def test_nothing_is_replaced_and_the_file_is_named(
        self, directory: Path, snapshot: Snapshot, how: str
    ) -> None:
        """A purge over somebody's half-written work would bring old rows back, or lose new ones."""
        act: Callable[[Path], None] = getattr(self, how)
        two = (directory / "more" / "two.parquet").read_bytes()

        with pytest.raises(
            DatasetChanged, match="late.parquet" if how == "appear" else "one.parquet"
        ):
            ParquetDirectory(directory).apply(
                OnFirstLook(selector(snapshot, "ana"), lambda: act(directory))
            )

        assert (directory / "more" / "two.parquet").read_bytes() == two
        assert ("late" in texts(directory)) is (how != "vanish")
        assert not list((directory / ".consentry-purge").glob("*.new"))

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_a_file_that_is_replaced_at_the_last_instant_is_put_back(
        self,
        directory: Path,
        snapshot: Snapshot,
        can_exchange: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Between the check and the exchange there is an instant; its writer must not lose the file."""
        one = directory / "one.parquet"
        real = replace_files.exchange
        happened: list[int] = []

        def late(first: Path, second: Path) -> bool:
            if not happened and second.name == "one.parquet":
                happened.append(1)
                self.change(directory)
            return real(first, second) if can_exchange else False

        monkeypatch.setattr(replace_files, "exchange", late)
        with pytest.raises(DatasetChanged, match=r"one\.parquet"):
            purge(directory, snapshot, "ana")

        assert texts_of(one) == ["late"]

    def test_without_exchange_the_old_file_is_replaced_all_the_same(
        self, directory: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not every file system can exchange names."""
        monkeypatch.setattr(replace_files, "exchange", lambda _first, _second: False)

        assert purge(directory, snapshot, "ana").rows_removed == {"erasure:ana": 3}
        assert texts(directory) == ["b1", "c1", "n1", "w1"]

    def test_two_purges_of_one_directory_do_not_meet(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """Each would take the other's files for leftovers."""
        with Journal(directory), pytest.raises(Unavailable, match="under way"):
            purge(directory, snapshot, "ana")


class TestNoRoom:
    def test_a_successor_that_cannot_be_written_changes_nothing_and_is_told(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """A full disk in the middle of the night must not cost a row, nor look like a damaged
        file.
        """
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = texts(directory)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Journal(directory):
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
        try:
            with pytest.raises(Unavailable, match="could not be written"):
                purge(directory, snapshot, "ana")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

        assert texts(directory) == before


class TestVerify:
    """Clean means that somebody looked everywhere."""

    def test_old_files_of_a_killed_purge_are_not_told_clean(
        self, directory: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are whole files of the members' rows, in a folder that no reader looks into."""

        class Fell(BaseException):
            pass

        def fall(*_given: object) -> None:
            raise Fell

        with monkeypatch.context() as broken:
            broken.setattr(parquet, "sync_folders", fall)
            with pytest.raises(Fell):
                ParquetDirectory(directory, files_at_once=9).apply(selector(snapshot, "ana"))
        assert texts(directory) == ["b1", "c1", "n1", "w1"]
        assert list((directory / ".consentry-purge").glob("*.new"))

        found = ParquetDirectory(directory).verify(selector(snapshot, "ana"))

        assert found.exit_status == 2
        assert "run apply again" in found.unreadable[0]
        purge(directory, snapshot, "ana")
        assert ParquetDirectory(directory).verify(selector(snapshot, "ana")).exit_status == 0

    def test_a_directory_without_data_is_not_told_clean(
        self, tmp_path: Path, snapshot: Snapshot
    ) -> None:
        """A wrong path, or a mount that is not there, has no rows of anybody."""
        dataset = ParquetDirectory(tmp_path)

        assert dataset.verify(selector(snapshot, "ana")).exit_status == 2
        with pytest.raises(InvalidInput, match="no data file"):
            dataset.plan(selector(snapshot, "ana"))
        with pytest.raises(InvalidInput, match="no data file"):
            dataset.apply(selector(snapshot, "ana"))
        assert not os.listdir(tmp_path)


class TestJournal:
    """What stands in the journal when a purge falls decides what the next one says."""

    def staged(self, directory: Path) -> tuple[Path, Path, StagedFile]:
        """A successor of one.parquet, on disk and in the journal, and its file not yet replaced."""
        one = directory / "one.parquet"
        with Journal(directory) as held:
            new = held.folder / held.new_name()
            pq.write_table(FIRST.slice(1, 1), new)
            entry = StagedFile(
                file="one.parquet",
                staged=new.name,
                old=fingerprint(one),
                new=fingerprint(new),
                rows={order_key("erasure:ana"): 2},
            )
            held.stage([entry], "v1")
        return one, new, entry

    def test_a_replacement_that_took_place_is_counted(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """Killed between replacing and receipt, it would answer that there was nothing."""
        one, new, _ = self.staged(directory)
        assert replace_files.exchange(new, one)

        result = purge(directory, snapshot, "ana")

        assert result.rows_removed == {"erasure:ana": 1}
        assert result.rows_in_all == {"erasure:ana": 3}
        assert result.versions_first == {"erasure:ana": "v1"}
        assert not new.exists()

    def test_a_replacement_that_did_not_take_place_is_not_counted(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """Counted, the same rows would be deleted twice over in the receipt."""
        _, new, _ = self.staged(directory)

        result = purge(directory, snapshot, "ana")

        assert result.rows_in_all == {"erasure:ana": 3}
        assert not new.exists()
        assert texts(directory) == ["b1", "c1", "n1", "w1"]

    def test_what_was_taken_out_by_mistake_is_put_back(
        self, directory: Path, snapshot: Snapshot
    ) -> None:
        """It fell after it had replaced a file that somebody had just replaced: that one must come
        back.
        """
        one, new, _ = self.staged(directory)
        pq.write_table(rows(("dora", "US", "late")), one)
        assert replace_files.exchange(new, one)

        result = purge(directory, snapshot, "ana")

        assert texts_of(one) == ["late"]
        assert result.rows_in_all == {"erasure:ana": 1}

    def test_a_torn_last_line_was_never_acted_on(self, directory: Path, snapshot: Snapshot) -> None:
        """The line is on disk before anything is replaced; half a line means that nothing was."""
        purge(directory, snapshot, "ana")
        path = directory / ".consentry-purge" / "journal.jsonl"
        with path.open("a") as file:
            file.write('{"do": "sta')

        assert purge(directory, snapshot, "ana").rows_in_all == {"erasure:ana": 3}
        assert purge(directory, snapshot, "cleo").rows_in_all == {"erasure:cleo": 1}

    def test_a_damaged_journal_is_refused(self, directory: Path, snapshot: Snapshot) -> None:
        """Read over, it would turn what was deleted into what was never there."""
        purge(directory, snapshot, "ana")
        path = directory / ".consentry-purge" / "journal.jsonl"
        path.write_text("?" + path.read_text())

        with pytest.raises(InvalidInput, match="Line 1"):
            purge(directory, snapshot, "ana")

    def test_it_names_no_member(self, directory: Path, snapshot: Snapshot) -> None:
        """Who was erased would go on standing beside the data that they were erased from."""
        purge(directory, snapshot, "ana")

        text = (directory / ".consentry-purge" / "journal.jsonl").read_text()
        assert order_key("erasure:ana") in text
        assert '"ana' not in text
        assert ":ana" not in text

    def test_a_long_one_is_shortened_and_counts_the_same(
        self, directory: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is read at each start, for as long as the data set lives."""
        monkeypatch.setattr(journal, "_COMPACT_LINES_MIN", 2)
        purge(directory, snapshot, "ana")

        again = purge(directory, snapshot, "ana")

        lines = (directory / ".consentry-purge" / "journal.jsonl").read_text().splitlines()
        assert [json.loads(line)["do"] for line in lines] == ["total"]
        assert again.rows_in_all == {"erasure:ana": 3}
        assert again.versions_first["erasure:ana"] != again.version_after

    def test_readers_see_nothing_of_it(self, directory: Path, snapshot: Snapshot) -> None:
        """A staged file that is read as data doubles the rows."""
        _, new, _ = self.staged(directory)

        assert new.exists()
        assert len(dataset_files(directory)) == len(pyarrow.dataset.dataset(directory).files) == 2


class TestCrashes:
    """At each step where it can fall: every file is whole, old or new, and the next run
    finishes.
    """

    @pytest.mark.parametrize("step", range(12))
    def test_a_fall_at_any_step_loses_no_row_and_no_count(
        self, directory: Path, snapshot: Snapshot, step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Power fails at every one of these instants somewhere."""

        class Fell(BaseException):
            pass

        steps = iter(range(1000))

        def falling(real: Callable[..., object]) -> Callable[..., object]:
            def act(*values: object, **more: object) -> object:
                if next(steps) == step:
                    raise Fell
                found = real(*values, **more)
                if next(steps) == step:
                    raise Fell
                return found

            return act

        kept = {"b1", "c1", "n1", "w1"}
        with monkeypatch.context() as broken:
            broken.setattr(journal.Journal, "settle", falling(journal.Journal.settle))
            broken.setattr(journal.Journal, "stage", falling(journal.Journal.stage))
            broken.setattr(parquet, "replace_file", falling(replace_files.replace_file))
            broken.setattr(parquet, "sync_folders", falling(replace_files.sync_folders))
            with pytest.raises(Fell):
                purge(directory, snapshot, "ana")
        after = set(texts(directory))
        assert kept <= after <= kept | {"a1", "a2", "a3"}
        assert len(pyarrow.dataset.dataset(directory).to_table()) == len(after)

        result = purge(directory, snapshot, "ana")

        assert set(texts(directory)) == kept
        assert result.rows_in_all == {"erasure:ana": 3}


def test_partitions_are_worked_on_whole(tmp_path: Path) -> None:
    """Half a partition that is replaced while the other half waits for its turn is what a reader
    should seldom see.
    """
    names = ["a=1/x.parquet", "a=1/y.parquet", "a=2/x.parquet", "z.parquet", "a=1/b=2/x.parquet"]
    tmp_path.joinpath("posts").mkdir()

    found = list(ParquetDirectory(tmp_path / "posts", run=run_here).batches(names))

    assert found == [
        ["z.parquet"],
        ["a=1/x.parquet", "a=1/y.parquet"],
        ["a=1/b=2/x.parquet"],
        ["a=2/x.parquet"],
    ]


def test_row_groups_of_a_large_file_are_looked_into_bit_by_bit(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a hundred million rows must not have to fit into memory; and no row may fall
    between two bits.
    """
    monkeypatch.setattr("consentry.trainer.purge.file_worker.CHUNK_ROWS", 150)
    directory = tmp_path / "posts"
    directory.mkdir()
    table = many(1000)
    pq.write_table(table, directory / "a.parquet", row_group_size=70)
    kept = np.array(table["member_id"]) != "m7"

    purge(directory, snapshot, "m7")

    assert texts(directory) == sorted(np.array(table["text"])[kept].tolist())
    assert os.listdir(directory / ".consentry-purge")
