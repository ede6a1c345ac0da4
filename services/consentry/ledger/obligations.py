"""Opens in the ledger the purge orders that members' events require, before their commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from confluent_kafka import Producer

from consentry.domain.events import Fact, FactKind
from consentry.domain.orders import order_for_fact
from consentry.domain.records import Record
from consentry.domain.values import MemberId
from consentry.kafka.clients import producer_config, send
from consentry.kafka.controls_follower import ControlsFollower
from consentry.wire.catalog import Catalog
from consentry.wire.purge_orders import write_order
from consentry.wire.schemas import PURGE_ORDERS, topic_name


class FactChange(Protocol):
    """A member's fact and the record after it, from which the ledger opens purge orders.

    It is a tuple, as the hot path passes them.
    """

    @property
    def member(self) -> MemberId: ...
    @property
    def fact(self) -> Fact: ...
    @property
    def record(self) -> Record: ...


class KafkaObligations:
    """Writes the ledger's purge orders for members' events to the purge-orders topic.

    An order's id comes from its event, so that opening it again changes nothing. A policy that
    asks for a purge on opt-out counts for the opt-outs after this worker has read it, which takes
    some milliseconds.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        *,
        namespace: str,
        catalog: Catalog,
        controls: ControlsFollower,
    ) -> None:
        self._topic = topic_name(namespace, PURGE_ORDERS)
        self._catalog = catalog
        self._controls = controls
        self._producer = Producer(producer_config(kafka, "consentry-ledger"))

    def wants(self, fact_kind: int) -> bool:
        """Return True if facts of this kind may open a purge order under controls in force."""
        if fact_kind == FactKind.ERASED:
            return True
        return fact_kind == FactKind.OPTED_OUT and self._controls.controls.purges_on_opt_out

    def open_for(self, changes: Sequence[FactChange]) -> None:
        """Open the purge orders that facts require; wait until they are acknowledged.

        Raises Unavailable.
        """
        controls = self._controls.controls
        messages: list[tuple[bytes, bytes]] = []
        for change in changes:
            order = order_for_fact(change.member, change.fact, change.record, controls)
            if order is not None:
                messages.append((order.order_id.encode(), write_order(order, self._catalog)))
        if messages:
            send(self._producer, self._topic, messages)
