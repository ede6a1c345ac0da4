"""The one follower of the log: where it begins, what it yields, and when its place is lost."""

from __future__ import annotations

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, Message
from tests.strategies import NAMESPACE

from consentry.kafka import follower
from consentry.kafka.follower import (
    LogFollower,
    LogPartition,
    PositionLost,
    log_partitions,
    start_offsets,
)
from consentry.wire.schemas import CONTROLS, FRONTIERS, PURGE_ORDERS, RECORDS, topic_name


class SilentConsumer:
    """Stands where the Kafka client does; the messages are given by hand."""

    def assign(self, _: object) -> None:
        """Nothing has to be assigned."""


def following(
    monkeypatch: pytest.MonkeyPatch,
    positions: dict[LogPartition, int],
    *,
    never_goes_back: bool = False,
) -> LogFollower:
    """A follower of two partitions of records, each with three messages at the start."""
    monkeypatch.setattr(follower, "Consumer", lambda _: SilentConsumer())
    return LogFollower(
        {},
        namespace=NAMESPACE,
        name="test",
        starts={(RECORDS, 0): 0, (RECORDS, 1): 0},
        positions=positions,
        ends={(RECORDS, 0): 3, (RECORDS, 1): 3},
        lost_fix="begin anew",
        never_goes_back=never_goes_back,
    )


def data(offset: int) -> Message:
    """A message that carries something."""
    return Message(topic=topic_name(NAMESPACE, RECORDS), partition=1, offset=offset, value=b"v")


def report(code: int, offset: int) -> Message:
    """A report of the broker."""
    topic = topic_name(NAMESPACE, RECORDS)
    return Message(topic=topic, partition=1, offset=offset, error=KafkaError(code))


def test_a_follower_begins_where_it_had_come_to() -> None:
    """From a later offset it would miss an opt-out; from an earlier one it starts for minutes."""
    partitions = log_partitions((CONTROLS, PURGE_ORDERS, FRONTIERS, RECORDS), 2)
    ends = dict.fromkeys(partitions, 100)
    positions = {(RECORDS, 0): 7, (CONTROLS, 0): 3, (PURGE_ORDERS, 0): 9, (FRONTIERS, 0): 100}

    assert start_offsets(ends, positions, always_whole=(PURGE_ORDERS,)) == {
        (CONTROLS, 0): 3,
        (PURGE_ORDERS, 0): OFFSET_BEGINNING,
        (FRONTIERS, 0): 60,
        (RECORDS, 0): 7,
        (RECORDS, 1): OFFSET_BEGINNING,
    }


def test_a_follower_is_caught_up_once_every_end_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called caught up too early, a trainer would allow members whose opt-out it has not read."""
    positions = {(RECORDS, 0): 3}
    log = following(monkeypatch, positions)

    is_caught_up_before = log.is_caught_up
    yielded = list(log.data_messages([report(KafkaError._PARTITION_EOF, 3)]))

    assert not is_caught_up_before
    assert yielded == []
    assert log.is_caught_up
    assert positions == {(RECORDS, 0): 3, (RECORDS, 1): 3}


@pytest.mark.parametrize("code", [KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE])
def test_a_lost_position_ends_following_after_what_was_there(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on from wherever the log now begins would skip what was deleted in between."""
    log = following(monkeypatch, {})
    messages = log.data_messages([data(0), report(code, 1), data(5)])

    assert next(messages)[1].offset() == 0
    with pytest.raises(PositionLost, match=r"kafka\.position_lost.* Fix: begin anew"):
        next(messages)


def test_an_offset_below_the_position_is_lost_only_where_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The controls are never read twice, so it means another topic; purge orders are read again."""
    strict = following(monkeypatch, {(RECORDS, 1): 2}, never_goes_back=True)
    lenient = following(monkeypatch, {(RECORDS, 1): 2})

    with pytest.raises(PositionLost):
        list(strict.data_messages([data(1)]))
    assert len(list(lenient.data_messages([data(1)]))) == 1


def test_a_position_never_moves_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position below a frontier that was believed would take the proof away again."""
    log = following(monkeypatch, {})

    log.move(RECORDS, 0, 5)
    log.move(RECORDS, 0, 4)

    assert log.position(RECORDS, 0) == 5
