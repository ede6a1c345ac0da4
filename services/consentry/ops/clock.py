"""The only place that reads the time; other code takes it as an argument, or takes a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol

from consentry.domain.values import Micros


class Clock(Protocol):
    """Returns the time of day in microseconds since 1970-01-01 UTC."""

    def __call__(self) -> Micros: ...


def system_clock() -> Micros:
    """Return the microseconds since 1970-01-01 UTC, by this machine's clock."""
    return Micros(time.time_ns() // 1000)
