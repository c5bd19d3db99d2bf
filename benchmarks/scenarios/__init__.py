"""The table of scenarios."""

from benchmarks.scenario import Scenario
from benchmarks.scenarios import gateway, inventory, mails, orders, products, start, tools

SCENARIOS: list[Scenario] = [
    *products.SCENARIOS,
    *orders.SCENARIOS,
    *inventory.SCENARIOS,
    *gateway.SCENARIOS,
    *mails.SCENARIOS,
    *tools.SCENARIOS,
    *start.SCENARIOS,
]
