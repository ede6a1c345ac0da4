"""The protocol of those told of a training run's beginning and end, such as lineage services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from consentry.domain.values import Micros


class RunChange(NamedTuple):
    """The beginning or the end of a training run, as observers are told of it.

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
    """Something that is told when training runs begin or end, on the run's own thread.

    An error that it raises is logged and changes nothing.
    """

    def on_run_event(self, run: RunChange) -> None:
        """Be told that a training run began (RUNNING) or ended (COMPLETED, ABORTED)."""
        ...
