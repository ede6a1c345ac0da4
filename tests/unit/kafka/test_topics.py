"""What `apply_topics` promises of a topic that it made: whoever starts next finds it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from consentry.domain.errors import Refused
from consentry.kafka import topics
from consentry.wire.schemas import CONTROLS, Topic
from consentry.wire.schemas import topics as declared

STEP = topics.Step("create", "some.controls", "", declared()[CONTROLS])


class Admin:
    """Makes any topic at once."""

    def __init__(self, _: Any) -> None:
        pass

    def create_topics(self, new: list[Any], **_: Any) -> dict[str, Future[None]]:
        """As the real one."""
        done: Future[None] = Future()
        done.set_result(None)
        return {one.topic: done for one in new}


@pytest.fixture
def not_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a broker is still to say that it does not know the topic; and every question to
    it.
    """
    left = [3]

    def count(_: Any, topic: str) -> int:
        assert topic == STEP.topic
        left[0] -= 1
        if left[0] >= 0:
            raise Refused("It does not exist.", code="kafka.topic_missing", fix="wait")
        return 8

    monkeypatch.setattr(topics, "AdminClient", Admin)
    monkeypatch.setattr(topics, "partition_count", count)
    monkeypatch.setattr(topics, "_SEEN_PAUSE_SECONDS", 0.001)
    return left


def test_a_topic_that_was_made_is_waited_for(not_seen: list[int]) -> None:
    """A processor that is started next would end because its topic is missing."""
    assert isinstance(STEP.declared, Topic)
    assert list(topics.apply_topics({"bootstrap.servers": "nowhere"}, [STEP], profile="local")) == [
        STEP
    ]
    assert not_seen == [-1]


def test_a_topic_that_never_appears_is_an_error(
    not_seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for ever tells nobody what is wrong."""
    not_seen[0] = 10**9
    monkeypatch.setattr(topics, "_SEEN_SECONDS", 0.01)
    with pytest.raises(Refused, match="does not exist"):
        list(topics.apply_topics({"bootstrap.servers": "nowhere"}, [STEP], profile="local"))
