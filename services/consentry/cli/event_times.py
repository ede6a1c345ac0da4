"""The two times of an event or control that a command sends."""

from __future__ import annotations

from typing import NamedTuple

from consentry.domain.values import Micros
from consentry.forms.fields import parse_instant
from consentry.ops.clock import system_clock


class EventTimes(NamedTuple):
    """The two times of an event that a command sends: recorded, and effective.

    Both are in microseconds since 1970-01-01 UTC.
    """

    recorded_at: Micros
    effective_at: Micros

    @classmethod
    def parse(cls, effective: str | None) -> EventTimes:
        """Return the two times for a command's event: now, or its --effective in ISO 8601.

        Now is both times; the given time is the effective one. Raises InvalidInput.
        """
        now = system_clock()
        if effective is None:
            return cls(now, now)
        return cls(now, parse_instant(effective, what="--effective"))
