"""The peer of the write path: the same steps in the usual way, one call after the other, without batching.

Prices by HTTP from products, intent in MongoDB, reservation by gRPC from inventory, confirmation in MongoDB, event to
Kafka with acks=all. Settings: MONGODB_URL, INVENTORY, PRODUCTS, KAFKA.
    uvicorn orders_fastapi:app --port 9002
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID, uuid4

import grpc.aio
import httpx
from aiokafka import AIOKafkaProducer
from bson import Binary, Decimal128
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from pymongo import AsyncMongoClient, WriteConcern

from market.contracts import inventory_pb2, inventory_pb2_grpc


class Line(BaseModel):
    product_id: UUID
    quantity: Annotated[int, Field(ge=1, le=1_000_000)]


class NewOrder(BaseModel):
    user: Annotated[str, Field(min_length=1, max_length=200)]
    email: str | None = None
    items: Annotated[list[Line], Field(min_length=1, max_length=1000)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
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


app = FastAPI(lifespan=lifespan)


@app.post("/api/order", status_code=201)
async def place(order: NewOrder, request: Request) -> dict:
    state = request.app.state
    ids = ",".join(str(line.product_id) for line in order.items)
    found = (await state.http.get("/api/product", params={"ids": ids, "availability": "false"})).json()["items"]
    products = {UUID(p["id"]): p for p in found}
    unknown = [str(line.product_id) for line in order.items if line.product_id not in products]
    if unknown:
        raise HTTPException(422, f"unknown products: {unknown}")
    order_id = uuid4()
    items = [
        {
            "product_id": str(i.product_id),
            "name": products[i.product_id]["name"],
            "quantity": i.quantity,
            "unit_price": products[i.product_id]["price"],
        }
        for i in order.items
    ]
    total = sum(Decimal(i["unit_price"]) * i["quantity"] for i in items)
    document = {
        "_id": Binary.from_uuid(order_id),
        "user": order.user,
        "email": order.email,
        "items": items,
        "total": Decimal128(total),
        "currency": products[order.items[0].product_id]["currency"],
        "status": "pending",
        "created_at": datetime.now(UTC),
    }
    await state.orders.insert_one(document)
    reserved = await state.inventory.Reserve(
        inventory_pb2.ReserveRequest(
            reservation_id=str(order_id),
            items=[inventory_pb2.Item(product_id=str(i.product_id), quantity=i.quantity) for i in order.items],
        ),
        timeout=10,
    )
    if not reserved.reserved:
        await state.orders.update_one({"_id": document["_id"]}, {"$set": {"status": "rejected"}})
        raise HTTPException(409, "out of stock")
    confirmed_at = datetime.now(UTC)
    confirmed = {"status": "confirmed", "confirmed_at": confirmed_at}
    await state.orders.update_one({"_id": document["_id"], "status": "pending"}, {"$set": confirmed})
    response = {
        "id": str(order_id),
        "user": order.user,
        "email": order.email,
        "items": items,
        "total": f"{total:.2f}",
        "currency": document["currency"],
        "status": "confirmed",
        "created_at": document["created_at"].isoformat(),
        "confirmed_at": confirmed_at.isoformat(),
    }
    await asyncio.wait_for(
        state.kafka.send_and_wait("peer-orders", json.dumps(response).encode(), key=str(order_id).encode()), 10
    )
    return response
