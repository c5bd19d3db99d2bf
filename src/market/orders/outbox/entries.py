"""The entries that transitions add to an order's outbox."""

from __future__ import annotations

from datetime import datetime

from market.contracts import events
from market.kit import context
from market.orders.domain import Order, OutboxEntry, Transition, to_milliseconds


def new_entry(order: Order, transition: Transition, at: datetime) -> OutboxEntry | None:
    """Return the entry with the transition's event, or None if the transition has no event.

    at: when the order's status changes. The request id and the trace are taken from the current context.
    """
    if transition.event is None:
        return None
    return OutboxEntry(
        events.event_id(order.id, transition.event),
        transition.event,
        to_milliseconds(at),
        context.request_id.get(),
        *context.current_trace(),
    )
