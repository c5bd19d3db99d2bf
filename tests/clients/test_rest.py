"""Clients generated from openapi/*.json buy in the shop, each with its own types and its own errors."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.clients import toolchains
from tests.system.whole_shop import ROOT, System, create_product

CLIENTS = Path(__file__).with_name("rest")
CONTRACTS = sorted((ROOT / "openapi").glob("*.json"))


@pytest.mark.parametrize(
    "name",
    ["oapi-codegen", "openapi-fetch", "openapi-generator-java", "openapi-generator-python", "openapi-python-client"],
)
async def test_a_generated_client_places_lists_and_cancels_orders_and_reads_typed_errors(
    shop: System, http: httpx.AsyncClient, work: Path, name: str
) -> None:
    client = toolchains.build(CLIENTS / name, work, contracts=CONTRACTS)
    plenty = await create_product(http, shop, name="Lamp", price="2.50", stock=100)
    scarce = await create_product(http, shop, name="Rug", price="40.00", stock=1)
    urls = (shop.urls["orders"], shop.urls["products"])
    assert json.loads(await toolchains.output(client, *urls, f"buyer of {name}", plenty["id"], scarce["id"])) == {
        # Looked up by ids, in this order.
        "products": [["Rug", "40.00"], ["Lamp", "2.50"]],
        "placed": ["confirmed", "5.00", 2],
        # The three orders placed, newest first, in pages of two.
        "listed": True,
        "pages": [2, 1, None],
        "cancelled": [204, "cancelled"],
        # Wanted and left.
        "conflict": [409, [[5, 1]]],
        "invalid": [422, ["user", "email"]],
    }
