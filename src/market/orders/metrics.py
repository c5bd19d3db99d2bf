"""The figures of orders."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

OUTCOMES = Counter("market_orders_total", "POST /api/order by outcome.", ["outcome"])
PENDING = Gauge("market_orders_pending", "Pending orders (counted to 10,000).")
PENDING_AGE = Gauge("market_orders_pending_oldest_seconds", "Age of the oldest pending order.")
OUTBOX = Gauge("market_orders_outbox_orders", "Orders with unsent events (counted to 10,000).")
OUTBOX_AGE = Gauge("market_orders_outbox_oldest_seconds", "Age of the oldest unsent event.")
RELEASE_DUE = Gauge(
    "market_orders_release_due",
    "Orders whose goods are still to be given back (counted to 10,000).",
)
STUCK = Gauge(
    "market_orders_stuck_events",
    "Orders with an event that Kafka refused for good: alarm above 0.",
)
PUBLISHED = Counter(
    "market_orders_events_total", "Events by fate: acknowledged, failed (tried again), refused (for good).", ["fate"]
)
RECOVERED = Counter(
    "market_orders_recovered_total", "What the loops finished for others: rejected, released, published.", ["what"]
)
