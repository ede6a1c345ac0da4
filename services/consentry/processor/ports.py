"""The processor's needs from outside: a publisher of records, and a way to open purge orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from consentry.domain.events import Fact
from consentry.domain.records import Record
from consentry.domain.values import MemberId, Micros
from consentry.wire.headers import Headers


class Published(NamedTuple):
    """A record for the processor to publish: its member and framed bytes.

    `appended_ms` is the append time of the record's newest event, in milliseconds.
    """

    member: bytes
    record: bytes
    appended_ms: int


class Refusal(NamedTuple):
    """A message that the processor could not apply, in the form that goes to quarantine."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    appended_at: Micros
    error_class: str
    headers: Headers | None = None


class MemberChange(NamedTuple):
    """A fact in the processor that may open a purge order, and the member's record after it."""

    member: MemberId
    fact: Fact
    record: Record


class Publisher(Protocol):
    """The processor's way out for records and quarantined messages.

    `publish` and `quarantine` queue, `settle` waits.
    """

    def publish(self, partition: int, records: Sequence[Published]) -> None:
        """Queue the processor's records for a partition of the records topic."""
        ...

    def quarantine(self, refusals: Sequence[Refusal]) -> None:
        """Queue messages that the processor could not read for the quarantine topic.

        They go there as raw bytes.
        """
        ...

    def settle(self) -> None:
        """Return once all replicas have acknowledged everything that the processor queued.

        Raises Unavailable: queue it again.
        """
        ...


class Obligations(Protocol):
    """The processor's way to open purge orders, where its facts require them."""

    def wants(self, fact_kind: int) -> bool:
        """Return True if the processor's facts of this kind may open a purge order.

        That depends on the controls in force.
        """
        ...

    def open_for(self, changes: Sequence[MemberChange]) -> None:
        """Open the purge orders that these changes of the processor require, durably.

        A change that comes again opens no second order. Raises Unavailable.
        """
        ...


class NoObligations:
    """Opens no purge orders: for tests and measurements of the processor's loop alone."""

    def wants(self, fact_kind: int) -> bool:
        """Return False: no fact opens a purge order."""
        return False

    def open_for(self, changes: Sequence[MemberChange]) -> None:
        """Open no purge order."""


class InMemoryPublisher:
    """A publisher for the processor that only keeps in memory what was published.

    It has the same contract as the one over Kafka. `fail_next` is raised by the next `settle`.
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
        failure = self.fail_next
        records = self._queued
        refusals = self._queued_refusals
        self.fail_next = None
        self._queued = []
        self._queued_refusals = []
        if failure is not None:
            raise failure
        self.records.extend(records)
        self.refusals.extend(refusals)
