"""Messages that wait for a place in the queue, and whoever waits for their acknowledgement."""

from __future__ import annotations

import asyncio
from typing import Final

from tests.strategies import NAMESPACE, new_catalog

from consentry.domain.errors import ConsentryError
from consentry.gateway.kafka_submit import OutMessage, Submitter
from consentry.kafka.sender import Delivered, Headers, QueueFull, Sender, TopicPosition

MESSAGE: Final = OutMessage("id", b"m:1", b"value", [])


class Queue(Sender):
    """Takes nothing the first few times, then all; acknowledges what it has when it is served, as
    librdkafka does.
    """

    def __init__(self, *, full: int) -> None:
        self._full = full
        self._queue: list[Delivered] = []
        self._offset = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Headers, delivered: Delivered
    ) -> None:
        if self._full:
            self._full -= 1
            raise QueueFull
        self._queue.append(delivered)

    def serve(self, seconds: float = 0.0) -> None:
        told, self._queue = self._queue, []
        for delivered in told:
            self._offset += 1
            delivered(TopicPosition(0, self._offset - 1))


def sent(queue: Queue, count: int) -> list[TopicPosition | ConsentryError | None]:
    """What becomes of so many messages."""

    async def send() -> list[TopicPosition | ConsentryError | None]:
        batch = Submitter(queue, new_catalog(), namespace=NAMESPACE, answer_seconds=1.0).batch()
        await batch.send([MESSAGE] * count)
        return await batch.outcomes()

    return asyncio.run(send())


def test_what_was_taken_after_waiting_for_a_place_is_told() -> None:
    """While nothing is in the queue nobody serves it; whoever puts something in has to see to that
    again.
    """
    for full in (0, 1, 3):
        assert sent(Queue(full=full), 3) == [
            TopicPosition(0, 0),
            TopicPosition(0, 1),
            TopicPosition(0, 2),
        ]


def test_nothing_is_waited_for_where_nothing_was_sent() -> None:
    """An empty file is answered at once."""
    assert sent(Queue(full=0), 0) == []
