"""Opens the purge orders that members' events oblige to, before those events are committed."""

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
    """A member's fact and the record after it, as the hot path hands them over."""

    @property
    def member(self) -> MemberId: ...
    @property
    def fact(self) -> Fact: ...
    @property
    def record(self) -> Record: ...


class KafkaObligations:
    """Writes orders to the purge-orders topic.

    An order's id comes from its event: opening it again changes nothing.

    A policy that asks for a purge on opt-out binds opt-outs from when this worker has read it, some
    milliseconds.
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
        """Whether facts of this kind may open an order under the controls in force."""
        if fact_kind == FactKind.ERASED:
            return True
        return fact_kind == FactKind.OPTED_OUT and self._controls.controls.purges_on_opt_out

    def open_for(self, changes: Sequence[FactChange]) -> None:
        """Open what these changes oblige to and wait for the acknowledgements. Raises
        Unavailable.
        """
        controls = self._controls.controls
        orders = (
            order_for_fact(change.member, change.fact, change.record, controls)
            for change in changes
        )
        messages = [
            (order.order_id.encode(), write_order(order, self._catalog))
            for order in orders
            if order
        ]
        if messages:
            send(self._producer, self._topic, messages)
