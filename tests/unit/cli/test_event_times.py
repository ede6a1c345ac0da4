"""The two times of what a command sends: when it is recorded, and when it takes effect."""

from __future__ import annotations

import pytest

from consentry.cli.event_times import EventTimes
from consentry.domain.errors import InvalidInput


def test_without_a_time_it_takes_effect_when_it_is_recorded() -> None:
    """The plain case of an opt-out: now."""
    times = EventTimes.parse(None)

    assert times.effective_at == times.recorded_at


def test_a_given_time_is_the_effective_one() -> None:
    """What was promised for the 11th holds from the 11th, whenever it is recorded."""
    times = EventTimes.parse("2024-10-11")

    assert times.effective_at == 1_728_604_800_000_000
    assert times.recorded_at > times.effective_at


def test_a_time_that_is_none_is_refused_by_the_options_name() -> None:
    """Somebody typed it, and has to find it."""
    with pytest.raises(InvalidInput, match="--effective"):
        EventTimes.parse("yesterday")
