"""A released migration never changes, not even in a comment: databases that have applied it would refuse the new text.

Add a line here for each new file when it is released.
"""

from __future__ import annotations

from importlib.resources import files

import pytest

from market.kit.migrations import checksum

# The first twelve characters of each checksum.
RELEASED = {
    "inventory": {
        "0001_stock_and_reservations.sql": "485fd808ebbc",
        "0002_product_version.sql": "73cdad53f2cd",
        "0003_deliveries.sql": "a651067e5750",
    },
    "products": {
        "0001_products.sql": "db81c961a00b",
        "0002_name_sort.sql": "a9499038501a",
        "0003_search.sql": "549e9a35fb6a",
        "0004_search_words.sql": "4183071c594f",
        "0005_search_indexes.sql": "30d8c9596036",
        "0006_keys_of_callers.sql": "e2bf70effa59",
        "0007_keys_of_callers_index.sql": "1708edddb0d7",
        "0008_price_decimals.sql": "dcebc28481f3",
        "0009_price_check.sql": "e15e6482f271",
    },
}


@pytest.mark.parametrize("service", RELEASED)
def test_no_released_migration_has_changed(service: str) -> None:
    directory = files(f"market.{service}.migrations")
    numbered = sorted(file.name for file in directory.iterdir() if file.name[:4].isdigit())
    assert {name: checksum((directory / name).read_text("utf-8"))[:12] for name in numbered} == RELEASED[service]
