"""The thread that follows for a client: whatever ends it, nothing is fresh from then on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message
from tests.strategies import NAMESPACE, day, new_catalog, pause

from consentry.domain.values import Micros
from consentry.kafka import follower
from consentry.kafka.follower import LogPartition
from consentry.ops.metrics import Metrics
from consentry.trainer import snapshot_follower
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.sharing import ControlMessage
from consentry.trainer.snapshot_follower import SnapshotFollower
from consentry.wire.controls import write_control
from consentry.wire.frontiers import Frontier, write_frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS, FRONTIERS, RECORDS, topic_name

CATALOG = new_catalog()
NOW = day(9)
TIMEOUT_SECONDS = 10.0


class Consumer:
    """Stands where the Kafka client does: hands out what is put into `messages`."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.polled = threading.Semaphore(0)

    def assign(self, _: object) -> None:
        """Nothing has to be assigned."""

    def poll(self, _: float) -> Message | None:
        """The first message that waits."""
        self.polled.release()
        return self.messages.pop(0) if self.messages else None

    def consume(self, _: int, timeout: float) -> list[Message]:
        """All the others."""
        waiting, self.messages = self.messages, []
        return waiting

    def close(self) -> None:
        """Nothing is open."""

    def wait_for_two_polls(self) -> None:
        """After the second one, all that was handed out by the first is taken in."""
        while self.polled.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.polled.acquire(timeout=TIMEOUT_SECONDS)


def message(topic: str, offset: int, value: bytes) -> Message:
    """A message appended at NOW."""
    name = topic_name(NAMESPACE, topic)
    return Message(
        topic=name, partition=0, offset=offset, key=b"k", value=value, timestamp=(1, NOW // 1000)
    )


def report(error: KafkaError, offset: int) -> Message:
    """A report of the broker on records."""
    return Message(topic=topic_name(NAMESPACE, RECORDS), partition=0, offset=offset, error=error)


def frontier(offset: int) -> Message:
    """The proof that all up to NOW is in the records and controls so far."""
    proof = Frontier(0, "g", NOW, 0, 0, 1, False, "cc")
    return message(FRONTIERS, offset, write_frontier(proof, CATALOG))


@contextmanager
def following(
    monkeypatch: pytest.MonkeyPatch, messages: Sequence[Message], journal: Path | None = None
) -> Iterator[tuple[SnapshotFollower, Consumer, list[ControlMessage]]]:
    """A follower of one control and of one frontier, which were there at the start."""
    consumer = Consumer()
    consumer.messages = list(messages)
    ends: dict[LogPartition, int] = {(CONTROLS, 0): 1, (FRONTIERS, 0): 1, (RECORDS, 0): 0}
    monkeypatch.setattr(follower, "Consumer", lambda _: consumer)
    monkeypatch.setattr(snapshot_follower, "log_ends", lambda *_: ends)
    controls_log: list[ControlMessage] = []
    followed = SnapshotFollower(
        {},
        None,  # type: ignore[arg-type] # only `log_ends` asks it
        CATALOG,
        Snapshot(1, iso_jurisdictions()),
        partitions=1,
        name="test",
        namespace=NAMESPACE,
        staleness_seconds=5.0,
        clock=lambda: Micros(NOW),
        metrics=Metrics("test"),
        controls_log=controls_log,
        journal=journal,
    )
    followed.start()
    try:
        yield followed, consumer, controls_log
    finally:
        followed.stop()


def control(offset: int) -> Message:
    """A pause."""
    return message(CONTROLS, offset, write_control(pause(1, "HK", on=1), CATALOG))


def test_all_that_was_there_at_the_start_is_read_before_anything_is_fresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fresh without the last control, a trainer would read what that one paused."""
    journal = tmp_path / "journal"
    with following(monkeypatch, [frontier(0)], journal) as (followed, consumer, controls_log):
        consumer.wait_for_two_polls()
        detail_before = followed.stale_detail()
        consumer.messages = [control(0)]
        followed.wait_until_ready(TIMEOUT_SECONDS)

        assert detail_before == "what was there at the start has not all been read"
        assert followed.stale_detail() == ""
        assert followed.is_following
        assert [stored.offset for stored in controls_log] == [0]
        assert journal.read_text().count('"control"') == 1


@pytest.mark.parametrize(
    "end",
    [
        report(KafkaError(KafkaError.OFFSET_OUT_OF_RANGE), 3),
        report(KafkaError(KafkaError._FATAL, "fenced", True), -1),
    ],
    ids=["position lost", "fatal"],
)
def test_whatever_ends_the_thread_makes_everything_stale(
    end: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that went on with what it had would never hear of an opt-out again."""
    with following(monkeypatch, [control(0), frontier(0)]) as (followed, consumer, _):
        followed.wait_until_ready(TIMEOUT_SECONDS)
        consumer.messages = [end]
        followed._thread.join(timeout=TIMEOUT_SECONDS)

        assert not followed.is_following
        assert followed.stale_detail() == "following ended (PositionLost)"


def test_a_stopped_follower_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of anything any more."""
    with following(monkeypatch, [control(0), frontier(0)]) as (followed, _, _):
        followed.wait_until_ready(TIMEOUT_SECONDS)
        followed.stop()

        assert followed.stale_detail() == "the client was stopped"


def test_one_who_waits_for_a_token_is_let_go_when_following_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held for the whole wait, a training job stands still for nothing."""
    with following(monkeypatch, [control(0), frontier(0)]) as (followed, _, _):
        followed.wait_until_ready(TIMEOUT_SECONDS)
        token = followed.snapshot.freshness.token(followed.snapshot.positions, Micros(NOW))
        assert token is not None

        assert followed.behind(token, 0.0) == ""
        followed.stop()
        assert followed.behind(token, TIMEOUT_SECONDS) == "the client was stopped"
