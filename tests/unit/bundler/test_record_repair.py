"""Records that went back: what is published again, what is not, and that it comes to rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import chose, new_catalog

from consentry.bundler.record_repair import (
    BATCH_MAX,
    PAUSE_SECONDS_MAX,
    QUIET_SECONDS,
    RecordRepairer,
    RepairedRecord,
)
from consentry.bundles import BundleState, Regression
from consentry.domain.errors import Unavailable
from consentry.domain.records import Record, fold
from consentry.domain.values import Choice
from consentry.ops.metrics import Metrics
from consentry.wire.records import version_of, write_record

CATALOG = new_catalog()
FRAME = CATALOG.frame_of("ConsentRecord")
VERSIONS_MAX = 40


def versions(member: str, count: int = VERSIONS_MAX, *, first_event: int = 1) -> list[bytes]:
    """The records of a member after one, two, … choices."""
    record: Record | None = None
    found = []
    for number in range(count):
        choice = Choice.OPT_OUT if number % 2 else Choice.OPT_IN
        record = fold(
            record,
            chose(choice, first_event + number, on=number / 10, observed=number, member=member),
        )
        found.append(write_record(record, FRAME))
    return found


ANNA = versions("anna")
STRANGER = versions("anna", first_event=1000)
"""Another history of the same member."""


class Topic:
    """One partition of records, its follower and a repairer; time passes only where a test says
    so.
    """

    def __init__(self, *, guard: bool = True) -> None:
        self.log: list[tuple[bytes, bytes]] = []
        self.read = 0
        self.now = 100.0
        self.fails = False
        self.is_ready = True
        self.between: list[tuple[bytes, bytes]] = []
        """Appended by others between the next decision and its append, one at a time."""
        self.while_appending: list[tuple[bytes, bytes]] = []
        """Appended by others, and read, after the next append and before anybody hears that it is
        acknowledged.
        """
        self.metrics = Metrics("test")
        self.state = BundleState(1, CATALOG)
        self.repairer = RecordRepairer(
            self,
            newest=self.state.get,
            ready=lambda: self.is_ready,
            metrics=self.metrics,
            clock=lambda: self.now,
        )
        self._note = self.repairer.note if guard else None

    def publish(self, *values: bytes, member: bytes = b"anna") -> None:
        self.log += [(member, value) for value in values]

    def append(self, records: Sequence[RepairedRecord]) -> None:
        self.log += self.between[:1]
        del self.between[:1]
        if self.fails:
            raise Unavailable("no broker", code="kafka.unavailable")
        self.log += [(one.key, one.value) for one in records]
        if self.while_appending:
            self.log += self.while_appending
            self.while_appending = []
            self.follow()

    def follow(self) -> None:
        new = self.log[self.read :]
        self.read = len(self.log)
        self.state.apply_records(
            0, [key for key, _ in new], [value for _, value in new], self._note
        )

    def step(self, *, seconds: float = 0.0) -> int:
        """Follow to the end, then heal what is due."""
        self.now += seconds
        self.follow()
        return self.repairer.repair()

    def rest(self, *, rounds_max: int = 400) -> int:
        """Go on until nothing is open; the rounds it took."""
        for number in range(rounds_max):
            self.step(seconds=PAUSE_SECONDS_MAX / 4)
            self.follow()
            if not self.repairer.open_count:
                return number
        raise AssertionError("it never comes to rest")

    def compacted(self) -> dict[bytes, bytes]:
        """What a broker keeps in the end: the last message of each key."""
        return dict(self.log)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def test_the_newest_record_is_published_again_byte_for_byte() -> None:
    """Compaction keeps the last message: a member who opted out would come back into training an
    hour later.
    """
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])

    assert topic.step() == 1

    assert topic.compacted() == {b"anna": ANNA[1]}
    assert topic.rest() == 0
    assert len(topic.log) == 4, "once is enough"
    assert topic.count("consentry_bundler_regressions_total") == 1
    assert topic.count("consentry_bundler_heals_total", outcome="appended") == 1


def test_without_the_guard_the_older_record_is_what_remains() -> None:
    """The test above has to be able to fail."""
    topic = Topic(guard=False)
    topic.publish(ANNA[0], ANNA[1], ANNA[0])

    topic.step()

    assert topic.compacted() == {b"anna": ANNA[0]}


def test_nothing_is_published_where_a_newer_record_came_meanwhile() -> None:
    """A repetition would be an older version behind a newer one: the very thing that is to be
    ended.
    """
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    topic.follow()
    topic.publish(ANNA[2])

    assert topic.step() == 0

    assert topic.compacted() == {b"anna": ANNA[2]}
    assert topic.count("consentry_bundler_heals_total", outcome="overtaken") == 1
    assert topic.repairer.open_count == 0


def test_a_newer_record_between_decision_and_append_is_healed_in_the_next_round() -> None:
    """Nobody can decide and append in one step; the repetition would stay behind a newer opt-out
    for ever.
    """
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    topic.between = [(b"anna", ANNA[2])]

    topic.step()
    assert topic.compacted() == {b"anna": ANNA[1]}, "the race was lost"
    topic.rest()

    assert topic.compacted() == {b"anna": ANNA[2]}
    assert [version_of(value) for _, value in topic.log] == [1, 2, 1, 3, 2, 3]
    assert topic.state.get(b"anna") == ANNA[2]


def test_an_older_record_that_comes_while_the_repetition_is_acknowledged_is_not_forgotten() -> None:
    """The second wake of the same frozen worker would be taken for the first, which was just
    healed.
    """
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    topic.while_appending = [(b"anna", ANNA[0])]

    topic.step()
    assert topic.repairer.open_count == 1
    topic.rest()

    assert topic.compacted() == {b"anna": ANNA[1]}


@given(
    races=st.integers(0, VERSIONS_MAX - 2),
    echoes=st.lists(st.integers(0, VERSIONS_MAX - 1), max_size=5),
)
def test_it_comes_to_rest_however_often_the_race_is_lost(races: int, echoes: list[int]) -> None:
    """A member who chooses again in every unlucky moment would have two services write to each
    other for ever.
    """
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    topic.between = [(b"anna", value) for value in ANNA[2 : 2 + races]]
    topic.while_appending = [(b"anna", ANNA[echo]) for echo in echoes if echo < 2]

    rounds = topic.rest()

    newest = max((value for _, value in topic.log), key=version_of)
    assert topic.compacted() == {b"anna": newest}
    assert not topic.between
    assert (
        topic.count("consentry_bundler_heals_total", outcome="appended") <= races + len(echoes) + 2
    )
    assert rounds <= 8 * (races + len(echoes) + 2)


def test_a_member_who_never_rests_costs_ever_fewer_messages_and_is_told() -> None:
    """An endless loop at full speed would fill the topic; one that is given up would lose the
    newest record.
    """
    topic = Topic()
    topic.publish(ANNA[-2], ANNA[-1])
    started = topic.now

    while topic.now < started + 600:
        topic.publish(ANNA[-2])  # a worker that publishes the same old record again and again
        topic.step(seconds=0.1)

    assert 20 <= topic.count("consentry_bundler_heals_total", outcome="appended") <= 32
    assert topic.repairer.unrepaired_seconds() > 590, "an alert needs to see that it goes on"
    topic.rest()
    assert topic.compacted() == {b"anna": ANNA[-1]}


def test_one_who_went_back_again_after_a_long_rest_is_healed_at_once() -> None:
    """What happened last week must not slow down what is done today."""
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    topic.step()
    topic.step(seconds=QUIET_SECONDS + 1)
    topic.publish(ANNA[0])

    assert topic.step() == 1
    assert topic.repairer.unrepaired_seconds() == 0


def test_what_the_broker_did_not_acknowledge_is_tried_again_and_told() -> None:
    """A heal that was lost with a broker would be remembered as done."""
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    topic.fails = True

    for _ in range(10):
        topic.step(seconds=7)
    assert topic.repairer.unrepaired_seconds() >= 60
    assert topic.count("consentry_bundler_heals_total", outcome="failed") >= 3
    topic.fails = False
    topic.rest()

    assert topic.compacted() == {b"anna": ANNA[1]}
    assert topic.repairer.unrepaired_seconds() == 0


def test_nothing_is_published_before_the_log_was_read_to_its_end() -> None:
    """In the middle of the log the newest record is not known: what looks newest may be an older
    one.
    """
    topic = Topic()
    topic.is_ready = False
    topic.publish(ANNA[0], ANNA[1], ANNA[0])
    assert topic.step() == 0
    topic.publish(ANNA[2])
    topic.is_ready = True

    assert topic.step() == 0
    assert topic.compacted() == {b"anna": ANNA[2]}


def test_two_histories_of_one_member_are_not_healed_and_the_member_is_held() -> None:
    """Nobody can say which of the two lost an event; it may be the newer one that lost the
    opt-out.
    """
    topic = Topic()
    topic.publish(ANNA[0], ANNA[1], STRANGER[0])

    assert topic.step() == 0

    assert topic.compacted() == {b"anna": STRANGER[0]}
    assert topic.count("consentry_bundler_divergences_total") == 1
    assert topic.state.damaged == {b"anna"}
    assert topic.repairer.open_count == 0


def test_a_partition_that_went_back_as_a_whole_is_healed_batch_by_batch() -> None:
    """A worker that wakes up in the middle of a replay publishes thousands, not one."""
    topic = Topic()
    members = [f"m{number}" for number in range(BATCH_MAX + 5)]
    records = {member.encode(): versions(member, 2) for member in members}
    for turn in (0, 1, 0):
        for member, found in records.items():
            topic.publish(found[turn], member=member)

    assert topic.step() == BATCH_MAX
    assert topic.step() == 5

    assert topic.compacted() == {member: found[1] for member, found in records.items()}


def test_the_repairer_ends_when_it_is_stopped() -> None:
    """A thread that stays would keep the service from ending, and be killed in the middle of a
    write.
    """
    topic = Topic()
    topic.repairer.start()
    assert topic.repairer.is_alive

    topic.repairer.stop()

    assert not topic.repairer.is_alive


@pytest.mark.parametrize("older", [0, 1])
def test_a_regression_is_taken_as_the_state_tells_it(older: int) -> None:
    """The one who follows and the one who heals are two; a word in between that is wrong would heal
    nobody.
    """
    topic = Topic()
    topic.repairer.note(Regression(0, b"anna", ANNA[2], ANNA[older]))
    topic.state.apply_records(0, [b"anna"], [ANNA[2]])

    assert topic.repairer.repair() == 1
    assert topic.log == [(b"anna", ANNA[2])]
