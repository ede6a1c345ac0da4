"""The outcome of an event sent by the producer SDK: accepted, with a token, or not."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from consentry.domain.events import SentEvent
from consentry.domain.values import Micros
from consentry.kafka.sender import Undelivered
from consentry.wire.tokens import Token, TokenKeys, write_token


class Signer(NamedTuple):
    """The parts that all tokens of one producer share: the log of its offsets, and the keys."""

    log: bytes
    keys: TokenKeys


class Acceptance(NamedTuple):
    """The broker's acknowledgement of one event that the producer SDK sent.

    `accepted_at` is when it was accepted, in microseconds since 1970 UTC.
    """

    identity: bytes
    partition: int
    offset: int
    accepted_at: Micros
    signer: Signer

    @property
    def event_id(self) -> uuid.UUID:
        """The sent event's id: the caller's, or the one that was made for it."""
        return uuid.UUID(bytes=self.identity)

    @property
    def token(self) -> str:
        """The consistency token of this sent event.

        Pass it on to readers whose answers must take this event into account.
        """
        next_offsets = {self.partition: self.offset + 1}
        token = Token(self.signer.log, next_offsets, 0, self.accepted_at)
        return write_token(token, self.signer.keys)

    def __repr__(self) -> str:
        return (
            f"Acceptance(event_id={self.event_id}, partition={self.partition}, "
            f"offset={self.offset})"
        )


class EventUndelivered(Undelivered):
    """Raised by the producer SDK for events not acknowledged: send the very same again.

    With `is_unknown` they may count already. `event` is the first of `unacknowledged`. `accepted`
    has the events of the same call that were acknowledged.
    """

    def __init__(
        self,
        first: Undelivered,
        unacknowledged: Sequence[SentEvent],
        *,
        is_unknown: bool,
        accepted: Sequence[Acceptance] = (),
    ) -> None:
        # Not the parent's constructor: the sentence about the broker's error was made there.
        super(Undelivered, self).__init__(
            first.message,
            code=first.code,
            fix="send the very same event again, producer.send(error.event): it counts once; "
            "never make a new one",
        )
        self.is_unknown = is_unknown
        self.event = unacknowledged[0]
        self.unacknowledged = tuple(unacknowledged)
        self.accepted = tuple(accepted)
