"""A training run's short right to go on reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from consentry.ops.clock import Clock
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.errors import ConsentStale, LeaseRevoked

_LOOK_SECONDS = 0.02


class RunDecider(Decider, Protocol):
    """A judge whose view can be looked at: the client, or SnapshotDecider."""

    snapshot: Snapshot


class LeaseCondition(Protocol):
    """Something else that a lease depends on, such as settled purge orders."""

    def __call__(self) -> str:
        """Why the lease is not given any longer; empty where it is.

        Asked before each batch: quick, never waiting.
        """
        ...


class Lease:
    """Held while the view is proven fresh to within `seconds`, every condition agrees and nobody
    revoked it.

    Once lost it stays lost. `wait_seconds`: so long it is waited for freshness before the lease is
    lost for want of it.
    """

    def __init__(
        self,
        decider: RunDecider,
        clock: Clock,
        *,
        seconds: float,
        wait_seconds: float = 0.0,
        conditions: Sequence[LeaseCondition] = (),
    ) -> None:
        self.seconds = seconds
        self._decider = decider
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._conditions = tuple(conditions)
        self._lost: Callable[[], ConsentStale | LeaseRevoked] | None = None
        self._changed = threading.Event()

    @property
    def lost(self) -> ConsentStale | LeaseRevoked | None:
        """Why it is held no longer; a new error each time, as a raised one carries the frames of
        its way.
        """
        return None if self._lost is None else self._lost()

    def revoke(self, reason: str) -> None:
        """Take it back; a wait for freshness ends at once."""
        self._lost = self._lost or partial(LeaseRevoked, reason)
        self._changed.set()

    def require(self) -> None:
        """Return while it is held, after waiting for freshness as long as was said.

        Raises ConsentStale, LeaseRevoked.

        What is raised once is raised for ever.
        """
        until = self._clock() + round(self._wait_seconds * 1e6)
        while True:
            for condition in self._conditions:
                if self._lost is None and (why_not := condition()):
                    self.revoke(why_not)
            if (lost := self.lost) is not None:
                raise lost
            detail = self.stale_detail()
            if not detail:
                return
            if self._clock() >= until:
                self._lost = self._lost or partial(ConsentStale, detail)
            else:
                self._changed.wait(_LOOK_SECONDS)

    def stale_detail(self) -> str:
        """Why it cannot be renewed now; empty where freshness is proven."""
        age = self._decider.snapshot.staleness_seconds(self._clock())
        if detail := self._decider.stale_detail:
            return detail
        return (
            f"what is held is {age:.1f} s old, the lease is {self.seconds:g} s"
            if age > self.seconds
            else ""
        )
