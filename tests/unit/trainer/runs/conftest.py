"""A small world that moves step by step: a clock, a snapshot kept fresh by hand, and a decider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.strategies import NAMESPACE, PURPOSE, chose, day, moved, new_catalog, policy, terms

from consentry.domain.controls import Control
from consentry.domain.events import MemberEvent
from consentry.domain.records import Record, fold
from consentry.domain.values import Choice, Micros
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs import TrainingRun
from consentry.wire.frontiers import Frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record
from consentry.wire.schemas import CONTROLS, RECORDS

PARTITIONS = 4
LOG = "00112233445566aa"
START = day(100)
_FRAME = new_catalog().frame_of("ConsentRecord")
assert NAMESPACE


class SmallWorld:
    """Everything recorded, and the snapshot of it; time stands still until `later`."""

    def __init__(self) -> None:
        self.now = START
        self.snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
        self.records: dict[str, Record] = {}
        self.decider = SnapshotDecider(self.snapshot, clock=lambda: self.now, stale_after_seconds=5)
        self._events = 1000
        self.control(policy(900, terms("*"), on=0))
        self.prove()

    def later(self, seconds: float, *, is_fresh: bool = True) -> Micros:
        """Let time go by, and return the new time."""
        self.now = Micros(self.now + round(seconds * 1e6))
        if is_fresh:
            self.prove()
        return self.now

    def prove(self) -> None:
        """Frontiers of this moment arrive."""
        for partition in range(PARTITIONS):
            here = self.snapshot.positions.get((RECORDS, partition), 0)
            controls = self.snapshot.positions.get((CONTROLS, 0), 0)
            self.snapshot.apply_frontier(
                Frontier(partition, "g", self.now, here, here, controls, False, LOG)
            )
        self.snapshot.settle_frontiers()

    def control(self, *controls: Control) -> None:
        """Controls arrive."""
        for control in controls:
            self.snapshot.apply_control(control)
            self.snapshot.positions[CONTROLS, 0] = self.snapshot.positions.get((CONTROLS, 0), 0) + 1

    def record(self, *events: MemberEvent) -> None:
        """Events are recorded, and the records arrive."""
        for event in events:
            folded = fold(self.records.get(event.member), event)
            self.records[event.member] = folded
            key = event.member.encode()
            home = partition_of(key, PARTITIONS)
            self.snapshot.apply_records(home, [key], [write_record(folded, _FRAME)])
            self.snapshot.positions[RECORDS, home] = (
                self.snapshot.positions.get((RECORDS, home), 0) + 1
            )

    def chose(self, choice: Choice, *members: str, **more: Any) -> None:
        """The members choose at this moment, having seen everything."""
        times: dict[str, Any] = {"effective_at": self.now, "recorded_at": self.now} | more
        for member in members:
            self._events += 1
            known = self.records.get(member)
            observed = known.version if known else None
            self.record(
                chose(choice, self._events, on=0, member=member, observed=observed, **times)
            )

    def opt_out(self, *members: str, **more: Any) -> None:
        """The members opt out at this moment."""
        self.chose(Choice.OPT_OUT, *members, **more)

    def opt_in(self, *members: str, **more: Any) -> None:
        """The members opt in at this moment."""
        self.chose(Choice.OPT_IN, *members, **more)

    def live(self, jurisdiction: str, *members: str) -> None:
        """The members live there, since long ago."""
        for member in members:
            self._events += 1
            self.record(moved(jurisdiction, self._events, on=1, member=member))

    def run(self, store: str | Path, **more: Any) -> TrainingRun:
        """A run that has not begun; nothing waits in memory."""
        fields: dict[str, Any] = {
            "dataset": "posts",
            "purpose": PURPOSE,
            "subscriber": "ranker",
            "spool_seconds": 0,
        }
        fields |= {"clock": lambda: self.now} | more
        return TrainingRun(self.decider, store=str(store), **fields)


@pytest.fixture
def small() -> SmallWorld:
    """A world where all rows are from the US, and one policy allows the purpose everywhere."""
    return SmallWorld()
