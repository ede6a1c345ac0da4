"""Values in a member column and the member that each names, the same for whatever reads them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa
from tests.contract.filters.corpus import apply_records
from tests.strategies import PURPOSE, chose, day, folded, moved

from consentry.domain.values import Choice, Reason
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot

NAMED: Final[list[tuple[Any, str]]] = [
    ("m:1", "m:1"),
    ("1001", "1001"),
    ("0042", "0042"),
    (1001, "1001"),
    (0, "0"),
    (-5, "-5"),
    ((1 << 63) - 1, str((1 << 63) - 1)),
    (np.int64(1001), "1001"),
    (np.uint8(7), "7"),
]
"""Texts name a member by themselves, whole numbers by their decimal text."""

NOBODY: Final[list[Any]] = [
    *(None, True, False, np.True_, 1.0, 1.5, float("nan"), np.float16(1.5), np.float64(1.0)),
    *(b"m:1", "\ud800", "m:\ud800", "", "é", "a b", "m" * 65),
    *(10**80, Decimal(7), date(2024, 1, 1), ["m:1"], {"id": "m:1"}),
]
"""Values that name nobody: the row is QUARANTINED."""


def decider_of_all_opted_out(snapshot: Snapshot) -> SnapshotDecider:
    """Decides by a snapshot in which every member of NAMED opted out, and so whoever 1 would be."""
    records = []
    for number, member in enumerate(sorted({member for _, member in NAMED} | {"1", "True"})):
        events = (
            moved("US", 2 * number + 1, on=5, member=member),
            chose(Choice.OPT_OUT, 2 * number + 2, on=6, member=member),
        )
        record = folded(*events)
        assert record is not None
        records.append(record)
    apply_records(snapshot, records)
    return SnapshotDecider(snapshot, at=day(100))


def reasons_of(decider: SnapshotDecider, table: pa.Table) -> list[Reason]:
    """The reason of each row of a table that a reader made."""
    decisions = decider.decide_table(table, purpose=PURPOSE)
    return [REASONS[place] for place in decisions.reasons.tolist()]
