"""A trainer's view of a small world."""

from __future__ import annotations

import pytest
from tests.strategies import policy, terms

from consentry.domain.controls import Controls
from consentry.trainer.deciding.snapshot import View
from consentry.wire.jurisdictions import iso_jurisdictions

PARTITIONS = 4


@pytest.fixture
def view() -> View:
    """Nobody is known yet; one policy allows the purpose everywhere."""
    view = View(PARTITIONS, iso_jurisdictions())
    view.apply_control(policy(900, terms("*"), on=0))
    assert isinstance(view.controls, Controls)
    return view
