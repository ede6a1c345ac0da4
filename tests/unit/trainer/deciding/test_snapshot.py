"""What a trainer holds in memory: newer records only, doubts held, and freshness that has to be
proven.
"""

from __future__ import annotations

import math
import pickle

import pyarrow as pa
import pytest
from tests.strategies import MEMBER, PURPOSE, chose, day, folded, moved, pause

from consentry.domain.decisions import Row
from consentry.domain.events import MemberEvent
from consentry.domain.values import Choice, MemberId, Reason
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import record_digest, write_record

PARTITIONS = 4
KEY = MEMBER.encode()
HOME = partition_of(KEY, PARTITIONS)
US = moved("US", 1, on=1)
OUT = chose(Choice.OPT_OUT, 2, on=2)


def raw(*events: MemberEvent) -> bytes:
    """The record after these events, as published."""
    record = folded(*events)
    assert record is not None
    return write_record(record, frame(1))


def reason(
    snapshot: Snapshot, member: MemberId = MEMBER, *, row: Row | None = None, stale_detail: str = ""
) -> Reason:
    """The reason of the answer on day 30."""
    question = {
        "purpose": PURPOSE,
        "at": day(30),
        "known_at": day(30),
        "stale_detail": stale_detail,
    }
    decision = snapshot.decide(member, row, **question)  # type: ignore[arg-type]
    assert decision.allowed == (decision.reason in (Reason.DEFAULT_ON, Reason.OPTED_IN))
    return decision.reason


def frontier(
    partition: int, at: float = 5, *, records: int = 0, controls: int = 0, tainted: bool = False
) -> Frontier:
    """A frontier of a partition."""
    return Frontier(partition, "life", day(at), 0, records, controls, tainted)


class TestRecords:
    def test_a_record_answers_for_its_member(self, snapshot: Snapshot) -> None:
        """Hurt when this breaks: everybody."""
        snapshot.apply_records(HOME, [KEY], [raw(US)])
        assert reason(snapshot) is Reason.DEFAULT_ON

        snapshot.apply_records(HOME, [KEY], [raw(US, OUT)])
        assert reason(snapshot) is Reason.OPTED_OUT

    def test_an_older_version_after_a_newer_one_is_ignored_and_counted(
        self, snapshot: Snapshot
    ) -> None:
        """A worker that woke late publishes what the member said before they opted out."""
        snapshot.apply_records(HOME, [KEY, KEY], [raw(US, OUT), raw(US)])

        assert reason(snapshot) is Reason.OPTED_OUT
        assert snapshot.regressions == 1

    def test_a_repeated_version_is_no_regression(self, snapshot: Snapshot) -> None:
        """Records are published again after each crash; that alone must not wake anybody."""
        snapshot.apply_records(HOME, [KEY, KEY], [raw(US), raw(US)])

        assert snapshot.regressions == 0

    def test_a_damaged_record_holds_its_member_also_when_an_older_one_was_sound(
        self, snapshot: Snapshot
    ) -> None:
        """The damaged one may have been the opt-out."""
        good = raw(US, OUT)
        snapshot.apply_records(HOME, [KEY], [raw(US)])

        snapshot.apply_records(HOME, [KEY], [good[:20] + bytes((good[20] ^ 1,)) + good[21:]])

        assert reason(snapshot) is Reason.QUARANTINED

    def test_a_record_on_a_foreign_partition_holds_its_member(self, snapshot: Snapshot) -> None:
        """Its events have no order with the member's others."""
        snapshot.apply_records(HOME, [KEY], [raw(US)])

        snapshot.apply_records((HOME + 1) % PARTITIONS, [KEY], [raw(US)])

        assert reason(snapshot) is Reason.QUARANTINED

    def test_bytes_that_rot_in_memory_hold_their_member(self, snapshot: Snapshot) -> None:
        """A flipped bit of a host without error correction must not become consent."""
        snapshot.apply_records(HOME, [KEY], [raw(US, OUT)])

        snapshot.records.apply([KEY], [snapshot.records[KEY][:-1] + b"?"])

        assert reason(snapshot) is Reason.QUARANTINED

    def test_somebody_without_a_record_is_judged_by_the_row_alone(self, snapshot: Snapshot) -> None:
        """Not known is not the same as allowed."""
        assert reason(snapshot) is Reason.JURISDICTION_UNKNOWN
        assert reason(snapshot, row=Row(jurisdiction="US")) is Reason.DEFAULT_ON

    def test_digests_tell_the_same_records_apart_from_others_in_any_order(
        self, snapshot: Snapshot
    ) -> None:
        """`verify` compares them with the table's."""
        other = Snapshot(PARTITIONS, snapshot.controls.jurisdictions)
        keys = [b"member-%d" % number for number in range(9)]
        for each, order in ((snapshot, keys), (other, keys[::-1])):
            for key in order:
                home = partition_of(key, PARTITIONS)
                each.apply_records(home, [key], [raw(moved("US", 1, on=1, member=key.decode()))])

        assert snapshot.digests() == other.digests()
        other.records.apply(keys[:1], [raw(moved("HK", 1, on=1, member=keys[0].decode()))])
        assert snapshot.digests() != other.digests()
        assert sum(int(digest, 16) for digest in snapshot.digests().values()) % 2**128 == (
            sum(record_digest(key, value) for key, value in snapshot.records.items()) % 2**128
        )


class TestTwoHistories:
    def test_an_older_version_that_the_held_record_did_not_come_from_holds_the_member(
        self, snapshot: Snapshot
    ) -> None:
        """A table that lost one bucket takes a member for new, and the opt-out that follows becomes
        version 1.
        """
        snapshot.apply_records(HOME, [KEY], [raw(US, chose(Choice.OPT_IN, 3, on=3))])

        snapshot.apply_records(HOME, [KEY], [raw(chose(Choice.OPT_OUT, 4, on=4))])

        assert reason(snapshot) is Reason.QUARANTINED


class TestClocks:
    def test_a_frontier_from_a_fast_clock_is_believed_no_further_than_the_broker(
        self, snapshot: Snapshot
    ) -> None:
        """One worker's clock an hour ahead would make a dead processor look fresh for that hour."""
        for partition in range(PARTITIONS):
            snapshot.apply_frontier(frontier(partition, 9), day(5))
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(6)) == 86_400.0

    def test_a_frontier_of_a_partition_that_is_none_proves_nothing(
        self, snapshot: Snapshot
    ) -> None:
        """It would count in place of one that nobody heard of."""
        for partition in (*range(PARTITIONS - 1), 99):
            snapshot.apply_frontier(frontier(partition))
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(5)) == math.inf


class TestControls:
    def test_a_pause_binds_everybody_at_once(self, snapshot: Snapshot) -> None:
        """One message, however many members it covers."""
        snapshot.apply_records(HOME, [KEY], [raw(US)])

        snapshot.apply_control(pause(1, "US", on=3))

        assert reason(snapshot) is Reason.PAUSED


class TestTaint:
    def test_a_tainted_partition_allows_nobody_on_it_and_everybody_elsewhere(
        self, snapshot: Snapshot
    ) -> None:
        """Somebody's opt-out on it could not be read, and nobody knows whose."""
        other = next(
            key for n in range(99) if partition_of(key := b"other-%d" % n, PARTITIONS) != HOME
        )
        snapshot.apply_records(HOME, [KEY], [raw(US)])
        home = partition_of(other, PARTITIONS)
        snapshot.apply_records(home, [other], [raw(moved("US", 1, on=1, member=other.decode()))])

        snapshot.apply_frontier(frontier(HOME, tainted=True))

        assert reason(snapshot) is Reason.QUARANTINED
        assert reason(snapshot, row=Row(jurisdiction="US")) is Reason.QUARANTINED
        assert reason(snapshot, MemberId(other.decode())) is Reason.DEFAULT_ON

    def test_a_taint_ends_with_a_later_frontier_and_not_with_an_older_one(
        self, snapshot: Snapshot
    ) -> None:
        """A frozen worker that wakes does not know of the taint yet."""
        snapshot.apply_records(HOME, [KEY], [raw(US)])
        snapshot.apply_frontier(frontier(HOME, 5, tainted=True))

        snapshot.apply_frontier(frontier(HOME, 4))
        assert reason(snapshot) is Reason.QUARANTINED

        snapshot.apply_frontier(frontier(HOME, 6))
        assert reason(snapshot) is Reason.DEFAULT_ON


class TestFreshness:
    def test_a_view_is_stale_until_every_partition_has_proven_itself(
        self, snapshot: Snapshot
    ) -> None:
        """One partition that is not followed holds a quarter of all opt-outs."""
        for partition in range(PARTITIONS - 1):
            snapshot.apply_frontier(frontier(partition))
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(5)) == math.inf

        snapshot.apply_frontier(frontier(PARTITIONS - 1))
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(5)) == 0.0

    @pytest.mark.parametrize("missing", [("records", HOME), ("controls", 0)])
    def test_a_frontier_counts_only_once_the_positions_it_names_are_reached(
        self, snapshot: Snapshot, missing: tuple[str, int]
    ) -> None:
        """The frontiers topic is quicker than the records: believed at once, it would hide an
        opt-out on its way.
        """
        for partition in range(PARTITIONS):
            snapshot.apply_frontier(
                frontier(partition, records=7 if partition == HOME else 0, controls=3)
            )
        snapshot.positions = {("records", HOME): 7, ("controls", 0): 3}
        snapshot.positions[missing] -= 1
        snapshot.settle_frontiers()
        assert snapshot.staleness_seconds(day(5)) == math.inf

        snapshot.positions[missing] += 1
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(5)) == 0.0

    def test_staleness_is_the_age_of_the_least_fresh_partition(self, snapshot: Snapshot) -> None:
        """The mean would hide the one that stands still."""
        for partition in range(PARTITIONS):
            snapshot.apply_frontier(frontier(partition, 5 if partition else 4))
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(5)) == 86_400.0

    def test_a_follower_with_a_steady_lag_is_as_fresh_as_the_last_position_it_passed(
        self, snapshot: Snapshot
    ) -> None:
        """Two seconds behind is within the bound of five; stale for ever would stop all training on
        a busy day.
        """
        for partition in range(PARTITIONS):
            snapshot.apply_frontier(frontier(partition, 5, records=10))
            snapshot.apply_frontier(frontier(partition, 6, records=20))
            snapshot.positions["records", partition] = 15
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(6)) == 86_400.0

    def test_an_older_frontier_never_makes_a_view_older(self, snapshot: Snapshot) -> None:
        """Owners change, and their messages cross."""
        for partition in range(PARTITIONS):
            snapshot.apply_frontier(frontier(partition, 5))
        snapshot.settle_frontiers()
        snapshot.apply_frontier(frontier(0, 3))
        snapshot.settle_frontiers()

        assert snapshot.staleness_seconds(day(5)) == 0.0

    def test_what_is_stale_allows_nothing_and_says_why(self, snapshot: Snapshot) -> None:
        """Old consent is no consent."""
        snapshot.apply_records(HOME, [KEY], [raw(US)])

        assert reason(snapshot, stale_detail="9 s behind; 5 are allowed") is Reason.STALE


def test_a_view_that_was_asked_can_be_sent_to_another_process(snapshot: Snapshot) -> None:
    """A bundle's view is what workers without Kafka are given."""
    snapshot.apply_records(HOME, [KEY], [raw(US, OUT)])
    assert reason(snapshot) is Reason.OPTED_OUT
    decider = SnapshotDecider(snapshot)
    decider.decide_table(pa.table({"member_id": ["a"]}), purpose="genai_training")

    again = pickle.loads(pickle.dumps(decider))  # noqa: S301 - our own bytes

    assert reason(again.snapshot) is Reason.OPTED_OUT
    assert again.snapshot_id == decider.snapshot_id
