"""The protocol of those that hear of a run's beginning and end, such as a lineage service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from consentry.domain.values import Micros


class RunChange(NamedTuple):
    """The beginning or the end of a run.

    `start` is its run.json. `certificate` is what the certificate states, None until the run is
    complete.
    """

    state: str
    reason: str
    at: Micros
    url: str
    start: Mapping[str, Any]
    certificate: Mapping[str, Any] | None


class RunObserver(Protocol):
    """Something that hears of runs, on the run's own thread.

    An error that it raises is logged and changes nothing.
    """

    def on_run_event(self, run: RunChange) -> None:
        """Take note that a run began (state RUNNING) or ended (COMPLETED, ABORTED)."""
        ...
