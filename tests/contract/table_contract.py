"""What every consent table promises, whatever it is made of. Plug one in with a `table` fixture."""

from __future__ import annotations

import pytest
from tests.strategies import day
from tests.table import load_partition, store_partition

from consentry.domain.errors import Fenced, TableWentBack
from consentry.table.protocol import ConsentTable, Meta, PartitionClaim, Reading, Write

ONE, TWO = b"member-1", b"member-2"
MIN_EPOCH = 1_700_000_000_000


def owned(table: ConsentTable, partition: int = 3, *, next_offset: int = 10) -> int:
    """Claim a partition and begin a life of it; the epoch."""
    epoch = table.claim(partition, min_epoch=MIN_EPOCH).epoch
    table.start_generation(
        partition, epoch=epoch, generation="life-1", next_offset=next_offset, tainted=False
    )
    return epoch


class ConsentTableContract:
    """Every test takes `table`, empty and its own."""

    def test_a_partition_that_nobody_owned_is_empty(self, table: ConsentTable) -> None:
        """A new worker has to see that there is nothing, or it would trust what is not there."""
        assert table.meta(3) == Meta(None, None, None, None, False)
        assert load_partition(table, 3, [ONE]) == [None]
        assert table.read(ONE, [3]) == {3: Reading(Meta(None, None, None, None, False), None)}
        assert list(table.scan(3)) == []
        assert table.claim(3, min_epoch=MIN_EPOCH) == PartitionClaim(MIN_EPOCH, None, None, False)

    def test_each_claim_gets_a_higher_epoch_than_all_before(self, table: ConsentTable) -> None:
        """Two workers with one epoch could both write."""
        epochs = [
            table.claim(3, min_epoch=min_epoch).epoch
            for min_epoch in (MIN_EPOCH, MIN_EPOCH, MIN_EPOCH - 5, MIN_EPOCH + 100)
        ]

        assert epochs == [MIN_EPOCH, MIN_EPOCH + 1, MIN_EPOCH + 2, MIN_EPOCH + 100]

    def test_what_was_stored_is_loaded_in_the_order_asked(self, table: ConsentTable) -> None:
        """A mixed-up answer gives one member the consent of another."""
        epoch = owned(table)

        store_partition(
            table, 3, {ONE: b"1", TWO: b"2"}, epoch=epoch, expected_offset=10, next_offset=12
        )

        assert load_partition(table, 3, [TWO, b"nobody", ONE, TWO]) == [b"2", None, b"1", b"2"]
        assert load_partition(table, 3, []) == []
        assert dict(table.scan(3)) == {ONE: b"1", TWO: b"2"}
        assert table.meta(3) == Meta(epoch, 12, "life-1", None, False)

    def test_a_reading_has_record_and_meta_of_each_partition(self, table: ConsentTable) -> None:
        """Whoever takes a missing record for "nothing was said" has to see at the same moment
        that the table is whole.
        """
        epoch, other = owned(table, 3), owned(table, 4)
        store_partition(
            table, 3, {ONE: b"1"}, epoch=epoch, expected_offset=10, next_offset=11, tainted=True
        )
        table.heartbeat(4, epoch=other, expected_offset=10, frontier_at=day(1))

        assert table.read(ONE, [3, 4]) == {
            3: Reading(Meta(epoch, 11, "life-1", None, True), b"1"),
            4: Reading(Meta(other, 10, "life-1", day(1), False), None),
        }
        table.clear(3, epoch=epoch)
        assert table.read(ONE, [3])[3] == Reading(Meta(epoch, None, None, None, True), None)
        assert table.read(ONE, []) == {}

    def test_bytes_are_kept_as_they_are(self, table: ConsentTable) -> None:
        """A record that changes by one bit on its way is another consent."""
        epoch = owned(table)
        record = bytes(range(256))

        store_partition(table, 3, {ONE: record}, epoch=epoch, expected_offset=10, next_offset=11)

        assert load_partition(table, 3, [ONE]) == [record]

    def test_partitions_share_nothing(self, table: ConsentTable) -> None:
        """Each has its own order and its own owner."""
        epoch, other = owned(table, 3), owned(table, 4)

        store_partition(table, 3, {ONE: b"1"}, epoch=epoch, expected_offset=10, next_offset=11)
        table.clear(4, epoch=other)

        assert load_partition(table, 3, [ONE]) == [b"1"]
        assert load_partition(table, 4, [ONE]) == [None]

    def test_an_owner_that_was_replaced_can_write_nothing(self, table: ConsentTable) -> None:
        """A frozen worker that wakes would bring an older consent back."""
        old = owned(table)
        table.claim(3, min_epoch=MIN_EPOCH)

        with pytest.raises(Fenced):
            store_partition(table, 3, {ONE: b"old"}, epoch=old, expected_offset=10, next_offset=11)
        with pytest.raises(Fenced):
            table.heartbeat(3, epoch=old, expected_offset=10, frontier_at=day(1))
        with pytest.raises(Fenced):
            table.start_generation(3, epoch=old, generation="life-2", next_offset=0, tainted=False)
        with pytest.raises(Fenced):
            table.clear(3, epoch=old)

        assert load_partition(table, 3, [ONE]) == [None]
        assert table.meta(3)[1:] == (10, "life-1", None, False)

    def test_a_table_at_another_position_than_expected_has_gone_back(
        self, table: ConsentTable
    ) -> None:
        """A fail-over to an older copy must be noticed by the next write, not by a regulator."""
        epoch = owned(table)

        with pytest.raises(TableWentBack) as stored:
            store_partition(table, 3, {ONE: b"1"}, epoch=epoch, expected_offset=11, next_offset=12)
        with pytest.raises(TableWentBack) as beaten:
            table.heartbeat(3, epoch=epoch, expected_offset=11, frontier_at=day(1))

        assert stored.value.code == beaten.value.code == "table.offset"
        assert load_partition(table, 3, [ONE]) == [None]

    def test_a_heartbeat_notes_the_frontier_and_nothing_else(self, table: ConsentTable) -> None:
        """An idle partition proves that it is alive, and its owner that the table is still
        there.
        """
        epoch = owned(table)

        table.heartbeat(3, epoch=epoch, expected_offset=10, frontier_at=day(1))

        assert table.meta(3) == Meta(epoch, 10, "life-1", day(1), False)

    def test_a_taint_stays_until_the_next_life(self, table: ConsentTable) -> None:
        """A message without a readable key may have been anybody's opt-out; no later batch undoes
        that.
        """
        epoch = owned(table)
        store_partition(table, 3, {}, epoch=epoch, expected_offset=10, next_offset=11, tainted=True)
        store_partition(
            table, 3, {}, epoch=epoch, expected_offset=11, next_offset=12, tainted=False
        )

        claim = table.claim(3, min_epoch=MIN_EPOCH)
        table.start_generation(
            3, epoch=claim.epoch, generation="life-2", next_offset=12, tainted=False
        )

        assert claim.tainted
        assert not table.meta(3).tainted

    def test_an_emptied_partition_is_rebuilt_without_a_position(self, table: ConsentTable) -> None:
        """Half of a rebuild must look like what it is, and not like a whole table."""
        epoch = owned(table)
        store_partition(table, 3, {ONE: b"1"}, epoch=epoch, expected_offset=10, next_offset=11)

        table.clear(3, epoch=epoch)
        store_partition(table, 3, {TWO: b"2"}, epoch=epoch, expected_offset=None, next_offset=None)

        assert dict(table.scan(3)) == {TWO: b"2"}
        assert table.meta(3)[1:4] == (None, None, None)
        assert table.claim(3, min_epoch=MIN_EPOCH)[1:3] == (None, None)

    def test_many_records_fit_into_one_step(self, table: ConsentTable) -> None:
        """A batch after an outage is large; cut in two it would no longer be atomic."""
        epoch = owned(table)
        records = {b"member-%d" % number: b"record-%d" % number for number in range(9000)}

        store_partition(table, 3, records, epoch=epoch, expected_offset=10, next_offset=9010)

        assert load_partition(table, 3, list(records)) == list(records.values())
        assert dict(table.scan(3)) == records

    def test_several_partitions_go_in_one_round_trip_and_each_has_its_own_refusal(
        self, table: ConsentTable
    ) -> None:
        """One lost partition must neither stop nor excuse the others."""
        old, good = owned(table, 1), owned(table, 2)
        table.claim(1, min_epoch=MIN_EPOCH)

        refusals = table.store(
            [
                Write(1, {ONE: b"1"}, old, 10, 11),
                Write(2, {TWO: b"2"}, good, 10, 11),
                Write(4, {TWO: b"2"}, good, 10, 11),
            ]
        )

        assert isinstance(refusals[0], Fenced)
        assert refusals[1] is None
        assert isinstance(refusals[2], TableWentBack)
        assert table.load({1: [ONE], 2: [TWO, ONE], 4: []}) == {
            1: [None],
            2: [b"2", None],
            4: [],
        }

    def test_a_sound_server_passes_its_check(self, table: ConsentTable) -> None:
        """A check that refuses everything would be switched off."""
        table.check()
