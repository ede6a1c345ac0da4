"""Who else hears of a run's beginning and end, such as a lineage service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from consentry.domain.values import Micros


class RunChange(NamedTuple):
    """What is told of a run:

    `start` is its run.json, `certificate` what it states once it is complete.
    """

    state: str
    reason: str
    at: Micros
    url: str
    start: Mapping[str, Any]
    certificate: Mapping[str, Any] | None


class RunObserver(Protocol):
    """Called on the run's own thread; what it raises is logged and changes nothing."""

    def told(self, run: RunChange) -> None:
        """A run began (state RUNNING) or ended (COMPLETED, ABORTED)."""
        ...
