"""The search for who was read where: before the exclusion bound the run, or after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.strategies import lift, pause
from tests.unit.trainer.runs.conftest import SmallWorld

from consentry.domain.controls import Reach
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.values import MemberId, Micros, Reason
from consentry.trainer.runs import ConsentStale, RunStore, TrainingRun
from consentry.trainer.runs.reach import (
    AFTER,
    BEFORE,
    BOTH,
    NOT_EXCLUDED,
    RunReads,
    reach_of_member,
    reach_of_pause,
)
from consentry.trainer.runs.store import END_FILE, START_FILE

SECOND = 1_000_000


def batch(*members: str, place: str = "US") -> pa.Table:
    """Rows of members."""
    return pa.table(
        {"member_id": pa.array(members, pa.string()), "jurisdiction": [place] * len(members)}
    )


def member(run: TrainingRun, world: SmallWorld, name: str) -> RunReads | None:
    """The reads of a member in a run, by what a world knows."""
    return reach_of_member(run.folder, world.snapshot, MemberId(name), now=world.now)


def of_pause(run: TrainingRun, world: SmallWorld) -> RunReads | None:
    """The reads of those whom pause-1 covers, by what a world knows."""
    return reach_of_pause(run.folder, world.snapshot, "pause-1", now=world.now)


class TestMember:
    """One member's reads."""

    def test_reads_before_the_opt_out_stand(self, small: SmallWorld, tmp_path: Path) -> None:
        """An opt-out binds from then on: earlier reads were lawful, and are reported as such."""
        with small.run(tmp_path) as run:
            begun = small.now
            run.filter(batch("a", "a", "b"))
            small.later(1)
            run.filter(batch("a"))
        read_until = small.now
        small.later(60)
        small.opt_out("a")
        out = small.now
        small.later(60)
        report = member(run, small, "a")
        assert report is not None
        assert (report.when, report.rows, report.members, report.state) == (
            BEFORE,
            3,
            1,
            "COMPLETED",
        )
        assert (report.first_read_at, report.last_read_at) == (begun, read_until)
        assert (report.excluded_now, report.excluded_since) == ("OPTED_OUT", out)
        assert not report.unclear
        other = member(run, small, "b")
        assert other is not None
        assert other.when == NOT_EXCLUDED
        assert member(run, small, "never") is None

    def test_reads_after_it_are_a_violation(self, small: SmallWorld, tmp_path: Path) -> None:
        """A run by a client that had lost the opt-out."""
        true = SmallWorld()
        with small.run(tmp_path) as run:
            run.filter(batch("a", "b"))
            small.later(10)
            true.now = small.now
            true.opt_out("a")
            true.opt_out(
                "b",
                recorded_at=Micros(small.now - 60 * SECOND),
                effective_at=Micros(small.now - 60 * SECOND),
            )
            small.later(10)
            run.filter(batch("a", "b"))
        true.later(20)
        both, after = member(run, true, "a"), member(run, true, "b")
        assert both is not None
        assert after is not None
        assert (both.when, both.violations) == (BOTH, {Reason.OPTED_OUT: 1})
        assert (after.when, after.violations) == (AFTER, {Reason.OPTED_OUT: 1})

    def test_a_bundle_older_than_the_reads_leaves_it_unclear(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """An opt-out that the bundle does not have would count as none."""
        old = SmallWorld()
        small.later(60)
        with small.run(tmp_path) as run:
            run.filter(batch("a"))
        report = member(run, old, "a")
        assert report is not None
        assert "newer bundle" in report.unclear[0]

    def test_the_reads_of_an_aborted_run_are_found(self, small: SmallWorld, tmp_path: Path) -> None:
        """A model may have been trained on half of the data."""
        with pytest.raises(ConsentStale), small.run(tmp_path) as run:  # noqa: PT012
            run.filter(batch("a"))
            small.later(60, is_fresh=False)
            run.filter(batch("a"))
        small.prove()
        report = member(run, small, "a")
        assert report is not None
        assert (report.state, report.rows, report.unclear) == ("ABORTED", 1, [])

    def test_a_run_that_goes_on_or_was_killed_is_unclear(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Its last second may not be recorded: *not read* would be a guess."""
        with small.run(tmp_path, spool_seconds=1) as run:
            report = member(run, small, "a")
            assert report is not None
            assert (report.state, report.rows) == ("UNFINISHED", 0)
            assert "1000000 rows of its last 1 s" in report.unclear[0]

    @pytest.mark.parametrize("lost", ["missing", "shorter", "uncertified", "tampered"])
    def test_a_completed_run_without_all_its_reads_is_unclear(
        self, small: SmallWorld, tmp_path: Path, lost: str
    ) -> None:
        """Whoever deletes the record of reads would get the answer *never read*."""
        with small.run(tmp_path) as run:
            run.filter(batch("a", "b"))
        small.control(pause(1, "HK", on=0, effective_at=small.now, recorded_at=small.now))
        small.prove()
        assert (member(run, small, "c"), of_pause(run, small)) == (None, None)
        place = tmp_path / run.run_id
        reads, certificate = place / "reads.parquet", place / "certificate.json"
        if lost == "missing":
            reads.unlink()
        elif lost == "shorter":
            pq.write_table(pq.read_table(reads).slice(0, 1), reads)
        elif lost == "uncertified":
            certificate.unlink()
        else:
            certificate.write_bytes(certificate.read_bytes().replace(b'"leaves":2', b'"leaves":1'))
        for report in (member(run, small, "c"), of_pause(run, small)):
            assert report is not None
            assert (report.state, report.rows, len(report.unclear)) == ("COMPLETED", 0, 1)

    def test_a_damaged_store_is_reported(self, small: SmallWorld, tmp_path: Path) -> None:
        """A file that cannot be read may hold reads that nobody finds."""
        with small.run(tmp_path) as run:
            run.filter(batch("a"))
        place = tmp_path / run.run_id
        for name, content in (
            ("reads.parquet", b"PAR1"),
            (END_FILE, b"{"),
            (START_FILE, b'{"format":"other"}'),
        ):
            (place / name).write_bytes(content)
            with pytest.raises(Unavailable):
                member(run, small, "a")
        with pytest.raises(Unavailable):
            RunStore(str(tmp_path / "nowhere")).runs()


class TestPause:
    """Those whom a pause covers."""

    def test_reads_of_rows_and_of_members_from_the_jurisdiction_are_found(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A regulator asks which models saw the data of their residents."""
        small.live("HK", "resident", "mover")
        small.live("US", "mover")
        with small.run(tmp_path) as run:
            run.filter(batch("resident", "mover", "a"))
            run.filter(batch("row", place="HK"))
        small.later(60)
        small.control(pause(1, "HK", on=0, effective_at=small.now, recorded_at=small.now))
        imposed = small.now
        small.later(60)
        report = of_pause(run, small)
        assert report is not None
        assert (report.members, report.rows, report.when, report.excluded_since) == (
            2,
            2,
            BEFORE,
            imposed,
        )
        assert report.excluded_now == "PAUSED"
        small.control(lift(2, on=0, effective_at=small.now, recorded_at=small.now))
        lifted = of_pause(run, small)
        assert lifted is not None
        assert lifted.excluded_now == ""

    def test_reads_after_it_are_a_violation_unless_it_was_lifted(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Only what was read while it was in force."""
        true = SmallWorld()
        imposed = Micros(small.now - 60 * SECOND)
        true.control(pause(1, "HK", on=0, effective_at=imposed, recorded_at=imposed))
        with small.run(tmp_path) as run:
            run.filter(batch("a", "b", place="HK"))
            run.filter(batch("a"))
        true.later(10)
        report = of_pause(run, true)
        assert report is not None
        assert (report.when, report.violations, report.members) == (AFTER, {Reason.PAUSED: 2}, 2)
        lifted = Micros(small.now - 30 * SECOND)
        true.control(lift(2, on=0, effective_at=lifted, recorded_at=lifted))
        after = of_pause(run, true)
        assert after is not None
        assert not after.violations

    def test_a_pause_of_another_purpose_or_category_does_not_cover(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Reads that the pause does not cover are in no report."""
        with small.run(tmp_path) as run:
            run.filter(batch("a", place="HK").append_column("category", pa.array(["posts"])))
        small.control(pause(1, "HK", on=0, purposes=("ads",)))
        assert of_pause(run, small) is None
        small.control(pause(2, "HK", on=0, version=2, categories=("messages",)))
        assert of_pause(run, small) is None
        small.control(pause(3, "HK", on=0, version=3, categories=("posts",)))
        assert of_pause(run, small) is not None

    def test_a_pause_that_does_not_exist_is_refused(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A misspelt name would find nothing, and be taken for good news."""
        with small.run(tmp_path) as run:
            run.filter(batch("a"))
        with pytest.raises(InvalidInput):
            of_pause(run, small)

    def test_its_reach_is_known(self) -> None:
        """A pause that reaches back demands a purge."""
        assert pause(1, "HK", on=0, reach=Reach.PRIOR_AND_FUTURE).requires_purge


KILLED = """
    import sys
    sys.path.insert(0, {root!r})
    import pyarrow as pa
    from tests.unit.trainer.runs.conftest import SmallWorld
    small = SmallWorld()
    with small.run({store!r}, spool_seconds={spool}) as run:
        number = 0
        for kept in run.filter(pa.table({{"member_id": [f"m{{n}}"], "jurisdiction": ["US"]}}) for n in range(10**9)):
            small.later(0.1)
            print(number, flush=True)
            number += 1
"""


@pytest.mark.parametrize("spool", [0, 1])
def test_a_killed_run_can_be_searched_but_for_its_tail(
    small: SmallWorld, tmp_path: Path, spool: int
) -> None:
    """After kill -9 or a power cut, members still ask whether their data was read before it."""
    program = textwrap.dedent(KILLED).format(
        root=str(Path(__file__).parents[4]), store=str(tmp_path), spool=spool
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = -1
    while last < 45:
        line = child.stdout.readline()
        last = int(line) if line.strip().isdigit() else last
    os.kill(child.pid, signal.SIGKILL)
    for line in child.stdout:
        last = int(line) if line.strip().isdigit() else last
    child.wait(10)
    child.stdout.close()
    (run_id,) = RunStore(str(tmp_path)).runs()
    folder = RunStore(str(tmp_path)).folder(run_id)
    assert not folder.exists("certificate.json")
    small.later(100)
    was_read = []
    for number in range(last + 1):
        report = reach_of_member(folder, small.snapshot, MemberId(f"m{number}"), now=small.now)
        assert report is not None
        assert report.unclear
        was_read.append(bool(report.rows))
    missing = was_read.index(False) if False in was_read else len(was_read)
    assert not any(was_read[missing:])
    # A batch is a tenth of a second: no more than the last second, or nothing, is missing.
    assert last + 1 - missing <= spool * 11
