"""Clients generated from inventory.proto, and grpcurl without it, call inventory and read the details of an error."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.clients import toolchains
from tests.system.whole_shop import ROOT, System, create_product

CLIENTS = Path(__file__).with_name("grpc")
PROTO = ROOT / "proto" / "market" / "inventory" / "v1" / "inventory.proto"


def address(shop: System) -> str:
    return str(shop.urls["inventory"]).rpartition("/")[2]


@pytest.mark.parametrize("language", ["go", "java", "node"])
async def test_a_generated_client_calls_inventory_and_reads_error_details(
    shop: System, http: httpx.AsyncClient, work: Path, language: str
) -> None:
    client = toolchains.build(CLIENTS / language, work, PROTO)
    product = await create_product(http, shop, stock=7)
    assert json.loads(await toolchains.output(client, address(shop), product["id"])) == {
        "available": True,
        "quantity": 7,
        "code": 3,
        "message": "product_ids[0]: must be a UUID",
        "fields": ["product_ids[0] must be a UUID"],
    }


async def test_grpcurl_lists_calls_and_shows_error_details_by_reflection(
    shop: System, http: httpx.AsyncClient, work: Path
) -> None:
    grpcurl = [*toolchains.build(CLIENTS / "grpcurl", work), "-plaintext"]
    product = await create_product(http, shop, stock=7)
    services = (await toolchains.output(grpcurl, address(shop), "list")).split()
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "market.inventory.v1.Inventory",
    ]
    call = "market.inventory.v1.Inventory/GetStock"
    request = json.dumps({"product_ids": [product["id"]]})
    shown = json.loads(await toolchains.output(grpcurl, "-d", request, address(shop), call))
    assert [item["quantity"] for item in shown["items"]] == [7]
    request = json.dumps({"product_ids": ["x"]})
    refused = json.loads(
        await toolchains.output(grpcurl, "-format-error", "-d", request, address(shop), call, fails=True)
    )
    assert (refused["code"], refused["message"]) == (3, "product_ids[0]: must be a UUID")
    assert {"field": "product_ids[0]", "description": "must be a UUID"} in refused["details"][1]["field_violations"]
    health = json.loads(await toolchains.output(grpcurl, address(shop), "grpc.health.v1.Health/List"))
    assert health["statuses"]["market.inventory.v1.Inventory"] == {"status": "SERVING"}
