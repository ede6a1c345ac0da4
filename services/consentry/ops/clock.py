"""The clock of every service, the only place that reads the time; others get it as an argument.

They take a time, or a `Clock`.
"""

from __future__ import annotations

import time
from typing import Protocol

from consentry.domain.values import Micros


class Clock(Protocol):
    """A clock of a service: called, it returns the time in microseconds since 1970-01-01 UTC."""

    def __call__(self) -> Micros: ...


def system_clock() -> Micros:
    """Return this machine's time of day in microseconds since 1970-01-01 UTC."""
    return Micros(time.time_ns() // 1000)
