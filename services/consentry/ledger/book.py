"""What is owed: purge orders and the receipts that settle them. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from consentry.domain.controls import Control, Controls, PauseImposed
from consentry.domain.orders import PurgeOrder, Receipt, order_for_pause, owed
from consentry.domain.values import Micros


class Book:
    """The state of all orders, from messages in any order and any number of times.

    `declared` is every (subscriber, data set) that owes a receipt for each order.
    """

    def __init__(self, controls: Controls, declared: Iterable[tuple[str, str]]) -> None:
        self.controls = controls
        self.orders: dict[str, PurgeOrder] = {}
        self._declared = tuple(declared)
        self._receipts: dict[str, dict[tuple[str, str], Receipt]] = {}

    def read_control(self, control: Control) -> PurgeOrder | None:
        """Take a control in; the order it opens, unless that is open or settled already."""
        self.controls = self.controls.after(control)
        if not isinstance(control, PauseImposed):
            return None
        # As the controls hold it: a scope that nobody understands has become everything.
        key = (control.pause, control.version)
        held = next(pause for pause in self.controls.pauses if (pause.pause, pause.version) == key)
        order = order_for_pause(held, self.controls)
        if order is None or order.order_id in self.orders:
            return None
        return order

    def read_order(self, order: PurgeOrder) -> PurgeOrder | None:
        """Take an order in; what has to be published in answer (it is settled, whatever the message
        says).
        """
        known = self.orders.get(order.order_id)
        if known is None or order.is_settled:
            self.orders[order.order_id] = known = order
        if known.is_settled:
            return None if order.is_settled else known
        return self._settled(known)

    def read_receipt(self, receipt: Receipt) -> PurgeOrder | None:
        """Take a receipt in; the settled order to publish if it was the last one owed."""
        pair = (receipt.subscriber, receipt.dataset)
        self._receipts.setdefault(receipt.order_id, {})[pair] = receipt
        order = self.orders.get(receipt.order_id)
        return None if order is None or order.is_settled else self._settled(order)

    def _settled(self, order: PurgeOrder) -> PurgeOrder | None:
        if not self._declared or self.owed(order):
            return None
        # Noted as settled when it is read back from the log: until then, publishing may have
        # failed.
        return replace(order, is_settled=True)

    def owed(self, order: PurgeOrder) -> tuple[tuple[str, str], ...]:
        """The (subscriber, data set) pairs that still owe a final receipt for the order."""
        return owed(order, self._receipts.get(order.order_id, {}), self._declared)

    def open_and_overdue(self, now: Micros) -> dict[str, tuple[int, int]]:
        """Per declared subscriber: how many orders still wait for it, and how many of them are past
        their time.
        """
        counts = {subscriber: [0, 0] for subscriber, _ in self._declared}
        for order in self.orders.values():
            if not order.is_settled:
                for subscriber in {subscriber for subscriber, _ in self.owed(order)}:
                    counts[subscriber][0] += 1
                    counts[subscriber][1] += order.due_at < now
        return {
            subscriber: (open_orders, overdue)
            for subscriber, (open_orders, overdue) in counts.items()
        }
