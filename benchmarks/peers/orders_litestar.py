"""The second peer of the write path: the same steps as in orders_fastapi.py, with Litestar and msgspec.

Prices by HTTP from products, intent in MongoDB, reservation by gRPC from inventory, confirmation in MongoDB, event to
Kafka with acks=all. Settings: MONGODB_URL, INVENTORY, PRODUCTS, KAFKA.
    uvicorn orders_litestar:app --port 9006
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID, uuid4

import grpc.aio
import httpx
import msgspec
from aiokafka import AIOKafkaProducer
from bson import Binary, Decimal128
from litestar import Litestar, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.logging import LoggingConfig
from msgspec import Meta
from pymongo import AsyncMongoClient, WriteConcern

from market.contracts import inventory_pb2, inventory_pb2_grpc


class Line(msgspec.Struct):
    product_id: UUID
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]


class NewOrder(msgspec.Struct):
    user: Annotated[str, Meta(min_length=1, max_length=200)]
    items: Annotated[list[Line], Meta(min_length=1, max_length=1000)]
    email: str | None = None


class Product(msgspec.Struct):
    id: UUID
    name: str
    price: str
    currency: str


class Page(msgspec.Struct):
    items: list[Product]


class OrderLine(msgspec.Struct):
    product_id: str
    name: str
    quantity: int
    unit_price: str


class Order(msgspec.Struct):
    id: UUID
    user: str
    email: str | None
    items: list[OrderLine]
    total: str
    currency: str
    status: str
    created_at: datetime
    confirmed_at: datetime


read_page = msgspec.json.Decoder(Page).decode


@asynccontextmanager
async def clients(app: Litestar) -> AsyncIterator[None]:
    mongo = AsyncMongoClient(os.environ["MONGODB_URL"], maxPoolSize=100)
    app.state.orders = mongo["peer"].get_collection("orders", write_concern=WriteConcern("majority", j=True))
    app.state.http = httpx.AsyncClient(base_url=os.environ["PRODUCTS"], limits=httpx.Limits(max_connections=100))
    channel = grpc.aio.insecure_channel(os.environ["INVENTORY"])
    app.state.inventory = inventory_pb2_grpc.InventoryStub(channel)
    app.state.kafka = AIOKafkaProducer(bootstrap_servers=os.environ["KAFKA"], acks="all", enable_idempotence=True)
    await app.state.kafka.start()
    yield
    await app.state.kafka.stop()
    await channel.close()
    await app.state.http.aclose()
    await mongo.close()


@post("/api/order")
async def place(data: NewOrder, state: State) -> Order:
    ids = ",".join(str(line.product_id) for line in data.items)
    response = await state.http.get("/api/product", params={"ids": ids, "availability": "false"})
    products = {product.id: product for product in read_page(response.content).items}
    unknown = [str(line.product_id) for line in data.items if line.product_id not in products]
    if unknown:
        raise HTTPException(f"unknown products: {unknown}", status_code=422)
    order_id = uuid4()
    items = [
        OrderLine(str(i.product_id), products[i.product_id].name, i.quantity, products[i.product_id].price)
        for i in data.items
    ]
    total = sum(Decimal(i.unit_price) * i.quantity for i in items)
    document = {
        "_id": Binary.from_uuid(order_id),
        "user": data.user,
        "email": data.email,
        "items": msgspec.to_builtins(items),
        "total": Decimal128(total),
        "currency": products[data.items[0].product_id].currency,
        "status": "pending",
        "created_at": datetime.now(UTC),
    }
    await state.orders.insert_one(document)
    reserved = await state.inventory.Reserve(
        inventory_pb2.ReserveRequest(
            reservation_id=str(order_id),
            items=[inventory_pb2.Item(product_id=str(i.product_id), quantity=i.quantity) for i in data.items],
        ),
        timeout=10,
    )
    if not reserved.reserved:
        await state.orders.update_one({"_id": document["_id"]}, {"$set": {"status": "rejected"}})
        raise HTTPException("out of stock", status_code=409)
    confirmed_at = datetime.now(UTC)
    confirmed = {"status": "confirmed", "confirmed_at": confirmed_at}
    await state.orders.update_one({"_id": document["_id"], "status": "pending"}, {"$set": confirmed})
    order = Order(
        id=order_id,
        user=data.user,
        email=data.email,
        items=items,
        total=f"{total:.2f}",
        currency=document["currency"],
        status="confirmed",
        created_at=document["created_at"],
        confirmed_at=confirmed_at,
    )
    await asyncio.wait_for(
        state.kafka.send_and_wait("peer-orders", msgspec.json.encode(order), key=str(order_id).encode()), 10
    )
    return order


# Without a line for each request of httpx, which Litestar's usual level would write.
logging = LoggingConfig(root={"level": "WARNING", "handlers": ["queue_listener"]})
app = Litestar(route_handlers=[place], lifespan=[clients], logging_config=logging, openapi_config=None)
