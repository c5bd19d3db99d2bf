"""The limit of the write path: the same writes to the three stores, 64 orders in flight, each write on its own.

Intent and confirmation in MongoDB (majority, journaled), reservation in PostgreSQL (one function, synchronous commit),
event to Kafka (acks=all) and its removal from the outbox. No HTTP, no gRPC, no validation, no batching.
Reads a JSON object from stdin; prints begin, end and the result, as the generator does.
"""

import json
import random
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvloop
from bson import Binary, Decimal128
from pymongo import AsyncMongoClient, WriteConcern

from benchmarks.limits.program import Publisher, Result, measure


async def main(spec: dict[str, Any]) -> Result:
    mongo: Any = AsyncMongoClient(spec["mongodb"], maxPoolSize=100)
    orders = mongo["bare"].get_collection("orders", write_concern=WriteConcern("majority", j=True))
    pool = await asyncpg.create_pool(spec["postgres"], min_size=16, max_size=16)
    publisher = Publisher(spec["kafka"], spec["topic"])
    rng = random.Random(1)

    async def place_order() -> list[float]:
        started = time.perf_counter()
        order_id = uuid.uuid4()
        products = sorted(rng.sample(spec["ids"], spec["lines"]))
        quantities = [rng.randint(1, 3) for _ in products]
        lines = [
            {"product_id": p, "name": "WHITE HANGING HEART", "quantity": q, "unit_price": "2.55"}
            for p, q in zip(products, quantities, strict=True)
        ]
        document = {
            "_id": Binary.from_uuid(order_id),
            "user": "buyer-1",
            "items": lines,
            "total": Decimal128("12.75"),
            "currency": "GBP",
            "status": "pending",
            "created_at": datetime.now(UTC),
        }
        await orders.insert_one(document)
        async with pool.acquire() as conn:
            outcome = await conn.fetchval(
                "SELECT outcome FROM reserve($1, $2, $3)", order_id, [uuid.UUID(p) for p in products], quantities
            )
        assert outcome == 1
        event = str(uuid.uuid4())
        change = {"$set": {"status": "confirmed"}, "$push": {"outbox": {"id": event, "type": "order.created"}}}
        await orders.update_one({"_id": document["_id"], "status": "pending"}, change)
        data = {"id": str(order_id), "items": lines, "total": "12.75", "currency": "GBP"}
        await publisher.publish(json.dumps({"id": event, "data": data}).encode(), str(order_id).encode())
        await orders.update_one({"_id": document["_id"]}, {"$pull": {"outbox": {"id": event}}})
        return [time.perf_counter() - started]

    result = await measure([place_order] * spec["in_flight"], warmup=spec["warmup"], seconds=spec["seconds"])
    publisher.close()
    await pool.close()
    await mongo.close()
    return result


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(json.load(sys.stdin)))).decode(), flush=True)
