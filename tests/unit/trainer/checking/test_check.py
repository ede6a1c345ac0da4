"""Checks of data files: every format gives the same answer, and what cannot be told is never called
clean.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from tests.strategies import PURPOSE, chose, day, folded, moved, policy, terms

from consentry.domain.controls import Regime
from consentry.domain.errors import InvalidInput
from consentry.domain.events import MemberEvent
from consentry.domain.values import Choice, MemberId, Micros, Reason
from consentry.trainer.checking.check import EXIT_STATUS, Check, CheckOutcome, CheckReport
from consentry.trainer.checking.data_files import BATCH_ROWS, find_files
from consentry.trainer.deciding.columns import ColumnSpec
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

ROWS_OF_ALL = {
    "member_id": ["anna", "bert", "7", None, "a b", "nobody"],
    "jurisdiction": ["US", "US", "US", "US", "US", None],
}
COUNTS = {"DEFAULT_ON": 2, "OPTED_OUT": 1, "QUARANTINED": 2, "JURISDICTION_UNKNOWN": 1}


@pytest.fixture
def known(snapshot: Snapshot) -> Snapshot:
    """Anna, Bert who opted out, and 7, whose id is a number in many a data set."""

    def record(member: str, *events: MemberEvent) -> None:
        found = folded(*events)
        assert found is not None
        key, value = (
            member.encode(),
            write_record(replace(found, member=MemberId(member)), frame(1)),
        )
        snapshot.apply_records(partition_of(key, snapshot.partitions), [key], [value])

    record("anna", moved("US", 1, on=1))
    record("bert", moved("US", 1, on=1), chose(Choice.OPT_OUT, 2, on=2))
    record("7", moved("US", 1, on=1))
    for partition in range(snapshot.partitions):
        snapshot.apply_frontier(Frontier(partition, "life", day(29), 0, 0, 0, False))
    snapshot.settle_frontiers()
    return snapshot


def check(
    snapshot: Snapshot,
    *paths: Path,
    stale_after: float = float("inf"),
    show: int = 0,
    **columns: Any,
) -> CheckReport:
    """Check these paths as of day 30."""
    decider = SnapshotDecider(
        snapshot, at=day(30), clock=lambda: day(30), stale_after_seconds=stale_after
    )
    return Check(decider, purpose=PURPOSE, show_max=show).files(
        find_files(paths), ColumnSpec(**columns)
    )


def _pause_hong_kong(snapshot: Snapshot) -> None:
    snapshot.apply_control(policy(901, terms("HK", regime=Regime.NOT_OFFERED), on=1))


def _codes(report: CheckReport) -> list[str | None]:
    return [None if file.problem is None else file.problem.code for file in report.files]


def _lines(table: pa.Table, path: Path) -> None:
    rows = table.to_pylist()
    path.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows)
    )


def _stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def _zipped(write: Callable[[pa.Table, Path], None]) -> Callable[[pa.Table, Path], None]:
    def both(table: pa.Table, path: Path) -> None:
        plain = path.with_suffix("")
        write(table, plain)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return both


def _csv(table: pa.Table, path: Path) -> None:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter=delimiter))


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": lambda table, path: pq.write_table(table, path, row_group_size=2),
    ".csv": _csv,
    ".tsv": _csv,
    ".csv.gz": _zipped(_csv),
    ".jsonl": _lines,
    ".ndjson.gz": _zipped(_lines),
    ".arrow": lambda table, path: feather.write_feather(table, str(path)),
    ".arrows": _stream,
}


class TestFormats:
    @pytest.mark.parametrize("suffix", WRITERS)
    def test_every_format_gives_the_same_counts(
        self, known: Snapshot, tmp_path: Path, suffix: str
    ) -> None:
        """A violation that only shows in Parquet passes as CSV."""
        table = pa.table({**ROWS_OF_ALL, "text": ['say "hello"\nthere', "b", "c", "d", "e", "f"]})
        WRITERS[suffix](table, tmp_path / f"posts{suffix}")

        report = check(known, tmp_path)

        assert report.as_data()["counts"] == COUNTS
        assert report.outcome is CheckOutcome.VIOLATIONS
        assert report.as_data()["violations"] == 4

    @pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
    def test_ids_that_are_numbers_are_ids(
        self, known: Snapshot, tmp_path: Path, suffix: str
    ) -> None:
        """Half of all data sets have integers: as unknown members they would all be violations."""
        WRITERS[suffix](pa.table({"member_id": [7, 8]}), tmp_path / f"posts{suffix}")
        assert check(known, tmp_path).as_data()["counts"] == {
            "DEFAULT_ON": 1,
            "JURISDICTION_UNKNOWN": 1,
        }

    def test_namibia_is_no_missing_value_and_digits_keep_their_zeros(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """What guesses types reads NA as nothing and 007 as 7: another place, and another
        member.
        """
        known.apply_control(policy(901, terms("NA", regime=Regime.NOT_OFFERED), on=1))
        (tmp_path / "a.csv").write_text("member_id,jurisdiction\nanna,NA\n007,\nanna,\n")
        counts = {"NOT_OFFERED": 1, "DEFAULT_ON": 1, "JURISDICTION_UNKNOWN": 1}
        assert check(known, tmp_path).as_data()["counts"] == counts
        assert known.decide(
            MemberId("007"), None, purpose=PURPOSE, at=day(30), known_at=day(30), stale_detail=""
        ).reason

    def test_many_batches_are_all_read_and_rows_keep_their_numbers(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """The one violation may be in the last batch."""
        members = ["anna"] * (BATCH_ROWS + 10) + ["bert"]
        for suffix in (".parquet", ".jsonl", ".arrows", ".csv"):
            path = tmp_path / f"posts{suffix}"
            WRITERS[suffix](pa.table({"member_id": members}), path)
            report = check(known, path, show=5)
            assert report.as_data()["counts"] == {"DEFAULT_ON": BATCH_ROWS + 10, "OPTED_OUT": 1}
            assert [(one.member, one.reason, one.row) for one in report.shown] == [
                ("bert", Reason.OPTED_OUT, BATCH_ROWS + 10)
            ]

    def test_directories_may_say_what_the_files_do_not(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """A data set by jurisdiction has the column in its paths alone: left out, the stricter
        answer is lost.
        """
        known.apply_control(policy(901, terms("HK", regime=Regime.NOT_OFFERED), on=1))
        for place in ("jurisdiction=HK", "jurisdiction=__HIVE_DEFAULT_PARTITION__"):
            for suffix in (".parquet", ".jsonl", ".csv", ".arrow"):
                (tmp_path / place).mkdir(exist_ok=True)
                WRITERS[suffix](
                    pa.table({"member_id": ["anna"]}), tmp_path / place / f"part{suffix}"
                )
        assert check(known, tmp_path).as_data()["counts"] == {"NOT_OFFERED": 4, "DEFAULT_ON": 4}

    def test_json_lines_may_begin_to_name_a_column_at_any_row(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """The first rows of a crawl may have no jurisdiction: the paused place of a later one was
        not looked at.
        """
        _pause_hong_kong(known)
        (tmp_path / "a.jsonl").write_text(
            '{"member_id":"anna"}\n' * BATCH_ROWS
            + '{"member_id":"anna","jurisdiction":"HK"}\n{"member_id":"anna"}\n'
        )
        assert check(known, tmp_path).as_data()["counts"] == {
            "DEFAULT_ON": BATCH_ROWS + 1,
            "NOT_OFFERED": 1,
        }

    @pytest.mark.parametrize("suffix", WRITERS)
    def test_rows_that_do_not_say_it_themselves_are_what_their_directory_says(
        self, known: Snapshot, tmp_path: Path, suffix: str
    ) -> None:
        """One row with a jurisdiction of its own took it from all others of the file."""
        _pause_hong_kong(known)
        (tmp_path / "jurisdiction=HK").mkdir()
        table = pa.table({"member_id": ["anna", "anna"], "jurisdiction": [None, "HK"]})
        WRITERS[suffix](table, tmp_path / "jurisdiction=HK" / f"a{suffix}")
        assert check(known, tmp_path).as_data()["counts"] == {"NOT_OFFERED": 2}

    def test_times_of_collection_are_read_as_each_format_has_them(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Rows from before the cut-off are not offered."""
        known.apply_control(policy(901, terms("US", collected_from=day(5)), on=1))
        moments = [day(4), day(6), None]
        iso = ["2024-01-05T00:00:00Z", "2024-01-07T00:00:00Z", None]
        pq.write_table(
            pa.table(
                {
                    "member_id": ["anna"] * 3,
                    "collected_at": pa.array(moments, pa.timestamp("us", "UTC")),
                }
            ),
            tmp_path / "a.parquet",
        )
        _lines(pa.table({"member_id": ["anna"] * 3, "collected_at": iso}), tmp_path / "b.jsonl")
        (tmp_path / "c.csv").write_text(
            "member_id,collected_at\n" + "".join(f"anna,{text or ''}\n" for text in iso)
        )
        report = check(known, tmp_path)
        assert [file.counts for file in report.files] == [
            {Reason.DEFAULT_ON: 1, Reason.OUTSIDE_TERMS: 2}
        ] * 3

    def test_one_column_may_be_named_after_another(self, known: Snapshot, tmp_path: Path) -> None:
        """Nobody renames the columns of a terabyte."""
        _csv(pa.table({"author": ["bert"], "land": ["US"]}), tmp_path / "a.csv")
        report = check(known, tmp_path, member="author", jurisdiction="land")
        assert report.as_data()["counts"] == {"OPTED_OUT": 1}


class TestOutcomes:
    def test_clean_is_zero_violations_one_and_cannot_tell_two(self) -> None:
        """CI goes by nothing else."""
        assert EXIT_STATUS == {
            CheckOutcome.CLEAN: 0,
            CheckOutcome.VIOLATIONS: 1,
            CheckOutcome.CANNOT_TELL: 2,
        }

    def test_a_clean_file_is_clean_and_an_empty_one_too(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """If nothing could pass, the check would be turned off."""
        for suffix, write in WRITERS.items():
            write(pa.table({"member_id": pa.array(["anna"])}), tmp_path / f"a{suffix}")
        (tmp_path / "empty.csv").write_text("member_id\n")
        pq.write_table(
            pa.table({"member_id": pa.array([], pa.string())}), tmp_path / "empty.parquet"
        )
        report = check(known, tmp_path)
        assert [
            (file.name, str(file.problem))
            for file in report.files
            if file.outcome is not CheckOutcome.CLEAN
        ] == []
        assert report.outcome is CheckOutcome.CLEAN

    def test_nothing_looked_at_is_not_clean(self, known: Snapshot, tmp_path: Path) -> None:
        """A wrong path would pass every time."""
        assert check(known, tmp_path).outcome is CheckOutcome.CANNOT_TELL
        with pytest.raises(InvalidInput):
            check(known, tmp_path / "none")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.parquet", b"PAR1 is not enough"),
            ("a.parquet", b""),
            ("a.arrow", b"ARROW1\0\0 and then nothing"),
            ("a.arrows", b"\xff\xff\xff\xff\x10\0\0\0"),
            ("a.jsonl", b'{"member_id": "anna"}\n{"member_id": "an'),
            ("a.jsonl", b"[1]\n"),
            ("a.csv", b'member_id\n"anna\n'),
            ("a.csv", b"member_id,text\nanna,a,b\n"),
            ("a.csv", b""),
            ("a.csv.gz", gzip.compress(b"member_id\nanna\n" * 1000)[:-20]),
            ("a.csv", b"member_id,member_id\nanna,bert\n"),
            ("a.csv", b"member_id\n\xff\xfe\n"),
            ("a.txt", b"member_id\nanna\n"),
            ("noname", b"member_id\nanna\n"),
        ],
    )
    def test_what_cannot_be_read_to_its_end_cannot_be_told(
        self, known: Snapshot, tmp_path: Path, name: str, content: bytes
    ) -> None:
        """The half that was read may be the clean one."""
        (tmp_path / name).write_bytes(content)
        report = check(known, tmp_path)
        assert report.outcome is not CheckOutcome.CLEAN
        problem = report.files[0].problem
        assert problem is None or (problem.code.startswith("input.") and "anna" not in str(problem))
        assert problem is not None or report.outcome is CheckOutcome.VIOLATIONS

    def test_a_missing_column_lists_those_that_are_there(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Whoever mistypes a column needs the right name, not a traceback."""
        for suffix, write in WRITERS.items():
            write(pa.table({"author": ["anna"], "text": ["x"]}), tmp_path / f"a{suffix}")
        report = check(known, tmp_path)
        assert report.outcome is CheckOutcome.CANNOT_TELL
        for file in report.files:
            assert file.problem is not None
            assert file.problem.code == "input.column"
            assert "'author', 'text'" in file.problem.message

    @pytest.mark.parametrize("suffix", WRITERS)
    @pytest.mark.parametrize("place", ["jurisdiction=HK", "member_id=bert"])
    def test_a_column_that_says_otherwise_than_its_directory_cannot_be_told(
        self, known: Snapshot, tmp_path: Path, place: str, suffix: str
    ) -> None:
        """Readers differ in which they believe: what was decided as US may be trained on as HK."""
        (tmp_path / place).mkdir()
        table = pa.table({"member_id": ["anna"], "jurisdiction": ["US"]})
        WRITERS[suffix](table, tmp_path / place / f"a{suffix}")
        report = check(known, tmp_path)
        assert report.outcome is CheckOutcome.CANNOT_TELL
        assert _codes(report) == ["input.partition"]

    def test_what_is_no_id_does_not_take_that_of_its_directory(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """A row that says nonsense of its member is not one that says nothing."""
        (tmp_path / "member_id=anna").mkdir()
        (tmp_path / "member_id=anna" / "a.jsonl").write_text('{"member_id": true}\n')
        assert _codes(check(known, tmp_path)) == ["input.partition"]

    @pytest.mark.parametrize("suffix", WRITERS)
    @pytest.mark.parametrize("name", ["Jurisdiction", "CATEGORY", " collected_at", "Member_Id"])
    def test_a_name_that_is_ours_but_for_its_case_cannot_be_told(
        self, known: Snapshot, tmp_path: Path, name: str, suffix: str
    ) -> None:
        """A paused place under `Jurisdiction` was ignored without a word."""
        WRITERS[suffix](pa.table({"member_id": ["anna"], name: ["HK"]}), tmp_path / f"a{suffix}")
        report = check(known, tmp_path)
        assert report.outcome is CheckOutcome.CANNOT_TELL
        assert _codes(report) == ["input.column"]
        assert repr(name) in str(report.files[0].problem)

    def test_a_name_in_another_case_may_be_asked_for_but_not_beside_its_like(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Whoever is told to name the column must get an answer then; of two that are alike one
        would be a guess.
        """
        _pause_hong_kong(known)
        table = pa.table({"member_id": ["anna"], "Jurisdiction": ["HK"]})
        pq.write_table(table, tmp_path / "a.parquet")
        assert check(known, tmp_path, jurisdiction="Jurisdiction").as_data()["counts"] == {
            "NOT_OFFERED": 1
        }
        pq.write_table(
            table.append_column("jurisdiction", pa.array(["US"])), tmp_path / "a.parquet"
        )
        assert _codes(check(known, tmp_path, jurisdiction="Jurisdiction")) == ["input.column"]

    def test_a_name_in_another_case_may_stand_in_any_row_or_directory(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """What the first rows do not have is looked for in the later ones too."""
        (tmp_path / "Jurisdiction=HK").mkdir()
        (tmp_path / "Jurisdiction=HK" / "a.csv").write_text("member_id\nanna\n")
        (tmp_path / "b.jsonl").write_text(
            '{"member_id":"anna"}\n' * BATCH_ROWS + '{"member_id":"anna","Jurisdiction":"HK"}\n'
        )
        assert _codes(check(known, tmp_path)) == ["input.column"] * 2

    def test_a_key_that_is_there_twice_cannot_be_told(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Readers differ in which of both they take: Bert's row was decided as Anna's."""
        (tmp_path / "a.jsonl").write_text('{"member_id":"bert","member_id":"anna"}\n')
        report = check(known, tmp_path)
        assert report.outcome is CheckOutcome.CANNOT_TELL
        assert _codes(report) == ["input.json"]

    def test_what_follows_the_end_of_a_stream_cannot_be_told(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Streams that were put one after the other: only the first was read."""
        for member in ("anna", "bert"):
            _stream(pa.table({"member_id": [member]}), tmp_path / f"{member}.arrows")
        first, second = tmp_path / "anna.arrows", tmp_path / "bert.arrows"
        first.write_bytes(first.read_bytes() + second.read_bytes())
        report = check(known, first)
        assert report.outcome is CheckOutcome.CANNOT_TELL
        assert _codes(report) == ["input.unreadable"]

    def test_the_other_files_are_checked_all_the_same_and_a_violation_stands(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """One broken file must not hide who is in the others."""
        (tmp_path / "a.parquet").write_bytes(b"broken")
        (tmp_path / "b.csv").write_text("member_id\nbert\n")
        report = check(known, tmp_path)
        assert [file.outcome for file in report.files] == [
            CheckOutcome.CANNOT_TELL,
            CheckOutcome.VIOLATIONS,
        ]
        assert report.outcome is CheckOutcome.VIOLATIONS

    def test_what_is_stale_cannot_be_told_and_no_more_is_read(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Rows that are STALE are no violations: nobody would know whom to take out."""
        for name in ("a.csv", "b.csv"):
            (tmp_path / name).write_text("member_id\nbert\n")
        report = check(known, tmp_path, stale_after=60)
        assert report.outcome is CheckOutcome.CANNOT_TELL
        assert len(report.files) == 1
        assert "old" in report.stale_detail

    def test_a_check_has_a_time_and_says_when_it_was_not_enough(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """A hook that never answers blocks every commit."""
        (tmp_path / "a.csv").write_text("member_id\nanna\n")
        decider = SnapshotDecider(known, at=day(30))
        report = Check(decider, purpose=PURPOSE, seconds_max=-1).files(
            find_files([tmp_path]), ColumnSpec()
        )
        assert report.outcome is CheckOutcome.CANNOT_TELL
        assert report.files[0].problem is not None
        assert report.files[0].problem.code == "check.time"


class TestMembers:
    def test_members_are_named_only_when_asked_for_each_once_and_no_more_than_asked(
        self, known: Snapshot, tmp_path: Path
    ) -> None:
        """Logs of CI are read by many who may not know who opted out."""
        (tmp_path / "a.csv").write_text("member_id\nanna\nbert\nbert\nx y\nnobody\n")
        assert "bert" not in json.dumps(check(known, tmp_path).as_data())
        shown = check(known, tmp_path, show=2).as_data()["members"]
        assert [(one["member"], one["row"]) for one in shown] == [("bert", 1), ("x y", 3)]


class TestFinding:
    def test_files_are_found_below_directories_and_what_is_no_data_is_not(
        self, tmp_path: Path
    ) -> None:
        """_SUCCESS, .crc and logs of tables stand beside the data everywhere."""
        for name in (
            "b/c.csv",
            "a.csv",
            "_SUCCESS",
            ".a.csv.crc",
            "_delta_log/0.json",
            "README.md",
            ".git/x",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert _names(find_files([tmp_path], ignored=["*.md"]), tmp_path) == ["a.csv", "b/c.csv"]
        assert "README.md" in _names(find_files([tmp_path]), tmp_path), (
            "what is not known is not skipped unsaid"
        )

    def test_a_partition_is_data_whatever_its_name_begins_with(self, tmp_path: Path) -> None:
        """Readers and the purge take `_name=value` for data: what they read must have been
        checked.
        """
        for name in ("_x=1/a.csv", "_x/b.csv", ".x=1/c.csv"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        assert _names(find_files([tmp_path]), tmp_path) == ["_x=1/a.csv"]

    def test_links_are_followed_but_not_round_in_circles(self, tmp_path: Path) -> None:
        """A data set of links would be clean because nothing of it was read."""
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a.csv").touch()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "part").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "round").symlink_to(tmp_path / "set")
        assert _names(find_files([tmp_path / "set"]), tmp_path) == ["set/part/a.csv"]


def _names(files: Iterable[Any], root: Path) -> list[str]:
    return [str(file.path.relative_to(root)) for file in files]


def test_a_token_cannot_be_reached_by_what_does_not_move(known: Snapshot, tmp_path: Path) -> None:
    """Whoever asks for at least what they just saw must not get less."""
    (tmp_path / "a.csv").write_text("member_id\nanna\n")
    found = Check(SnapshotDecider(known, at=Micros(0)), purpose=PURPOSE, at_least="token").files(
        find_files([tmp_path]), ColumnSpec()
    )
    assert found.outcome is CheckOutcome.CANNOT_TELL
