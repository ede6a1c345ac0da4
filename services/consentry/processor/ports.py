"""What the processor needs from outside, in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from consentry.domain.events import Fact
from consentry.domain.records import Record
from consentry.domain.values import MemberId, Micros
from consentry.wire.headers import Headers


class Published(NamedTuple):
    """A record to publish: member, framed bytes, and the append time of its newest event in
    milliseconds.
    """

    member: bytes
    record: bytes
    appended_ms: int


class Refusal(NamedTuple):
    """A message that could not be heeded, as it goes to quarantine; `appended_at` in
    microseconds.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    appended_at: Micros
    error_class: str
    headers: Headers | None = None


class MemberChange(NamedTuple):
    """A fact that may oblige subscribers to purge, with the member's record after it."""

    member: MemberId
    fact: Fact
    record: Record


class Publisher(Protocol):
    """Where records and refusals go. Both calls only queue;

    `settle` waits for every acknowledgement.
    """

    def publish(self, partition: int, records: Sequence[Published]) -> None:
        """Queue records for a partition of the records topic."""
        ...

    def quarantine(self, refusals: Sequence[Refusal]) -> None:
        """Queue raw messages for the quarantine topic."""
        ...

    def settle(self) -> None:
        """Return once all that was queued is acknowledged by all replicas.

        Raises Unavailable: queue it again.
        """
        ...


class Obligations(Protocol):
    """Who opens purge orders."""

    def wants(self, fact_kind: int) -> bool:
        """Whether facts of this kind may open an order under the controls in force."""
        ...

    def open_for(self, changes: Sequence[MemberChange]) -> None:
        """Open what these changes oblige to, durably, once however often it is asked.

        Raises Unavailable.
        """
        ...


class NoObligations:
    """Opens nothing: for tests and measurements of the hot path alone."""

    def wants(self, fact_kind: int) -> bool:
        """Nothing."""
        return False

    def open_for(self, changes: Sequence[MemberChange]) -> None:
        """Nothing to do."""


class InMemoryPublisher:
    """Keeps what was published, under the same contract; `fail_next` makes the next `settle`
    fail.
    """

    def __init__(self) -> None:
        self.records: list[tuple[int, Published]] = []
        self.refusals: list[Refusal] = []
        self.fail_next: Exception | None = None
        self._queued: list[tuple[int, Published]] = []
        self._queued_refusals: list[Refusal] = []

    def publish(self, partition: int, records: Sequence[Published]) -> None:
        """See Publisher."""
        self._queued.extend((partition, record) for record in records)

    def quarantine(self, refusals: Sequence[Refusal]) -> None:
        """See Publisher."""
        self._queued_refusals.extend(refusals)

    def settle(self) -> None:
        """See Publisher."""
        failure, self.fail_next = self.fail_next, None
        queued, self._queued = self._queued, []
        refused, self._queued_refusals = self._queued_refusals, []
        if failure is not None:
            raise failure
        self.records.extend(queued)
        self.refusals.extend(refused)
