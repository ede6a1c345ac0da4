"""What the processor's probes answer: alive while it moves, ready while all it owns is fresh."""

from __future__ import annotations

import pytest

from consentry.processor.build import liveness, readiness
from consentry.processor.service import STALL_SECONDS


@pytest.mark.parametrize(
    ("idle_seconds", "follows_controls", "is_alive"),
    [(1.0, True, True), (STALL_SECONDS, True, False), (1.0, False, False)],
)
def test_a_worker_that_stands_still_or_lost_the_controls_is_not_alive(
    idle_seconds: float, follows_controls: bool, is_alive: bool
) -> None:
    """An orchestrator would leave it there while opt-outs wait."""
    answer = liveness(idle_seconds=idle_seconds, follows_controls=follows_controls)

    assert answer["ok"] is is_alive


@pytest.mark.parametrize(
    ("ages", "owned", "is_settled", "is_ready"),
    [
        ({0: 1.0, 1: 2.0}, 2, True, True),
        ({0: 1.0}, 2, True, False),
        ({0: 1.0, 1: 10.0}, 2, True, False),
        ({0: 1.0, 1: 2.0}, 2, False, False),
        ({}, 0, True, False),
    ],
    ids=["fresh", "one without a frontier", "one stale", "rebalancing", "owns nothing"],
)
def test_a_worker_is_ready_only_when_all_its_partitions_are_fresh(
    ages: dict[int, float], owned: int, is_settled: bool, is_ready: bool
) -> None:
    """A deployment would end the old workers before the new ones keep the table."""
    answer = readiness(ages, owned=owned, is_settled=is_settled, staleness_seconds=10)

    assert answer["ok"] is is_ready
    assert answer["partitions"] == owned


def test_the_oldest_frontier_is_reported() -> None:
    """It is the first thing that an operator looks for."""
    answer = readiness({0: 1.0, 1: 2.346}, owned=2, is_settled=True, staleness_seconds=10)

    assert answer["oldest_frontier_seconds"] == 2.35
