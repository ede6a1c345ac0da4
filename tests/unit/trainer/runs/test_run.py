"""A run hands out only usable rows, records them, and stops when freshness is not proven."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tests.strategies import PURPOSE, day, pause, policy, terms
from tests.unit.trainer.runs.conftest import SmallWorld

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.runs import ConsentStale, LeaseRevoked, RunClosed, RunStore, digest_of_files
from consentry.trainer.runs.certificates.reader import read_certificate
from consentry.trainer.runs.certificates.reads import micros
from consentry.trainer.runs.store import CERTIFICATE_FILE, END_FILE, READS_FILE, START_FILE
from consentry.wire.tokens import TokenKeys, read_token


def rows(*members: str | None, place: str = "US") -> pa.Table:
    """A batch with one row for each member."""
    return pa.table(
        {"member_id": pa.array(members, pa.string()), "jurisdiction": [place] * len(members)}
    )


def ids(table: pa.Table) -> list[str]:
    """The members of a batch."""
    members: list[str] = table["member_id"].to_pylist()
    return members


def reads_of(run: Any) -> pa.Table:
    """The reads that a finished run recorded."""
    with run.folder.open(READS_FILE) as file:
        return pq.read_table(file)


class TestHandingOut:
    """The rows that are handed out, and the time at which that is decided."""

    def test_a_member_who_opts_out_between_two_batches_is_not_in_the_second(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """An epoch takes days: an opt-out on its first evening would be ignored until it ends."""
        with small.run(tmp_path) as run:
            handed_out = run.filter([rows("a", "b"), rows("a", "b")])
            assert ids(next(handed_out)) == ["a", "b"]
            small.opt_out("a")
            assert ids(next(handed_out)) == ["b"]
        assert run.counts[Reason.OPTED_OUT] == 1

    def test_no_batch_is_asked_for_before_the_last_one_was_used(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A batch that is decided ahead of its time is decided by what was known then."""
        asked: list[int] = []

        def loader() -> Iterator[pa.Table]:
            for number in range(3):
                asked.append(number)
                yield rows("a")

        with small.run(tmp_path) as run:
            for number, _ in enumerate(run.filter(loader())):
                assert asked == list(range(number + 1))

    def test_a_pause_that_comes_mid_epoch_excludes_its_rows(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A regulator's order binds at once, not from the next epoch on."""
        with small.run(tmp_path) as run:
            handed_out = run.filter([pa.concat_tables([rows("a"), rows("b", place="HK")])] * 2)
            assert ids(next(handed_out)) == ["a", "b"]
            small.control(pause(1, "HK", on=0, effective_at=small.now, recorded_at=small.now))
            assert ids(next(handed_out)) == ["a"]

    def test_empty_batches_are_left_out_and_counted(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A training step over no rows fails, or divides by zero."""
        small.opt_out("a")
        with small.run(tmp_path) as run:
            batches = list(run.filter([rows("a"), rows("b"), rows(), rows("a", None)]))
        assert [ids(batch) for batch in batches] == [["b"]]
        assert (run.batches, run.batches_empty) == (4, 3)
        assert run.counts == {Reason.OPTED_OUT: 2, Reason.DEFAULT_ON: 1, Reason.QUARANTINED: 1}

    def test_every_kind_of_batch_comes_back_as_the_same_kind(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A team that has to convert its batches by hand will filter once, and never again."""
        import pandas as pd
        import polars as pl

        small.opt_out("b")
        data = {"member_id": ["a", "b", "c"], "jurisdiction": ["US"] * 3, "text": ["x", "y", "z"]}
        table = pa.table(data)
        arrays: dict[str, Any] = {
            "member_id": np.array(data["member_id"]),
            "jurisdiction": ("US",) * 3,
        }
        arrays |= {"text": np.arange(3)}
        with small.run(tmp_path) as run:
            assert run.filter(table)["text"].to_pylist() == ["x", "z"]
            (batch,) = run.filter(table.to_batches())
            assert isinstance(batch, pa.RecordBatch)
            assert batch.column("text").to_pylist() == ["x", "z"]
            frame = run.filter(pl.DataFrame(data))
            assert isinstance(frame, pl.DataFrame)
            assert frame["text"].to_list() == ["x", "z"]
            (pandas,) = run.filter(iter([pd.DataFrame(data)]))
            assert pandas["text"].tolist() == ["x", "z"]
            assert run.filter(data)["text"] == ["x", "z"]
            batch_of_arrays = run.filter(arrays)
            assert (batch_of_arrays["text"].tolist(), batch_of_arrays["jurisdiction"]) == (
                [0, 2],
                ("US", "US"),
            )
            (scanned,) = run.filter(ds.dataset(table))
            assert scanned.column("text").to_pylist() == ["x", "z"]

    def test_values_in_a_column_of_mixed_types_that_are_no_ids_are_counted(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A loader's list may hold anything; nobody misses a row dropped without a reason."""
        with small.run(tmp_path) as run:
            usable = run.filter({"member_id": ["a", None, 3.5, ["x"]], "jurisdiction": ["US"] * 4})
        assert usable["member_id"] == ["a"]
        assert run.counts[Reason.QUARANTINED] == 3

    def test_a_value_that_arrow_would_turn_into_a_number_is_no_id(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Among numbers Arrow turns each of them into 1: the id of another member."""
        odd = [7, np.True_, np.float16(1.0), np.float32(1.0), True, None, 1 << 70]
        with small.run(tmp_path) as run:
            for values in (odd, np.array(odd, dtype=object)):
                assert list(
                    run.filter({"member_id": values, "jurisdiction": ["US"] * 7})["member_id"]
                ) == [7, 1 << 70]
        assert run.counts[Reason.QUARANTINED] == 10

    @pytest.mark.parametrize("kind", [pl.Int128(), pl.UInt128(), pl.Object()], ids=str)
    def test_polars_columns_that_arrow_does_not_have_are_read_value_by_value(
        self, small: SmallWorld, tmp_path: Path, kind: pl.DataType
    ) -> None:
        """A null stays a null; an error of Arrow's would end the run."""
        small.opt_out("8")
        frame = pl.DataFrame(
            {"member_id": pl.Series([7, 8, None], dtype=kind), "jurisdiction": ["US"] * 3}
        )
        with small.run(tmp_path) as run:
            assert run.filter(frame)["member_id"].to_list() == [7]
        assert run.counts == {Reason.DEFAULT_ON: 1, Reason.OPTED_OUT: 1, Reason.QUARANTINED: 1}

    def test_a_column_name_that_stands_twice_is_refused(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """After a join nobody knows which of two columns is the author."""
        twice = pa.table([["a"], ["b"]], names=["member_id", "member_id"])
        with (
            pytest.raises(InvalidInput, match="2 columns named 'member_id'"),
            small.run(tmp_path) as run,
        ):
            run.filter(twice)

    def test_integer_ids_are_their_decimal_texts(self, small: SmallWorld, tmp_path: Path) -> None:
        """Most data sets number their members."""
        small.opt_out("2")
        with small.run(tmp_path) as run:
            usable = run.filter(
                pa.table({"member_id": pa.array([1, 2, 3], pa.int64()), "jurisdiction": ["US"] * 3})
            )
        assert usable["member_id"].to_pylist() == [1, 3]
        assert reads_of(run)["member_id"].to_pylist() == ["1", "3"]

    @pytest.mark.parametrize(
        ("batch", "code"),
        [
            ({"who": ["a"]}, "input.column"),
            ({"member_id": ["a"], "step": 3}, "input.batch"),
            ([{"member_id": "m:1", "text": "abc"}], "input.batch"),
            ([{"member_id": b"m:1"}], "input.batch"),
            ({"member_id": ["a"], "text": ["x", "y"]}, "input.batch"),
            (7, "input.batch"),
            ([7], "input.batch"),
            ("abc", "input.batch"),
        ],
    )
    def test_a_value_that_is_no_batch_is_refused(
        self, small: SmallWorld, tmp_path: Path, batch: Any, code: str
    ) -> None:
        """A value that cannot be read must not be handed out unfiltered."""
        with small.run(tmp_path) as run, pytest.raises(InvalidInput) as refused:
            list(run.filter(batch))
        assert refused.value.code == code
        assert code != "input.column" or "'who'" in refused.value.message

    def test_columns_with_other_names_can_be_given(self, small: SmallWorld, tmp_path: Path) -> None:
        """Data sets name their columns as they like."""
        small.opt_out("b")
        with small.run(tmp_path, columns=Columns(member="author", jurisdiction="country")) as run:
            usable = run.filter(pa.table({"author": ["a", "b"], "country": ["US", "US"]}))
        assert usable["author"].to_pylist() == ["a"]


class TestLease:
    """Nothing is handed out without a lease."""

    def test_nothing_is_handed_out_once_freshness_is_not_proven(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Without the broker no opt-out arrives: whoever reads on trains on that data."""
        with pytest.raises(ConsentStale) as stopped, small.run(tmp_path) as run:  # noqa: PT012 - the whole life of a run
            handed_out = run.filter([rows("a")] * 5)
            next(handed_out)
            small.later(4.9, is_fresh=False)
            next(handed_out)
            small.later(0.2, is_fresh=False)
            next(handed_out)
        assert stopped.value.code == "run.consent_stale"
        assert run.state == "ABORTED"
        small.prove()
        for again in ([rows("a")], [rows("b"), rows("a")]):
            with pytest.raises(ConsentStale):
                next(run.filter(again))
        assert (
            RunStore(str(tmp_path))
            .folder(run.run_id)
            .read_json(END_FILE)["reason"]
            .startswith("run.consent_stale")
        )
        assert not run.folder.exists(CERTIFICATE_FILE)
        assert (
            sum(
                pq.read_table(_file(run, name))["rows"].to_pylist()[0]
                for name in run.folder.parts()
            )
            == 2
        )

    def test_a_lease_shorter_than_the_clients_bound_stops_sooner(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Whoever asks for two seconds must not get five."""
        with pytest.raises(ConsentStale), small.run(tmp_path, lease_seconds=2) as run:  # noqa: PT012
            run.filter(rows("a"))
            small.later(2.1, is_fresh=False)
            run.filter(rows("a"))

    def test_a_run_that_may_wait_goes_on_when_freshness_is_back(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A broker that is restarted for maintenance need not cost a day of training."""
        looked = 0

        def clock() -> Any:
            nonlocal looked
            looked += 1
            if looked % 7 == 0:
                small.later(1)  # what was missing arrives while the run waits
            return small.now

        with small.run(tmp_path, stale="wait", wait_seconds=3600, clock=clock) as run:
            small.opt_out("a")
            small.later(60, is_fresh=False)
            assert ids(run.filter(rows("a", "b"))) == ["b"]

    def test_a_run_that_waits_without_success_stops(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A wait without end is a job that hangs."""

        def clock() -> Any:
            return small.later(0.5, is_fresh=False)

        with (
            pytest.raises(ConsentStale),
            small.run(tmp_path, stale="wait", wait_seconds=10, clock=clock) as run,
        ):
            list(run.filter([rows("a")] * 40))

    def test_a_revoked_lease_stays_revoked(self, small: SmallWorld, tmp_path: Path) -> None:
        """Somebody has pressed the red button."""
        with (  # noqa: PT012 - the run raises as it is left
            pytest.raises(LeaseRevoked, match="an authority said stop"),
            small.run(tmp_path) as run,
        ):
            handed_out = run.filter([rows("a")] * 2)
            next(handed_out)
            run.revoke("an authority said stop")
            next(handed_out)
        with pytest.raises(LeaseRevoked):
            run.filter(rows("a"))
        assert run.state == "ABORTED"

    def test_a_condition_of_the_lease_ends_it(self, small: SmallWorld, tmp_path: Path) -> None:
        """A subscriber with overdue purge orders is to stop training, fresh or not."""
        overdue: list[str] = []

        def settled() -> str:
            return ", ".join(overdue)

        with (  # noqa: PT012 - the run raises as it is left
            pytest.raises(LeaseRevoked, match="order pause:hk:1"),
            small.run(tmp_path, conditions=[settled]) as run,
        ):
            run.filter(rows("a"))
            overdue.append("order pause:hk:1 is overdue")
            run.filter(rows("a"))

    def test_a_run_that_cannot_begin_fresh_is_not_registered(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A run that is registered and never read anything would be asked about for ever."""
        small.later(60, is_fresh=False)
        with pytest.raises(ConsentStale), small.run(tmp_path / "runs"):
            pass
        assert not (tmp_path / "runs").exists()

    def test_nothing_is_handed_out_before_or_after(self, small: SmallWorld, tmp_path: Path) -> None:
        """Data that is read outside a run is in no record."""
        run = small.run(tmp_path)
        with pytest.raises(RunClosed):
            run.filter(rows("a"))
        with run:
            left = run.filter([rows("a")] * 2)
            next(left)
        with pytest.raises(RunClosed):
            next(left)
        with pytest.raises(RunClosed), run:
            pass

    def test_an_answer_that_grew_stale_while_it_was_recorded_is_decided_again(
        self, small: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a store that takes a minute, a batch would go out by what was known a minute ago."""
        with small.run(tmp_path) as run:
            write = run.folder.write_part

            def slow(*arguments: Any) -> None:
                write(*arguments)
                if not run.counts:
                    monkeypatch.undo()
                    small.opt_out("a")
                    small.later(60)

            monkeypatch.setattr(run.folder, "write_part", slow)
            assert ids(run.filter(rows("a", "b"))) == ["b"]

    def test_a_batch_that_cannot_be_recorded_is_not_handed_out(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """No certificate and no search will ever find a read that was not recorded."""
        with pytest.raises(Unavailable), small.run(tmp_path / "runs") as run:  # noqa: PT012
            reads = tmp_path / "runs" / run.run_id / "reads"
            reads.write_text("in the way")
            run.filter(rows("a"))
        assert run.state == "ABORTED"


class TestRegister:
    """The files in the run store."""

    def test_the_start_names_run_data_set_purpose_and_token(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Months later somebody asks which run used which data under which knowledge."""
        keys = TokenKeys({1: b"k" * 32})
        with small.run(tmp_path, dataset_version="sha256:abc", token_keys=keys) as run:
            start = run.folder.read_json(START_FILE)
            assert (start["run_id"], start["dataset"], start["dataset_version"]) == (
                run.run_id,
                "posts",
                "sha256:abc",
            )
            assert (start["purpose"], start["subscriber"], start["view_start"]) == (
                PURPOSE,
                "ranker",
                small.snapshot.snapshot_id,
            )
            assert read_token(start["token_start"], keys).controls == 1
            assert start["known_at_start"] == start["started_at"] == small.now
            assert not run.folder.exists(END_FILE)
        assert RunStore(f"file://{tmp_path}").runs() == [run.run_id]

    def test_an_error_in_the_training_closes_the_run_without_its_message(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A half-read epoch must have no certificate.

        The text of an error may hold a member's data.
        """
        with pytest.raises(ZeroDivisionError), small.run(tmp_path) as run:  # noqa: PT012
            run.filter(rows("a"))
            raise ZeroDivisionError("member a")
        end = run.folder.read_json(END_FILE)
        assert (end["state"], end["reason"]) == ("ABORTED", "ZeroDivisionError")
        assert not run.folder.exists(CERTIFICATE_FILE)

    @pytest.mark.parametrize(
        "more",
        [
            {"dataset": "a/b"},
            {"purpose": "Training!"},
            {"lease_seconds": 0},
            {"lease_seconds": float("nan")},
            {"stale": "ignore"},
            {"spool_seconds": -1},
            {"dataset_version": "x" * 600},
            {"store": "no-such-scheme://x"},
        ],
    )
    def test_options_that_do_not_fit_are_refused(
        self, small: SmallWorld, tmp_path: Path, more: dict[str, Any]
    ) -> None:
        """A lease of no time, or without an end, would not be a lease."""
        with pytest.raises(InvalidInput):
            small.run(**{"store": tmp_path, **more})

    def test_runs_are_kept_in_any_store(self, small: SmallWorld) -> None:
        """Training machines come and go; what they read has to be found in a bucket."""
        with small.run("memory://runs-of-a-test") as run:
            run.filter(rows("a"))
        assert run.run_id in RunStore("memory://runs-of-a-test").runs()
        assert reads_of(run)["member_id"].to_pylist() == ["a"]
        assert run.folder.parts() == []


class TestVersion:
    """A version for data that has none."""

    def test_the_digest_of_files_changes_with_any_name_or_byte(self, tmp_path: Path) -> None:
        """A certificate about `posts` says nothing once `posts` has been written anew."""
        for name, content in (("a/x.parquet", b"1"), ("b.parquet", b"2")):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        digests = [digest_of_files(str(tmp_path)), digest_of_files(f"file://{tmp_path}")]
        (tmp_path / "b.parquet").write_bytes(b"3")
        digests.append(digest_of_files(str(tmp_path)))
        (tmp_path / "b.parquet").rename(tmp_path / "c.parquet")
        digests.append(digest_of_files(str(tmp_path)))
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3
        with pytest.raises(InvalidInput):
            digest_of_files(str(tmp_path / "nothing"))
        with pytest.raises(Unavailable):
            digest_of_files("no-such-scheme://x")


class TestReads:
    """The record of what was read."""

    def test_reads_are_distinct_with_first_and_last_time_and_rows(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Ten epochs over ten million members must not become a hundred million lines."""
        begun = small.now
        with small.run(tmp_path) as run:
            run.filter(rows("b", "a", "b"), shard="one")
            small.later(1)
            list(run.filter([rows("a", place="DE"), rows("a")], shard=lambda batch: "two"))
            ended = small.later(1)
            run.filter(rows("b"), shard="one")
        reads = reads_of(run)
        distinct = [
            (row["member_id"], row["jurisdiction"], row["shard"], row["rows"])
            for row in reads.to_pylist()
        ]
        assert distinct == [
            ("a", "DE", "two", 1),
            ("a", "US", "one", 1),
            ("a", "US", "two", 1),
            ("b", "US", "one", 3),
        ]
        assert (micros(reads["first_read_at"])[-1], micros(reads["last_read_at"])[-1]) == (
            begun,
            ended,
        )

    def test_a_time_of_collection_is_kept_as_the_last_cut_off_it_meets(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Every row has its own time of collection: with it, no two reads would be the same."""
        small.control(
            policy(
                901, terms("*", collected_from=day(10)), terms("FR", collected_from=day(20)), on=1
            )
        )
        batch = rows("a", "b", "c").append_column(
            "collected_at", pa.array([day(10.5), day(30), day(5)], pa.int64())
        )
        with small.run(tmp_path) as run:
            run.filter(batch)
        reads = reads_of(run)
        assert reads["member_id"].to_pylist() == ["a", "b"]
        assert micros(reads["collected_from"]).tolist() == [day(10), day(20)]

    def test_many_parts_are_merged_into_one_without_a_loss(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A run of days writes a part a second."""
        with small.run(tmp_path) as run:
            for number in range(100):
                run.filter(rows(f"m{number % 40:02}", "always"))
            assert len(run.folder.parts()) == 3 + 4
            assert len(list((tmp_path / run.run_id / "reads").iterdir())) == 7
        rows_by_member = {row["member_id"]: row["rows"] for row in reads_of(run).to_pylist()}
        assert rows_by_member["always"] == 100
        assert sum(rows_by_member.values()) == 200
        assert len(rows_by_member) == 41

    def test_the_reads_in_memory_are_bounded(self, small: SmallWorld, tmp_path: Path) -> None:
        """Ten million members would fill a training machine's memory."""
        with small.run(tmp_path, spool_seconds=3600, spool_rows=10) as run:
            for number in range(35):
                run.filter(rows(f"m{number:02}"))
            assert len(run.folder.parts()) == 3
        assert reads_of(run).num_rows == 35

    def test_a_part_is_due_after_a_time(self, small: SmallWorld, tmp_path: Path) -> None:
        """A kill can lose no more than the start of the run says."""
        with small.run(tmp_path, spool_seconds=1) as run:
            run.filter(rows("a"))
            assert run.folder.parts() == []
            small.later(1)
            run.filter(rows("b"))
            (part,) = run.folder.parts()
            assert pq.read_table(_file(run, part))["member_id"].to_pylist() == ["a", "b"]
            assert run.folder.read_json(START_FILE)["tail_micros"] == 1_000_000


class TestCertificate:
    """The statement of a run at its end."""

    def test_it_says_what_was_read_and_that_nobody_excluded_was(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """The certificate is the one page that an authority gets to see."""
        small.opt_out("c", "d")
        with small.run(tmp_path) as run:
            run.filter(rows("a", "b", "c", "a"))
            small.later(10)
            small.opt_out("a")  # after it was read: that stands
            small.later(10)
            run.filter(rows("a", "b"))
        statement = read_certificate(run.folder.read(CERTIFICATE_FILE)).statement
        assert statement == run.certificate
        assert (statement["rows_seen"], statement["rows_read"], statement["members_read"]) == (
            6,
            4,
            2,
        )
        assert statement["counts"] == {"DEFAULT_ON": 4, "OPTED_OUT": 2}
        assert statement["disjoint"]["holds"]
        assert statement["exclusions"]["members"] == 3
        assert (statement["started_at"], statement["ended_at"]) == (
            small.now - 20_000_000,
            small.now,
        )
        assert "it proves what the loader read" in statement["limit"]
        assert json.loads(run.folder.read(END_FILE))["state"] == "COMPLETED"

    def test_a_run_that_read_nothing_has_a_certificate_too(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A shard on which everybody opted out is no error."""
        with small.run(tmp_path) as run:
            assert list(run.filter([])) == []
        assert run.certificate is not None
        assert (run.certificate["rows_read"], run.certificate["reads"]["first_read_at"]) == (
            0,
            None,
        )

    def test_a_run_that_cannot_prove_freshness_at_its_end_has_no_certificate(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A certificate with a token that was never reached would state something unknown."""
        with pytest.raises(ConsentStale), small.run(tmp_path) as run:  # noqa: PT012
            run.filter(rows("a"))
            small.later(60, is_fresh=False)
        assert run.state == "ABORTED"
        assert not run.folder.exists(CERTIFICATE_FILE)


def _file(run: Any, name: str) -> pa.BufferReader:
    return pa.BufferReader(run.folder.read(name))
