"""A trainer's view of a small world."""

from __future__ import annotations

import pytest
from tests.strategies import policy, terms

from consentry.domain.controls import Controls
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.jurisdictions import iso_jurisdictions

PARTITIONS = 4


@pytest.fixture
def snapshot() -> Snapshot:
    """Nobody is known yet; one policy allows the purpose everywhere."""
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    snapshot.apply_control(policy(900, terms("*"), on=0))
    assert isinstance(snapshot.controls, Controls)
    return snapshot
