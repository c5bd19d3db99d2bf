"""The metrics of orders."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

# Not counted: requests that the edge refuses before the handler, and requests that end in an unexpected error.
OUTCOMES = Counter(
    "market_order_requests_total",
    "Requests to POST /api/order, by outcome: confirmed, replayed or a problem type.",
    ["outcome"],
)
PENDING = Gauge("market_orders_pending", "Pending orders (counted up to 10,000).")
PENDING_AGE = Gauge("market_orders_pending_oldest_seconds", "Age of the oldest pending order.")
OUTBOX = Gauge("market_orders_with_unsent_events", "Orders with unsent events (counted up to 10,000).")
OUTBOX_AGE = Gauge("market_orders_outbox_oldest_seconds", "Age of the oldest unsent event.")
RELEASE_DUE = Gauge(
    "market_orders_release_due", "Rejected or cancelled orders whose stock is not released yet (counted up to 10,000)."
)
WITH_STUCK_EVENTS = Gauge(
    "market_orders_with_stuck_events",
    "Orders with a stuck event, which Kafka has permanently rejected. Alert when above 0.",
)
RECOVERY_ERRORS = Counter(
    "market_orders_recovery_errors_total",
    "Attempts to recover an order that failed with an unexpected error. Alert when it increases.",
)
UNREADABLE = Counter(
    "market_orders_unreadable_total",
    "Reads of an order whose document this version cannot read. Alert when it increases.",
)
UNREADABLE_PRODUCTS = Counter(
    "market_orders_unreadable_products_total",
    "Invalid products in responses of the products service, which cannot be ordered. Alert when it increases.",
)
EVENTS = Counter(
    "market_orders_events_total",
    "Events by delivery result: acknowledged, failed (retried) or rejected (permanent).",
    ["result"],
)
RECOVERED = Counter(
    "market_orders_recovered_total",
    "Orders recovered, by action: rejected, released (their stock) or published (their events).",
    ["action"],
)
