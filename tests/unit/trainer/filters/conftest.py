"""Forty members who all live in the US, twenty of them called by text and twenty by number; the odd
ones opted out.
"""

from __future__ import annotations

import pytest
from tests.contract.filters.corpus import apply_records
from tests.strategies import chose, day, folded, moved

from consentry.domain.events import MemberEvent
from consentry.domain.values import Choice
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot

MEMBERS = [f"m:{number}" for number in range(20)]
NUMBERS = [1000 + number for number in range(20)]


@pytest.fixture
def decider(snapshot: Snapshot) -> SnapshotDecider:
    """Decides by a snapshot in which every second member opted out."""
    records = []
    for place, member in enumerate([*MEMBERS, *map(str, NUMBERS)]):
        events: list[MemberEvent] = [moved("US", 2 * place + 1, on=5, member=member)]
        if place % 2:
            events.append(chose(Choice.OPT_OUT, 2 * place + 2, on=6, member=member))
        record = folded(*events)
        assert record is not None
        records.append(record)
    apply_records(snapshot, records)
    return SnapshotDecider(snapshot, at=day(100))
