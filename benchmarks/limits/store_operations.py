"""The limit of a lone call: the same operations on the stores, one after the other, without services.

MongoDB with majority and journaled writes, PostgreSQL with the same functions and synchronous commit. No HTTP, no gRPC,
no validation. Reads a JSON object from stdin; prints begin, end and the result, as the generator does.
"""

from __future__ import annotations

import json
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import uvloop
from bson import Binary, Decimal128
from pymongo import AsyncMongoClient, ReturnDocument, WriteConcern
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from benchmarks.lone_calls import Result
from benchmarks.measurements import percentiles
from benchmarks.workloads import product

_SELECT = "SELECT id, name, price, currency, description, image_url, version FROM products WHERE id = ANY($1)"
_UPDATE = """
    UPDATE products SET name = $2, description = $3, price = $4, version = version + 1, updated_at = now()
    WHERE id = $1 RETURNING *
"""


class Stores:
    """The operations of each call. An order is known by the values that its insert has set."""

    def __init__(self, spec: dict[str, Any], mongo: Any, products: Any, inventory: Any) -> None:
        concerns = {"write_concern": WriteConcern("majority", j=True), "read_concern": ReadConcern("majority")}
        self._mongo = mongo
        self._orders = mongo["bare"].get_collection("lone_orders", **concerns)
        self._barriers = mongo["bare"].get_collection("barriers", **concerns)
        self._products = products
        self._inventory = inventory
        self._ids = [uuid.UUID(product_id) for product_id in spec["product_ids"]]
        self._lines = spec["lines"]
        self._rng = random.Random()

    async def prepare(self) -> None:
        """Create the indexes and connect."""
        await self._orders.create_index("key", unique=True)
        await self._orders.create_index([("user", 1), ("created_at", -1)])

    def choose(self) -> None:
        """Choose the next order."""
        self._id = uuid.uuid4()
        self._user = self._key = self._id.hex
        self._chosen = sorted(self._rng.sample(self._ids, self._lines))

    async def post(self) -> None:
        document = await self._insert()
        reserve = "SELECT outcome FROM reserve($1, $2, $3)"
        assert await self._inventory.fetchval(reserve, self._id, self._chosen, [1] * self._lines) == 1
        change = {"$set": {"status": "confirmed"}, "$push": {"outbox": {"id": self._key, "type": "order.created"}}}
        await self._orders.update_one({"_id": document["_id"], "status": "pending"}, change)

    async def _insert(self) -> dict[str, Any]:
        """Read the prices and insert the order. Raises DuplicateKeyError if it is a repeated one."""
        rows = await self._products.fetch(_SELECT, self._chosen)
        document: dict[str, Any] = {
            "_id": Binary.from_uuid(self._id),
            "user": self._user,
            "items": [
                {"product_id": str(r["id"]), "name": r["name"], "quantity": 1, "unit_price": Decimal128(r["price"])}
                for r in rows
            ],
            "total": Decimal128("7.65"),
            "currency": "GBP",
            "status": "pending",
            "created_at": datetime.now(UTC),
            "key": self._key,
            "digest": b"0" * 32,
        }
        await self._orders.insert_one(document)
        return document

    async def repeat(self) -> None:
        with suppress(DuplicateKeyError):
            await self._insert()
        # Whose key it is, and which order has it.
        await self._orders.find_one({"key": self._key}, {"user": 1, "digest": 1})
        await self._orders.find_one({"key": self._key}, {"digest": 1})
        async with self._mongo.start_session() as session:
            await self._barriers.update_one({"_id": "orders"}, {"$inc": {"count": 1}}, upsert=True, session=session)
            await self._orders.find_one({"_id": Binary.from_uuid(self._id)}, session=session)

    async def get(self) -> None:
        await self._orders.find_one({"_id": Binary.from_uuid(self._id)})

    async def list_orders(self) -> None:
        await self._orders.count_documents({"user": self._user}, limit=10_001)
        await self._orders.find({"user": self._user}).sort("created_at", -1).limit(100).to_list()

    async def delete(self) -> None:
        await self.get()
        where = {"_id": Binary.from_uuid(self._id)}
        change = {"$set": {"status": "cancelled", "release_due": datetime.now(UTC)}}
        after = ReturnDocument.AFTER
        await self._orders.find_one_and_update({**where, "status": "confirmed"}, change, return_document=after)
        await self._inventory.fetchrow("SELECT * FROM cancel_many($1)", [self._id])
        await self._orders.update_one(where, {"$unset": {"release_due": 1}})

    async def put(self, code: str = "replaced") -> None:
        """Replace the product's texts, and with them its entries in the indexes of words."""
        replacement = product(f"{code} {self._key}")
        texts = replacement["name"], replacement["description"]
        await self._products.fetchrow(_UPDATE, self._chosen[0], *texts, Decimal(replacement["price"]))

    async def put_with_stock(self) -> None:
        await self._products.fetch(_SELECT, self._chosen[:1])
        await self._inventory.fetch("SELECT quantity FROM inventory WHERE product_id = ANY($1)", self._chosen[:1])
        await self.put("with stock")
        stock = self._rng.randint(1_900_000_000, 2_000_000_000)
        await self._inventory.fetchrow("SELECT * FROM write_stock_many($1, $2, $3)", self._chosen[:1], [stock], [None])


async def main(spec: dict[str, Any]) -> Result:
    mongo: Any = AsyncMongoClient(spec["mongodb"])
    products = await asyncpg.connect(spec["postgres_products"])
    inventory = await asyncpg.connect(spec["postgres_inventory"])
    stores = Stores(spec, mongo, products, inventory)
    await stores.prepare()
    calls: dict[str, Callable[[], Awaitable[None]]] = {
        "POST": stores.post,
        "repeated POST": stores.repeat,
        "GET": stores.get,
        "list": stores.list_orders,
        "DELETE": stores.delete,
        "second DELETE": stores.get,
        "PUT product": stores.put,
        "PUT product with stock": stores.put_with_stock,
    }
    seconds: dict[str, list[float]] = {}

    async def call_each() -> None:
        stores.choose()
        for name, call in calls.items():
            # The services make these calls from a loop that has just waited for the request.
            time.sleep(spec["pause_seconds"])
            started = time.perf_counter()
            await call()
            seconds.setdefault(name, []).append(time.perf_counter() - started)

    warm_at = time.monotonic() + spec["warmup"]
    while time.monotonic() < warm_at:
        await call_each()
    seconds.clear()
    print("begin", flush=True)
    end = time.monotonic() + spec["seconds"]
    while True:
        await call_each()
        if time.monotonic() > end:
            break
    print("end", flush=True)
    await products.close()
    await inventory.close()
    await mongo.close()
    return Result({name: percentiles(s) for name, s in seconds.items()}, sum(map(len, seconds.values())))


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(json.load(sys.stdin)))).decode(), flush=True)
