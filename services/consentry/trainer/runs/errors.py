"""The errors of a training run that hands out nothing more.

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
    """Raised when freshness was not proven in time: the training run hands out nothing more."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The training run stopped: {detail}.",
            code="run.consent_stale",
            fix="check that broker and processor run, then start another run from the last "
            "checkpoint",
        )


class LeaseRevoked(ConsentryError):
    """Raised when a training run's lease was taken back: it hands out nothing more."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The training run stopped, as its lease was revoked: {reason}.",
            code="run.lease_revoked",
            fix="settle what the reason names, then start another run",
        )


class RunClosed(Refused):
    """Raised when a training run is over, or has not begun."""

    def __init__(self, state: str) -> None:
        super().__init__(
            f"The training run hands out nothing: its state is {state}.",
            code="run.closed",
            fix="filter inside `with client.training_run(…) as run:`",
        )
