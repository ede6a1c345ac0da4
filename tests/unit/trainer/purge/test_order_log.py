"""The orders that a data set is verified by: the newest form of each, and every erasure for good."""

from __future__ import annotations

from dataclasses import replace

from tests.strategies import day, new_catalog
from tests.unit.trainer.purge.dataset_contract import erasure, of_scope

from consentry.domain.orders import PurgeOrder
from consentry.trainer.purge.order_log import newest_orders, orders_to_verify
from consentry.wire.messages import StoredMessage
from consentry.wire.purge_orders import write_order

CATALOG = new_catalog()


def stored(offset: int, order: PurgeOrder | None) -> StoredMessage:
    """An order as the topic holds it; None is a deleted one."""
    value = None if order is None else write_order(order, CATALOG)
    return StoredMessage(0, offset, b"key", value, day(1))


def settled(order: PurgeOrder) -> PurgeOrder:
    """The same order once all receipts are there."""
    return replace(order, is_settled=True)


def test_the_newest_form_of_an_order_counts() -> None:
    """An order that was settled since would be verified as open."""
    messages = [stored(0, erasure("ana")), stored(1, None), stored(2, settled(erasure("ana")))]

    [order] = newest_orders(messages, CATALOG)

    assert order.is_settled


def test_a_settled_erasure_is_verified_and_a_settled_pause_is_not() -> None:
    """Whoever was erased stays erased, also in rows that came later. A pause may be lifted."""
    orders = [settled(erasure("ana")), settled(of_scope("HK")), erasure("bob")]

    assert orders_to_verify(orders, []) == [orders[0], orders[2]]


def test_an_order_that_is_named_is_verified_though_it_is_settled() -> None:
    """Somebody asks about just that one."""
    pause = settled(of_scope("HK"))

    assert orders_to_verify([pause], [pause.order_id]) == [pause]
