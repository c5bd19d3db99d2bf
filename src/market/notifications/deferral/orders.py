"""Knows which orders have a deferred mail, so that their later mails are not sent before it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

_MAX_ORDERS = 10_000


class OrdersWithDeferredMail:
    """The earliest deferred notification of each order. Up to 10,000 orders are remembered, the latest ones.

    Entries expire, because another process may have mailed the notification, and this process is not told.

    clock: returns seconds, like time.monotonic
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By order id: the notification's sequence number, and when the entry expires.
        self._orders: OrderedDict[UUID, tuple[int, float]] = OrderedDict()

    def add(self, order_id: UUID, sequence: int, seconds: float) -> None:
        """Record that the notification was deferred. The entry expires after `seconds`."""
        earlier = self._sequence(order_id)
        self._orders[order_id] = (min(sequence, earlier or sequence), self._clock() + seconds)
        self._orders.move_to_end(order_id)
        if len(self._orders) > _MAX_ORDERS:
            self._orders.popitem(last=False)

    def remove(self, order_id: UUID, sequence: int) -> None:
        """Record that the notification is no longer deferred: it was mailed, skipped or stored as a dead letter."""
        if self._sequence(order_id) == sequence:
            del self._orders[order_id]

    def holds_back(self, order_id: UUID, sequence: int) -> bool:
        """Return whether an earlier notification of the order is deferred."""
        earlier = self._sequence(order_id)
        return earlier is not None and earlier < sequence

    def _sequence(self, order_id: UUID) -> int | None:
        sequence, expires_at = self._orders.get(order_id, (None, 0.0))
        return sequence if expires_at > self._clock() else None
