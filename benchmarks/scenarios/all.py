"""All scenarios, in the order of the report."""

from benchmarks.scenario import Scenario
from benchmarks.scenarios import (
    catalogue_size,
    commands,
    deferred_mails,
    fairness,
    footprint,
    gateway,
    inventory,
    latency,
    mails,
    order_count,
    orders,
    pages,
    products,
    search,
    sign_in,
    storefront,
)

SCENARIOS: list[Scenario] = [
    *products.SCENARIOS,
    *pages.SCENARIOS,
    *search.SCENARIOS,
    *catalogue_size.SCENARIOS,
    *orders.SCENARIOS,
    *latency.SCENARIOS,
    *order_count.SCENARIOS,
    *fairness.SCENARIOS,
    *inventory.SCENARIOS,
    *gateway.SCENARIOS,
    *storefront.SCENARIOS,
    *sign_in.SCENARIOS,
    *mails.SCENARIOS,
    *deferred_mails.SCENARIOS,
    *commands.SCENARIOS,
    *footprint.SCENARIOS,
]
