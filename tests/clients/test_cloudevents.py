"""The official CloudEvents SDKs read the shop's own topic."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.clients import toolchains
from tests.system.whole_shop import System, create_product, place

SDKS = Path(__file__).with_name("cloudevents")


@pytest.mark.parametrize("language", ["go", "java", "node", "python"])
async def test_the_official_sdk_reads_an_event(
    shop: System, http: httpx.AsyncClient, work: Path, language: str
) -> None:
    client = toolchains.build(SDKS / language, work)
    product = await create_product(http, shop, name="Größe «M»")
    body = {"user": language, "items": [{"product_id": product["id"], "quantity": 1}]}
    order = (await place(http, shop, body)).raise_for_status().json()
    event = json.loads(await toolchains.output(client, shop.urls["kafka"], "orders", order["id"]))
    assert event.pop("time").startswith(order["created_at"][:11])
    assert event.pop("id")
    assert event == {
        "source": "/market/orders",
        "type": "order.created",
        "subject": order["id"],
        "sequence": "1",
        "data": order,
    }


async def test_asyncapis_own_parser_accepts_the_document(work: Path) -> None:
    parser = toolchains.build(SDKS.with_name("asyncapi"), work)
    document = Path(__file__).parents[2] / "asyncapi" / "orders.json"
    assert json.loads(await toolchains.output(parser, str(document))) == {
        "version": "3.0.0",
        "problems": [],
        "channels": ["orders"],
        "messages": ["order.created", "order.cancelled"],
    }
