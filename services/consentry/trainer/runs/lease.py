"""The lease of a training run: its short right to go on reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from consentry.ops.clock import Clock
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.errors import ConsentStale, LeaseRevoked

_POLL_SECONDS = 0.02


class RunDecider(Decider, Protocol):
    """The decider of a training run, whose snapshot can be read.

    It is the client, or SnapshotDecider.
    """

    snapshot: Snapshot


class LeaseCondition(Protocol):
    """Something else that a training run's lease depends on, such as settled purge orders."""

    def __call__(self) -> str:
        """Return the reason why the lease has to end; empty where it may go on.

        Called before each batch: it has to be quick, and must not wait.
        """
        ...


class Lease:
    """A training run's right to read while its snapshot is fresh to within `seconds`.

    A condition may end it before. Anybody may revoke it too. Once lost it stays lost. When
    freshness is missing, the lease waits for it for `wait_seconds` before it is lost.
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
        self._make_lost: Callable[[], ConsentStale | LeaseRevoked] | None = None
        self._revoked = threading.Event()

    @property
    def lost(self) -> ConsentStale | LeaseRevoked | None:
        """The error that says why a training run's lease was lost; None while it holds.

        A new error each time, as an error that was raised carries the frames it passed.
        """
        if self._make_lost is None:
            return None
        return self._make_lost()

    def revoke(self, reason: str) -> None:
        """Take a training run's lease back; a wait for freshness ends at once."""
        self._make_lost = self._make_lost or partial(LeaseRevoked, reason)
        self._revoked.set()

    def require(self) -> None:
        """Return while the training run's lease holds, at most after the wait for freshness.

        Raises ConsentStale or LeaseRevoked, and then the same one at every later call.
        """
        deadline = self._clock() + round(self._wait_seconds * 1e6)
        while True:
            self._check_conditions()
            lost = self.lost
            if lost is not None:
                raise lost
            detail = self.stale_detail()
            if not detail:
                return
            if self._clock() >= deadline:
                self._make_lost = self._make_lost or partial(ConsentStale, detail)
            else:
                self._revoked.wait(_POLL_SECONDS)

    def _check_conditions(self) -> None:
        for condition in self._conditions:
            if self._make_lost is None:
                reason = condition()
                if reason:
                    self.revoke(reason)

    def stale_detail(self) -> str:
        """Return why a run's lease cannot be renewed now; empty where freshness is proven."""
        age = self._decider.snapshot.staleness_seconds(self._clock())
        detail = self._decider.stale_detail
        if detail:
            return detail
        if age > self.seconds:
            return f"the snapshot is {age:.1f} s old, the lease is {self.seconds:g} s"
        return ""
