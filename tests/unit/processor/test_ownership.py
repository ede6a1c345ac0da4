"""Taking a partition over: what is whole is used, what is not is rebuilt, and what cannot be right
is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from tests.strategies import chose, day, folded, moved
from tests.table import load_partition, store_partition

from consentry.domain.errors import Unavailable, UnsafeSetting
from consentry.domain.events import FactKind
from consentry.domain.records import Record
from consentry.domain.values import Choice, Micros
from consentry.processor.ownership import LogSpan, Publish, Takeover, last_frontiers, take_over
from consentry.processor.ports import Published
from consentry.table.memory import InMemoryTable
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage
from consentry.wire.records import read_record, version_of, write_record

FRAME = frame(1)
KEY = b"member-1"
MIN_EPOCH = 1000
HOME, OUT = moved("US", 1, on=1), chose(Choice.OPT_OUT, 2, on=2)


def raw_of(record: Record | None) -> bytes:
    """The bytes of a record."""
    assert record is not None
    return write_record(record, FRAME)


def stored(offset: int, value: bytes | None, key: bytes | None = KEY) -> StoredMessage:
    """A message of the records topic."""
    return StoredMessage(0, offset, key, value, Micros(0))


def frontier(generation: str, *, next_offset: int, tainted: bool = False) -> Frontier:
    """The last frontier that was published."""
    return Frontier(0, generation, day(5), next_offset, 0, 0, tainted)


def take(
    table: InMemoryTable,
    span: LogSpan,
    last: Frontier | None = None,
    records: Iterable[StoredMessage] = (),
    publish: Publish = lambda _held: None,
) -> Takeover:
    """Take partition 0 over."""
    return take_over(
        table,
        0,
        span=span,
        last_frontier=last,
        records=lambda: records,
        publish=publish,
        min_epoch=MIN_EPOCH,
    )


@pytest.fixture
def table() -> InMemoryTable:
    return InMemoryTable()


class TestNew:
    def test_a_new_partition_begins_where_its_log_begins(self, table: InMemoryTable) -> None:
        """Beginning at the end would skip what members said before the first worker started."""
        takeover = take(table, LogSpan(3, 50, None))

        assert (takeover.start_offset, takeover.owned.next_offset, takeover.rebuilt) == (
            3,
            3,
            False,
        )
        assert table.meta(0).generation == takeover.owned.generation

    def test_two_lives_have_two_names(self, table: InMemoryTable) -> None:
        """A reader has to see that the table is not the one it knew."""
        assert (
            take(table, LogSpan(0, 0, None)).owned.generation
            != take(InMemoryTable(), LogSpan(0, 0, None)).owned.generation
        )


class TestWhole:
    def test_a_whole_table_is_read_on_from_what_was_committed(self, table: InMemoryTable) -> None:
        """What lies between is stored but perhaps not published; it is read again and published."""
        first = take(table, LogSpan(0, 50, None)).owned
        store_partition(table, 0, {KEY: b"x"}, epoch=first.epoch, expected_offset=0, next_offset=20)

        takeover = take(table, LogSpan(0, 50, 15), frontier(first.generation, next_offset=15))

        assert (takeover.start_offset, takeover.owned.next_offset, takeover.rebuilt) == (
            15,
            20,
            False,
        )
        assert takeover.owned.epoch > first.epoch
        assert takeover.owned.acknowledged_offset == 15

    def test_a_table_whose_first_batch_was_never_committed_is_read_from_the_beginning(
        self, table: InMemoryTable
    ) -> None:
        """The worker fell between storing and publishing; without this no follower ever hears of
        that batch.
        """
        first = take(table, LogSpan(2, 50, None)).owned
        store_partition(table, 0, {KEY: b"x"}, epoch=first.epoch, expected_offset=2, next_offset=20)

        assert take(table, LogSpan(2, 50, None)).start_offset == 2

    def test_where_commits_were_lost_the_last_frontier_says_what_was_published(
        self, table: InMemoryTable
    ) -> None:
        """A group that was idle for a week loses its offsets; reading years of log again would be
        an outage.
        """
        first = take(table, LogSpan(0, 50, None)).owned
        store_partition(table, 0, {KEY: b"x"}, epoch=first.epoch, expected_offset=0, next_offset=20)

        assert (
            take(
                table, LogSpan(0, 50, None), frontier(first.generation, next_offset=12)
            ).start_offset
            == 12
        )

    def test_a_table_that_went_back_is_read_on_from_where_it_is(self, table: InMemoryTable) -> None:
        """The last second of a server that lost its power is folded again from the log."""
        first = take(table, LogSpan(0, 50, None)).owned
        store_partition(table, 0, {}, epoch=first.epoch, expected_offset=0, next_offset=20)

        takeover = take(table, LogSpan(0, 50, 40), frontier(first.generation, next_offset=40))

        assert (takeover.start_offset, takeover.owned.next_offset, takeover.rebuilt) == (
            20,
            20,
            False,
        )

    def test_a_taint_is_taken_over(self, table: InMemoryTable) -> None:
        """A restart must not forget that somebody's opt-out may be among the unreadable."""
        first = take(table, LogSpan(0, 50, None)).owned
        store_partition(
            table, 0, {}, epoch=first.epoch, expected_offset=0, next_offset=20, tainted=True
        )

        assert take(table, LogSpan(0, 50, 20)).owned.tainted


class TestRebuild:
    def test_a_lost_table_is_rebuilt_from_the_newest_version_of_each_record(
        self, table: InMemoryTable
    ) -> None:
        """Records may stand in any order: a worker that woke late published an older one after a
        newer.
        """
        older, newer = raw_of(folded(HOME)), raw_of(folded(HOME, OUT))

        takeover = take(
            table,
            LogSpan(0, 50, 20),
            frontier("lost", next_offset=25),
            [stored(0, newer), stored(1, older)],
        )

        assert takeover.rebuilt
        assert load_partition(table, 0, [KEY]) == [newer]
        assert (takeover.start_offset, takeover.owned.next_offset) == (20, 25)

    def test_a_table_of_another_life_than_the_frontier_speaks_of_is_rebuilt(
        self, table: InMemoryTable
    ) -> None:
        """A server that was restored from somewhere holds somebody's table, not ours."""
        stranger = take(table, LogSpan(0, 50, None)).owned
        store_partition(
            table, 0, {b"member-9": b"x"}, epoch=stranger.epoch, expected_offset=0, next_offset=20
        )

        takeover = take(
            table,
            LogSpan(0, 50, 20),
            frontier("another", next_offset=20),
            [stored(0, raw_of(folded(OUT)))],
        )

        assert takeover.rebuilt
        assert dict(table.scan(0)).keys() == {KEY}
        assert takeover.owned.generation not in ("another", stranger.generation)

    def test_a_rebuild_that_was_cut_short_starts_anew(self, table: InMemoryTable) -> None:
        """Half of the records would look like members who never said anything."""
        epoch = table.claim(0, min_epoch=MIN_EPOCH).epoch
        store_partition(
            table, 0, {b"member-9": b"half"}, epoch=epoch, expected_offset=None, next_offset=None
        )

        takeover = take(
            table,
            LogSpan(0, 50, 20),
            frontier("lost", next_offset=20),
            [stored(0, raw_of(folded(OUT)))],
        )

        assert takeover.rebuilt
        assert dict(table.scan(0)).keys() == {KEY}

    def test_a_taint_that_only_the_frontier_knows_survives_the_rebuild(
        self, table: InMemoryTable
    ) -> None:
        """The table is gone; what it knew of unreadable messages is not."""
        takeover = take(table, LogSpan(0, 50, 20), frontier("lost", next_offset=20, tainted=True))

        assert takeover.owned.tainted
        assert table.meta(0).tainted

    def test_messages_without_key_or_value_are_no_records(self, table: InMemoryTable) -> None:
        """A tombstone that somebody wrote by hand must not end a rebuild."""
        takeover = take(
            table,
            LogSpan(0, 50, 20),
            frontier("lost", next_offset=20),
            [stored(0, None), stored(1, b"x", None)],
        )

        assert takeover.rebuilt
        assert dict(table.scan(0)) == {}

    def test_a_damaged_record_does_not_come_back_as_a_member_who_never_opted_out(
        self, table: InMemoryTable
    ) -> None:
        """A row that names its country would then be allowed, and the next event publishes the
        forgetting.
        """
        good = raw_of(folded(HOME, OUT))
        damaged = good[:20] + bytes((good[20] ^ 1,)) + good[21:]

        takeover = take(
            table, LogSpan(0, 50, 20), frontier("lost", next_offset=20), [stored(0, damaged)]
        )

        [raw] = load_partition(table, 0, [KEY])
        assert takeover.owned.tainted or (raw is not None and read_record(raw, KEY).facts)

    def test_a_member_who_is_held_for_a_damaged_record_is_published_as_held(
        self, table: InMemoryTable
    ) -> None:
        """Trainers that started after the damage was compacted away would go on with what stood
        before it.
        """
        good = raw_of(folded(HOME, OUT))
        damaged = good[:20] + bytes((good[20] ^ 1,)) + good[21:]
        published: list[Published] = []

        take(
            table,
            LogSpan(0, 50, 20),
            frontier("lost", next_offset=20),
            [stored(0, raw_of(folded(HOME))), stored(1, damaged)],
            publish=published.extend,
        )

        [held] = published
        assert [held.record] == load_partition(table, 0, [KEY])
        assert read_record(held.record, KEY).facts[-1].kind is FactKind.QUARANTINED
        assert version_of(held.record) > version_of(damaged), (
            "followers pass over what is not newer"
        )

    def test_a_hold_that_could_not_be_published_begins_no_life(self, table: InMemoryTable) -> None:
        """The worker would take the table for whole after that, and the hold would never be told to
        anybody.
        """

        def away(_held: object) -> None:
            raise Unavailable("The broker is away.", code="kafka.unavailable")

        good = raw_of(folded(HOME, OUT))
        with pytest.raises(Unavailable):
            take(
                table,
                LogSpan(0, 50, 20),
                frontier("lost", next_offset=20),
                [stored(0, good[:-1] + bytes((good[-1] ^ 1,)))],
                publish=away,
            )

        assert table.meta(0).generation is None


class TestTwoHistories:
    def test_a_later_record_of_another_history_holds_the_member(self, table: InMemoryTable) -> None:
        """A partly lost table made it from one event alone; which of the two is right, nobody can
        tell.
        """
        long, short = raw_of(folded(HOME, chose(Choice.OPT_IN, 3, on=3))), raw_of(folded(OUT))

        take(
            table,
            LogSpan(0, 50, 20),
            frontier("lost", next_offset=20),
            [stored(0, long), stored(1, short)],
        )

        [raw] = load_partition(table, 0, [KEY])
        assert raw is not None
        assert read_record(raw, KEY).facts[-1].kind is FactKind.QUARANTINED

    def test_a_late_older_record_of_the_same_history_changes_nothing(
        self, table: InMemoryTable
    ) -> None:
        """A worker that was frozen publishes what was true before; that alone must hold nobody."""
        new, old = raw_of(folded(HOME, OUT)), raw_of(folded(HOME))

        take(
            table,
            LogSpan(0, 50, 20),
            frontier("lost", next_offset=20),
            [stored(0, new), stored(1, old)],
        )

        assert load_partition(table, 0, [KEY]) == [new]


class TestRefused:
    def test_a_log_that_begins_after_what_was_committed_is_refused(
        self, table: InMemoryTable
    ) -> None:
        """What lay between was never applied, and nobody would notice."""
        with pytest.raises(UnsafeSetting) as caught:
            take(table, LogSpan(200, 300, 100), frontier("lost", next_offset=100))

        assert caught.value.code == "log.unreachable"

    @pytest.mark.parametrize(
        ("span", "position"),
        [(LogSpan(30, 50, 20), 20), (LogSpan(0, 10, 20), 20), (LogSpan(0, 0, 20), 20)],
    )
    def test_a_log_that_does_not_hold_the_tables_position_is_refused(
        self, table: InMemoryTable, span: LogSpan, position: int
    ) -> None:
        """Truncated, or made anew: going on would forget whatever was in the gap."""
        first = take(table, LogSpan(0, 50, None)).owned
        store_partition(table, 0, {}, epoch=first.epoch, expected_offset=0, next_offset=position)

        with pytest.raises(UnsafeSetting) as caught:
            take(table, span, frontier(first.generation, next_offset=position))

        assert caught.value.code == "log.unreachable"

    def test_a_lost_table_and_a_truncated_log_are_refused(self, table: InMemoryTable) -> None:
        """Nothing is left that could say what the gap held."""
        with pytest.raises(UnsafeSetting):
            take(table, LogSpan(0, 10, 20), frontier("lost", next_offset=20))


def test_the_last_frontier_of_each_partition_counts() -> None:
    """The topic holds one a second until it is compacted."""
    first, second = frontier("a", next_offset=1), frontier("a", next_offset=2)

    assert last_frontiers([first, second]) == {0: second}
