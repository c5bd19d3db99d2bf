"""The metrics of orders."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

OUTCOMES = Counter(
    "market_orders_total", "POST /api/order by outcome: confirmed, replayed or a problem type.", ["outcome"]
)
PENDING = Gauge("market_orders_pending", "Pending orders (counted up to 10,000).")
PENDING_AGE = Gauge("market_orders_pending_oldest_seconds", "Age of the oldest pending order.")
OUTBOX = Gauge("market_orders_with_unsent_events", "Orders with unsent events (counted up to 10,000).")
OUTBOX_AGE = Gauge("market_orders_outbox_oldest_seconds", "Age of the oldest unsent event.")
RELEASE_DUE = Gauge(
    "market_orders_release_due", "Rejected or cancelled orders whose stock is not released yet (counted up to 10,000)."
)
WITH_STUCK_EVENTS = Gauge(
    "market_orders_with_stuck_events", "Orders with an event that Kafka permanently rejected. Alert when above 0."
)
EVENTS = Counter(
    "market_orders_events_total",
    "Events by delivery result: acknowledged, failed (retried) or rejected (permanent).",
    ["result"],
)
RECOVERED = Counter(
    "market_orders_recovered_total",
    "Orders that a background loop finished, by action: rejected, released or published.",
    ["action"],
)
