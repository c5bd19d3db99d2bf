"""The metrics of products."""

from __future__ import annotations

from prometheus_client import Counter

AVAILABILITY_LOOKUPS = Counter(
    "market_products_availability_lookups_total",
    "Products whose availability was looked up, by what knew it: cache, inventory, or neither (unknown).",
    ["source"],
)
