"""Inventory's metrics. The labelled children are looked up once, because that costs more than counting."""

from __future__ import annotations

from prometheus_client import Counter

from market.inventory.domain import Outcome

RESERVATIONS = Counter("market_inventory_reservations_total", "Reservations decided.", ["outcome"])
SHORTAGES = Counter("market_inventory_shortages_total", "Lines of reservations for which there was not enough stock.")
CANCELLATIONS = Counter("market_inventory_cancellations_total", "Reservations cancelled.", ["released"])
MOVEMENTS = Counter("market_inventory_movements_total", "Stock movements decided.", ["outcome"])
DELIVERIES = Counter("market_inventory_deliveries_total", "Deliveries decided.", ["outcome"])
STOCK_WRITES_SUPERSEDED = Counter(
    "market_inventory_stock_writes_superseded_total",
    "Stock writes not applied because the stock of a newer version of the product was in force.",
)
TRANSACTION_RETRIES = Counter(
    "market_inventory_transaction_retries_total",
    "Transactions retried after a deadlock or a serialization failure.",
    ["sqlstate"],
)
RESERVATIONS_DELETED = Counter(
    "market_inventory_reservations_deleted_total", "Cancelled reservations deleted after the retention period."
)
DELIVERIES_DELETED = Counter(
    "market_inventory_deliveries_deleted_total", "Records of deliveries deleted after the retention period."
)

reservations = {outcome: RESERVATIONS.labels(outcome.name.lower()) for outcome in Outcome}
movements = {outcome: MOVEMENTS.labels(outcome.name.lower()) for outcome in Outcome}
deliveries = {outcome: DELIVERIES.labels(outcome.name.lower()) for outcome in Outcome}
cancellations = {released: CANCELLATIONS.labels(str(released).lower()) for released in (True, False)}
