"""Purge orders read from their Kafka topic, and receipts of purges sent to theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import Producer

from consentry.domain.orders import PurgeOrder, PurgeReason, Receipt
from consentry.kafka.clients import producer_config, read_all, send
from consentry.wire.catalog import Catalog
from consentry.wire.messages import StoredMessage
from consentry.wire.purge_orders import read_order, write_receipt
from consentry.wire.schemas import PURGE_ORDERS, RECEIPTS, topic_name


def read_orders_to_verify(
    kafka: Mapping[str, str], catalog: Catalog, *, namespace: str, order_ids: Sequence[str]
) -> list[PurgeOrder]:
    """Return the logged purge orders to verify a data set by; see orders_to_verify.

    Raises Refused and Unavailable as read_all.
    """
    messages = read_all(kafka, topic_name(namespace, PURGE_ORDERS))
    return orders_to_verify(newest_orders(messages, catalog), order_ids)


def newest_orders(messages: Iterable[StoredMessage], catalog: Catalog) -> list[PurgeOrder]:
    """Return the newest form of each purge order in its Kafka topic."""
    newest: dict[str, PurgeOrder] = {}
    for message in messages:
        if message.value is not None:
            order = read_order(message.value, catalog)
            newest[order.order_id] = order
    return list(newest.values())


def orders_to_verify(orders: Sequence[PurgeOrder], order_ids: Sequence[str]) -> list[PurgeOrder]:
    """Return the purge orders that are open, named in `order_ids`, or erasures.

    A settled erasure stays: it also holds for rows that come later.
    """
    selected: list[PurgeOrder] = []
    for order in orders:
        is_erasure = order.because is PurgeReason.ERASURE
        if is_erasure or not order.is_settled or order.order_id in order_ids:
            selected.append(order)
    return selected


def send_receipts(
    kafka: Mapping[str, str], catalog: Catalog, *, namespace: str, receipts: Sequence[Receipt]
) -> None:
    """Send a subscriber's receipts of a purge to Kafka, and wait until all are acknowledged.

    Raises Unavailable where the broker does not acknowledge them.
    """
    key = receipts[0].subscriber.encode()
    producer = Producer(producer_config(kafka, "consentry-purge"))
    messages = [(key, write_receipt(receipt, catalog)) for receipt in receipts]
    send(producer, topic_name(namespace, RECEIPTS), messages)
