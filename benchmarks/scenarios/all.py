"""All scenarios, in the order of the report."""

from benchmarks.scenario import Scenario
from benchmarks.scenarios import (
    before,
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
    products,
    sign_in,
    storefront,
)

SCENARIOS: list[Scenario] = [
    *products.SCENARIOS,
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
    *before.SCENARIOS,
    # Last, because the memory is observed for half an hour.
    *footprint.SCENARIOS,
]
