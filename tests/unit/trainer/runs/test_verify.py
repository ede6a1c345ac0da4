"""Every read decided again: each violation is found, and no fact from later condemns a read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import PURPOSE, lift, pause, policy, terms
from tests.unit.trainer.runs.conftest import SmallWorld

from consentry.bundles.keys import PublicKeys, SigningKey
from consentry.domain.controls import OptIns, Regime
from consentry.domain.values import Micros, Reason, parse_member_id
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs import TrainingRun
from consentry.trainer.runs import verify as verifying
from consentry.trainer.runs.certificates.reader import read_certificate
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct_reads
from consentry.trainer.runs.exclusions import excluded_members
from consentry.trainer.runs.read_files import open_read_files, read_pieces
from consentry.trainer.runs.reexamine import (
    CANNOT_TELL,
    FINE,
    VIOLATED,
    ReadOutcomes,
    reexamine,
    row_of,
)
from consentry.trainer.runs.store import CERTIFICATE_FILE, READS_FILE
from consentry.trainer.runs.verify import CertificateReport, verify
from consentry.wire.freshness import FOREVER

SECOND = 1_000_000
BOUND = Micros(5 * SECOND)


def batch(*members: str) -> pa.Table:
    """Rows from the US."""
    return pa.table(
        {"member_id": pa.array(members, pa.string()), "jurisdiction": ["US"] * len(members)}
    )


def reads(*spans: tuple[str, int, int], place: str | None = "US") -> pa.Table:
    """Reads of members, from a first to a last time."""
    rows = [
        {
            "member_id": member,
            "jurisdiction": place,
            "shard": "",
            "first_read_at": first,
            "last_read_at": last,
            "rows": 1,
        }
        for member, first, last in spans
    ]
    return distinct_reads(pa.Table.from_pylist(rows, schema=SCHEMA))


def outcome(
    small: SmallWorld, member: str, first: int, last: int | None = None, **more: Any
) -> int:
    """The outcome of one read."""
    examined = reexamine(
        small.snapshot, reads((member, first, last or first), **more), purpose=PURPOSE, bound=BOUND
    )
    return int(examined.outcomes[0])


def verified(run: TrainingRun, world: SmallWorld | None, **more: Any) -> CertificateReport:
    """The report on a finished run's certificate, by what a world knows."""
    certificate = read_certificate(run.folder.read(CERTIFICATE_FILE), more.pop("keys", None))
    with open_read_files(run.folder, [READS_FILE]) as (file,):
        return verify(
            certificate,
            more.pop("reads", read_pieces(file)),
            world.snapshot if world else None,
            **more,
        )


class TestReexamine:
    """One read, and what the record and the controls say of its time."""

    def test_an_opt_out_counts_from_the_time_at_which_the_run_had_to_know_of_it(
        self, small: SmallWorld
    ) -> None:
        """An opt-out that no run could know of is no violation; from the bound on it is one."""
        out = small.now
        small.opt_out("a")
        assert outcome(small, "a", out - SECOND) == FINE
        assert outcome(small, "a", out + BOUND - 1) == FINE
        assert outcome(small, "a", out + BOUND) == VIOLATED
        assert outcome(small, "a", out - SECOND, out + BOUND) == VIOLATED

    def test_an_opt_out_that_was_recorded_late_does_not_condemn_earlier_reads(
        self, small: SmallWorld
    ) -> None:
        """Hong Kong: effective on the 11th, recorded on the 14th; nobody knew of it on the 12th."""
        recorded = small.now
        small.opt_out("a", effective_at=recorded - 3 * 86_400 * SECOND)
        assert outcome(small, "a", recorded - 86_400 * SECOND) == FINE
        assert outcome(small, "a", recorded + BOUND) == VIOLATED

    def test_an_opt_in_may_be_used_as_soon_as_the_run_may_know_of_it(
        self, small: SmallWorld
    ) -> None:
        """A run that was quicker than its bound did nothing wrong."""
        small.control(policy(901, terms("*", regime=Regime.OPT_IN), on=0))
        recorded = small.now
        small.opt_in("a")
        assert outcome(small, "a", recorded - 1) == VIOLATED
        assert outcome(small, "a", recorded) == FINE

    def test_a_read_is_fine_if_any_moment_of_the_span_allows_it(self, small: SmallWorld) -> None:
        """In, then out again, both within the bound: a read in between was allowed."""
        small.control(policy(901, terms("*", regime=Regime.OPT_IN), on=0))
        recorded = small.now
        small.opt_in("a")
        small.later(1)
        small.opt_out("a")
        assert outcome(small, "a", recorded + SECOND // 2) == FINE
        assert outcome(small, "a", recorded + 2 * SECOND) == FINE
        assert outcome(small, "a", recorded + BOUND + SECOND) == VIOLATED

    def test_an_exclusion_between_the_first_and_the_last_read_is_unclear(
        self, small: SmallWorld
    ) -> None:
        """The reads hold the first and the last time.

        A certificate must claim no more than they show.
        """
        begun = small.now
        small.later(10)
        small.opt_out("a")
        small.later(10)
        small.opt_in("a")
        assert outcome(small, "a", begun, small.now + BOUND) == CANNOT_TELL
        assert outcome(small, "b", begun, small.now + BOUND) == FINE

    def test_a_pause_between_the_first_and_the_last_read_is_unclear(
        self, small: SmallWorld
    ) -> None:
        """As above, for a use instead of a member."""
        begun = small.now
        imposed = small.later(10)
        small.control(pause(1, "HK", on=0, effective_at=imposed, recorded_at=imposed))
        lifted = small.later(60)
        small.control(lift(2, on=0, effective_at=lifted, recorded_at=lifted, opt_ins=OptIns.KEEP))
        ended = small.later(60)
        assert outcome(small, "a", begun, ended, place="HK") == CANNOT_TELL
        assert outcome(small, "a", begun, ended, place="US") == FINE
        assert outcome(small, "a", lifted, ended, place="HK") == FINE
        assert outcome(small, "a", imposed + BOUND, place="HK") == VIOLATED
        assert outcome(small, "a", begun, imposed + BOUND, place="HK") == VIOLATED

    def test_a_quarantine_without_a_date_is_unclear(self, small: SmallWorld) -> None:
        """A record that is damaged today says nothing about last month."""
        small.live("US", "a")
        key = b"a"
        small.snapshot.apply_records(
            (small.snapshot.partitions - 1), [key], [small.snapshot.records[key]]
        )
        small.snapshot.apply_records(0, [key], [small.snapshot.records[key]])
        assert small.snapshot.is_quarantined(key)
        assert outcome(small, "a", small.now) == CANNOT_TELL

    def test_a_read_of_a_malformed_id_is_a_violation(self, small: SmallWorld) -> None:
        """A file of reads may come from anybody."""
        assert outcome(small, "no member", small.now) == VIOLATED

    @given(data=st.data())
    def test_the_answers_are_those_of_deciding_each_read_by_itself(
        self, data: st.DataObject
    ) -> None:
        """The fast way is worth nothing unless it gives the same answers."""
        small = SmallWorld()
        begun = small.now
        members = ["a", "b", "c", "d"]
        moves: list[Callable[[], object]] = []
        for number, kind in enumerate(data.draw(st.lists(st.integers(0, 4), max_size=8))):
            member = data.draw(st.sampled_from(members))
            late = data.draw(st.sampled_from([0, -30, 12])) * SECOND
            small.later(data.draw(st.integers(0, 9)))
            times: dict[str, Any] = {
                "effective_at": Micros(small.now + late),
                "recorded_at": small.now,
            }
            moves = [
                lambda member=member, times=times: small.opt_out(member, **times),  # type: ignore[misc]
                lambda member=member, times=times: small.opt_in(member, **times),  # type: ignore[misc]
                lambda number=number, times=times: small.control(
                    pause(number, "US", on=0, version=number + 1, **times)
                ),  # type: ignore[misc]
                lambda number=number, times=times: small.control(
                    lift(100 + number, on=0, version=number, **times)
                ),  # type: ignore[misc]
                lambda member=member: small.live("HK", member),  # type: ignore[misc]
            ]
            moves[kind]()
        moments = st.integers(-5, 60).map(lambda second: begun + second * SECOND)
        spans = [
            (member, sorted(data.draw(st.tuples(moments, moments))))
            for member in members
            for _ in range(2)
        ]
        spans_of_members = [(member, first, last) for member, (first, last) in spans]
        table = reads(*spans_of_members)
        examined = reexamine(small.snapshot, table, purpose=PURPOSE, bound=BOUND)
        assert examined.outcomes.tolist() == [
            decided_one_by_one(small.snapshot, table, row) for row in range(table.num_rows)
        ]


def decided_one_by_one(snapshot: Snapshot, table: pa.Table, row: int) -> int:
    """The outcome of a read, by a decision for every moment that could matter."""
    member = parse_member_id(table["member_id"][row].as_py())
    first, last = (table[name][row].value for name in ("first_read_at", "last_read_at"))
    record = snapshot.record(member)
    facts = [*(record.facts if record else ()), *snapshot.controls.log]
    known = sorted({fact.recorded_at for fact in facts})
    marks = sorted({fact.effective_at for fact in facts} | {time + BOUND for time in known})

    def allows(at: int, known_at: int) -> bool:
        question = {"purpose": PURPOSE, "at": Micros(at), "known_at": Micros(known_at)}
        return snapshot.decide(member, row_of(table, row), **question, stale_detail="").allowed  # type: ignore[arg-type]

    def fine(at: int) -> bool:
        span = [at - BOUND, at, *(time for time in known if at - BOUND < time < at)]
        return any(allows(at, known_at) for known_at in span)

    if not fine(first) or not fine(last):
        return VIOLATED
    between = (time for time in marks if first < time < last)
    return FINE if all(allows(time, time - BOUND) for time in between) else CANNOT_TELL


class TestVerify:
    """A whole certificate."""

    def test_the_certificate_of_a_run_that_kept_the_rules_holds(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Whoever reads it must be able to come to a *yes*."""
        key = SigningKey.generate()
        small.opt_out("c")
        with small.run(tmp_path, signing_key=key) as run:
            run.filter(batch("a", "b", "c"))
            small.later(20)
            small.opt_out("a")
            small.later(20)
            run.filter(batch("a", "b", "c"))
        small.later(20)
        small.opt_out("b")  # after the run: its facts are known later, and condemn nothing
        report = verified(run, small, keys=PublicKeys([key.public]), key_is_given=True)
        assert (report.status, report.wrong, report.unclear) == (0, [], [])
        assert len(report.checked) == 5

    def test_each_of_100_violations_among_a_million_reads_is_found(self, tmp_path: Path) -> None:
        """A certificate is for this: the one opt-out in a million rows that a trainer lost."""
        blind, true = SmallWorld(), SmallWorld()
        members = np.char.add("m", np.arange(1_000_000).astype(str))
        planted = set(np.random.default_rng(6).choice(members, 100, replace=False).tolist())
        true.opt_out(*planted, recorded_at=Micros(true.now - 60 * SECOND))
        with blind.run(tmp_path, spool_seconds=3600) as run:
            for part in np.split(members, 20):
                run.filter(
                    pa.table({"member_id": part, "jurisdiction": pa.repeat("US", len(part))})
                )
        report = verified(run, true, show_members=True)
        assert report.status == 1
        assert report.violations == {Reason.OPTED_OUT: 100}
        assert set(report.members) == planted

    def test_each_member_is_named_once_and_no_more_than_the_limit(
        self, small: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reads come in pieces, and a member's may lie in several of them."""
        monkeypatch.setattr(verifying, "_MEMBERS_SHOWN_MAX", 3)
        true = SmallWorld()
        true.opt_out("a", "b", "c", "d", recorded_at=Micros(true.now - 60 * SECOND))
        with small.run(tmp_path) as run:
            run.filter(batch("a", "b", "x"))
            run.filter(batch("b", "c", "d", "x"))
        with open_read_files(run.folder, [READS_FILE]) as (file,):
            [whole] = read_pieces(file)
        one_by_one = [whole.slice(row, 1) for row in range(whole.num_rows)]
        report = verified(run, true, reads=one_by_one, show_members=True)
        assert len(report.members) == len(set(report.members)) == 3
        assert set(report.members) < {"a", "b", "c", "d"}
        monkeypatch.setattr(verifying, "_MEMBERS_SHOWN_MAX", 1000)
        report = verified(run, true, reads=one_by_one, show_members=True)
        assert sorted(report.members) == ["a", "b", "c", "d"]

    def test_without_reads_key_or_bundle_the_result_is_unclear(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """A part that was not checked must not count as holding."""
        key = SigningKey.generate()
        with small.run(tmp_path, signing_key=key) as run:
            run.filter(batch("a"))
        known = PublicKeys([key.public])
        assert verified(run, small, keys=known).status == 0
        assert verified(run, small, keys=known, reads=None).status == 2
        assert verified(run, None, keys=known).status == 2
        assert verified(run, small).status == 2
        other = PublicKeys([SigningKey.generate().public])
        assert verified(run, small, keys=other, key_is_given=True).status == 2

    def test_an_unsigned_certificate_is_unclear_where_a_key_was_given(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Removing the signature must not make a certificate believed."""
        with small.run(tmp_path) as run:
            run.filter(batch("a"))
        assert verified(run, small).status == 0
        assert (
            verified(
                run, small, keys=PublicKeys([SigningKey.generate().public]), key_is_given=True
            ).status
            == 2
        )

    def test_with_a_bundle_older_than_the_run_the_result_is_unclear(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """Such a bundle lacks opt-outs that the run had to obey."""
        old = SmallWorld()
        small.opt_out("z")
        small.prove()
        with small.run(tmp_path) as run:
            run.filter(batch("a"))
        report = verified(run, old)
        assert (report.status, report.wrong) == (2, [])

    def test_changed_reads_are_noticed(self, small: SmallWorld, tmp_path: Path) -> None:
        """Whoever removes a member from the reads would remove them from the proof."""
        with small.run(tmp_path) as run:
            run.filter(batch("a", "b", "c"))
        with open_read_files(run.folder, [READS_FILE]) as (file,):
            (table,) = read_pieces(file)
        fewer, swapped = table.slice(1), table.take(pa.array([1, 0, 2]))
        later = table.set_column(
            5,
            SCHEMA.field(5),
            pa.compute.add(table["first_read_at"], pa.scalar(1, pa.duration("us"))),
        )
        for changed in ([fewer], [swapped], [later], [table, table], []):
            assert verified(run, small, reads=changed).status == 1
        assert verified(run, small, reads=[table.slice(0, 1), table.slice(1)]).status == 0

    def test_a_shorter_bound_can_be_given(self, small: SmallWorld, tmp_path: Path) -> None:
        """A run with a lease of an hour proves little: whoever checks says what they want
        proven.
        """
        with small.run(tmp_path, lease_seconds=3600) as run:
            run.filter(batch("a"))
        true = SmallWorld()
        true.opt_out("a", recorded_at=Micros(true.now - 60 * SECOND))
        assert not verified(run, true).violations
        assert verified(run, true, bound=BOUND).violations == {Reason.OPTED_OUT: 1}


class TestExclusions:
    """The digest of the excluded members."""

    def test_the_digest_is_that_of_its_definition(self, small: SmallWorld) -> None:
        """Anybody can compute it from a bundle with a few lines of any language."""
        import hashlib

        small.opt_out("b", "a")
        small.opt_in("c")
        small.live("HK", "d")
        small.control(pause(1, "HK", on=0))  # of a use: a row from elsewhere may be a different one
        small.opt_out("e", effective_at=Micros(small.now + SECOND))
        excluded = excluded_members(small.snapshot, purpose=PURPOSE, at=small.now, known_at=FOREVER)
        assert excluded == (2, "sha256:" + hashlib.sha256(b"a\nb\n").hexdigest(), 0)
        assert (
            excluded_members(
                small.snapshot, purpose="ads", at=small.now, known_at=FOREVER
            ).member_count
            == 0
        )
        assert (
            excluded_members(
                small.snapshot, purpose=PURPOSE, at=small.now, known_at=Micros(small.now - 1)
            ).member_count
            == 0
        )


def test_counts_are_of_one_outcome() -> None:
    """A figure that mixes what is wrong with what is unknown is neither."""
    outcomes = ReadOutcomes(
        np.array([0, 1, 1, 2], dtype=np.int8), np.array([0, 5, 5, 1], dtype=np.int8)
    )
    assert outcomes.counts(VIOLATED) == {Reason.OPTED_OUT: 2}
    assert outcomes.counts(CANNOT_TELL) == {Reason.QUARANTINED: 1}


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs log their beginning and end."""
