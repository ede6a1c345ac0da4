"""The ledger's book of purge orders and the receipts that settle them.

Pure; time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from consentry.domain.controls import Control, Controls, PauseImposed
from consentry.domain.orders import PurgeOrder, Receipt, order_for_pause, owed
from consentry.domain.values import Micros


class Book:
    """The ledger's state of all purge orders, built from messages in any order.

    Each may come any number of times.

    `declared` has every (subscriber, data set) that owes a receipt for each order.
    """

    def __init__(self, controls: Controls, declared: Iterable[tuple[str, str]]) -> None:
        self.controls = controls
        self.orders: dict[str, PurgeOrder] = {}
        self._declared = tuple(declared)
        self._receipts: dict[str, dict[tuple[str, str], Receipt]] = {}

    def read_control(self, control: Control) -> PurgeOrder | None:
        """Take a control in; return the purge order it opens, if not yet open or settled."""
        self.controls = self.controls.after(control)
        if not isinstance(control, PauseImposed):
            return None
        # As the controls hold it: a scope that nobody understands has become everything there.
        key = (control.pause, control.version)
        pauses = self.controls.pauses
        same_version = [pause for pause in pauses if (pause.pause, pause.version) == key]
        order = order_for_pause(same_version[0], self.controls)
        if order is None or order.order_id in self.orders:
            return None
        return order

    def read_order(self, order: PurgeOrder) -> PurgeOrder | None:
        """Take a purge order in; return the settled one if it has to be published in answer.

        That is where the order is settled although this message calls it open.
        """
        known = self.orders.get(order.order_id)
        if known is None or order.is_settled:
            self.orders[order.order_id] = known = order
        if known.is_settled:
            return None if order.is_settled else known
        return self._settled(known)

    def read_receipt(self, receipt: Receipt) -> PurgeOrder | None:
        """Take a purge receipt in; return the settled order if this was the last one owed."""
        receipts = self._receipts.setdefault(receipt.order_id, {})
        receipts[receipt.subscriber, receipt.dataset] = receipt
        order = self.orders.get(receipt.order_id)
        if order is None or order.is_settled:
            return None
        return self._settled(order)

    def _settled(self, order: PurgeOrder) -> PurgeOrder | None:
        """Return the order as settled; None while a receipt is owed."""
        if not self._declared or self.owed(order):
            return None
        # The book notes it when it is read back from the log: until then, publishing may have
        # failed.
        return replace(order, is_settled=True)

    def owed(self, order: PurgeOrder) -> tuple[tuple[str, str], ...]:
        """Return the (subscriber, data set) pairs that still owe an order a final receipt."""
        return owed(order, self._receipts.get(order.order_id, {}), self._declared)

    def open_and_overdue(self, now: Micros) -> dict[str, tuple[int, int]]:
        """Return for each subscriber how many purge orders wait for it, and how many are late.

        The subscribers are those declared.

        An order is late once its time is before `now`.
        """
        counts = {subscriber: (0, 0) for subscriber, _ in self._declared}
        for order in self.orders.values():
            if order.is_settled:
                continue
            is_overdue = order.due_at < now
            subscribers = {subscriber for subscriber, _ in self.owed(order)}
            for subscriber in subscribers:
                open_orders, overdue = counts[subscriber]
                counts[subscriber] = (open_orders + 1, overdue + is_overdue)
        return counts
