"""Why a training run hands out nothing more.

ConsentryError
├── Unavailable
│   └── ConsentStale       freshness was not proven in time: start another run once it is
├── LeaseRevoked           somebody, or a condition of the lease, ended the run
└── Refused
    └── RunClosed          the run is over
"""

from __future__ import annotations

from consentry.domain.errors import ConsentryError, Refused, Unavailable


class ConsentStale(Unavailable):
    """What the run answers by is not proven to be fresh: nothing more is handed out in it."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The training run stopped: {detail}.",
            code="run.consent_stale",
            fix="check that broker and processor run, then start another run from the last "
            "checkpoint",
        )


class LeaseRevoked(ConsentryError):
    """The run's lease was taken back: nothing more is handed out in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The training run stopped, as its lease was revoked: {reason}.",
            code="run.lease_revoked",
            fix="settle what the reason names, then start another run",
        )


class RunClosed(Refused):
    """The run is over, or has not begun."""

    def __init__(self, state: str) -> None:
        super().__init__(
            f"The training run hands out nothing: it is {state}.",
            code="run.closed",
            fix="filter inside `with client.training_run(…) as run:`",
        )
