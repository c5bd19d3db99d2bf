"""A standard client of each interface works unmodified; nothing here uses the shop's own code."""

from __future__ import annotations

import asyncio
import json
import time
from uuid import uuid4

import grpc
import httpx
from confluent_kafka import Consumer
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from gql import Client, gql
from gql.transport.aiohttp import AIOHTTPTransport
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.system.whole_shop import Mails, System, create_product, place


async def test_gql_fetches_the_schema_validates_documents_and_places_an_order(
    shop: System, http: httpx.AsyncClient
) -> None:
    product = await create_product(http, shop, name="Bird house", price="28.40")
    transport = AIOHTTPTransport(url=shop.urls["graphql"].rstrip("/").removesuffix("/graphql") + "/graphql")
    async with Client(transport=transport, fetch_schema_from_transport=True) as session:
        create = gql("""
            mutation ($input: CreateOrderInput!) {
              createOrder(input: $input) { id total status items { quantity product { name available } } }
            }
        """)
        create.variable_values = {"input": {"user": "gql", "items": [{"productId": product["id"], "quantity": 3}]}}
        order = (await session.execute(create))["createOrder"]
        assert (order["total"], order["status"]) == ("85.20", "confirmed")
        assert order["items"] == [{"quantity": 3, "product": {"name": "Bird house", "available": True}}]
        page = gql('{ orders(user: "gql", limit: 1) { total items { id } } }')
        assert (await session.execute(page))["orders"] == {"total": 1, "items": [{"id": order["id"]}]}


async def test_httpx_uses_rest_with_etag_and_location(shop: System, http: httpx.AsyncClient) -> None:
    product = await create_product(http, shop, name="Kettle")
    url = f"{shop.urls['products']}/api/product"
    response = await http.get(f"{url}/{product['id']}")
    assert response.headers["content-type"] == "application/json"
    changed = await http.put(
        url, json=response.json() | {"price": "13.00"}, headers={"If-Match": response.headers["ETag"]}
    )
    assert (changed.status_code, changed.json()["price"]) == (200, "13.00")
    stale = await http.put(url, json=response.json(), headers={"If-Match": response.headers["ETag"]})
    assert (stale.status_code, stale.headers["content-type"]) == (412, "application/problem+json")
    found = (await http.get(url, params={"q": "kettle", "sort": "-price"})).json()
    assert [p["id"] for p in found["items"]] == [product["id"]]
    assert (await http.delete(f"{url}/{product['id']}")).status_code == 204
    assert (await http.get(f"{url}/{product['id']}")).status_code == 404


async def test_grpc_reflection_is_enough_to_call_inventory(shop: System, http: httpx.AsyncClient) -> None:
    product = await create_product(http, shop, stock=7)
    assert await asyncio.to_thread(_stock_by_reflection, shop.urls["inventory"], product["id"]) == 7


def _stock_by_reflection(target: str, product_id: str) -> int:
    with grpc.insecure_channel(target.removeprefix("dns:///").removeprefix("grpc://")) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"market.inventory.v1.Inventory", "grpc.health.v1.Health"} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName("market.inventory.v1.Inventory")
        method = service.FindMethodByName("GetStock")
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        response = call(GetMessageClass(method.input_type)(product_ids=[product_id]), timeout=60)
        return int(response.items[0].quantity)


async def test_a_plain_kafka_consumer_reads_cloud_events(shop: System, http: httpx.AsyncClient) -> None:
    product = await create_product(http, shop, name="Größe «M»")
    body = {"user": "kafka", "items": [{"product_id": product["id"], "quantity": 1}]}
    order = (await place(http, shop, body)).raise_for_status().json()
    event = await asyncio.to_thread(_event_of, shop.urls["kafka"], order["id"])
    assert (event["specversion"], event["type"], event["subject"], event["sequence"]) == (
        "1.0",
        "order.created",
        order["id"],
        "1",
    )
    # The event describes the order, not its history.
    assert event["data"] == {name: value for name, value in order.items() if name != "confirmed_at"}


def _event_of(servers: str, order_id: str) -> dict[str, object]:
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"reader-{uuid4()}", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe(["orders"])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None and message.key() == order_id.encode():
                # Not escaped: the bytes are readable UTF-8.
                assert "Größe «M»".encode() in message.value()
                return dict(json.loads(message.value()))
    finally:
        consumer.close()
    raise AssertionError("the event did not come within 60 s")


async def test_a_mail_reader_sees_text_html_and_headers(shop: System, http: httpx.AsyncClient, mails: Mails) -> None:
    product = await create_product(http, shop, name="Jar & <lid>")
    body = {"user": "dora@clients.example", "items": [{"product_id": product["id"], "quantity": 1}]}
    (await place(http, shop, body)).raise_for_status()
    [mail] = await mails.wait_for("dora@clients.example")
    assert "Jar & <lid>" in mail["text"]
    assert "Jar &amp; &lt;lid&gt;" in mail["html"]
    assert mail["headers"]["To"] == "dora@clients.example"
    assert mail["subject"]
