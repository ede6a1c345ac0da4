"""The in-memory forms keep the same contracts as the real ones: what is proven on them holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.contract.publisher_contract import ONE, PublisherContract, Readable
from tests.contract.registry_contract import RegistryContract
from tests.contract.table_contract import ConsentTableContract, owned
from tests.table import store_partition

from consentry.domain.errors import TableWentBack, Unavailable
from consentry.processor.ports import InMemoryPublisher
from consentry.table.memory import InMemoryTable
from consentry.wire.catalog import InMemoryRegistry


class TestInMemoryTable(ConsentTableContract):
    @pytest.fixture
    def table(self) -> InMemoryTable:
        return InMemoryTable()

    def test_a_wiped_table_has_gone_back(self, table: InMemoryTable) -> None:
        """The simulated loss has to look like the real one."""
        epoch = owned(table)

        table.wipe()

        with pytest.raises(TableWentBack):
            store_partition(table, 3, {}, epoch=epoch, expected_offset=10, next_offset=11)


class TestInMemoryRegistry(RegistryContract):
    @pytest.fixture
    def registry(self) -> InMemoryRegistry:
        return InMemoryRegistry()


class TestInMemoryPublisher(PublisherContract):
    @pytest.fixture
    def publisher(self) -> InMemoryPublisher:
        return InMemoryPublisher()

    @pytest.fixture
    def readable(self, publisher: InMemoryPublisher) -> Callable[[], Readable]:
        return lambda: Readable(publisher.records, publisher.refusals)

    def test_nothing_can_be_read_before_it_is_settled(self, publisher: InMemoryPublisher) -> None:
        """Queued is not acknowledged: a simulation that mixed them up would prove nothing."""
        publisher.publish(1, [ONE])

        assert publisher.records == []

    def test_what_failed_to_settle_has_to_be_published_again(
        self, publisher: InMemoryPublisher
    ) -> None:
        """The same as with a broker that went away."""
        publisher.publish(1, [ONE])
        publisher.fail_next = Unavailable("away", code="kafka.unavailable")
        with pytest.raises(Unavailable):
            publisher.settle()

        publisher.settle()

        assert publisher.records == []
