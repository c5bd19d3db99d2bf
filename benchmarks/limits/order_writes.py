"""The limit of the write path: the same writes to the three stores, 64 orders in flight, each write by itself.

Intent and confirmation in MongoDB (majority, journaled), reservation in PostgreSQL (one function, synchronous commit),
event to Kafka (acks=all) and its removal from the outbox. No HTTP, no gRPC, no checks, no gathering.
Reads a JSON object from stdin; says begin, end and the result, as the generator does.
"""

import asyncio
import json
import random
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvloop
from bson import Binary, Decimal128
from confluent_kafka import Producer
from pymongo import AsyncMongoClient, WriteConcern

from benchmarks.figures import Latency, percentiles


class Result(msgspec.Struct):
    rate: float
    good: int
    latency: Latency
    cpu_share: float


async def main(given: dict[str, Any]) -> Result:
    loop = asyncio.get_running_loop()
    mongo: Any = AsyncMongoClient(given["mongodb"], maxPoolSize=100)
    orders = mongo["bare"].get_collection("orders", write_concern=WriteConcern("majority", j=True))
    pool = await asyncpg.create_pool(given["postgres"], min_size=16, max_size=16)
    producer = Producer(
        {"bootstrap.servers": given["kafka"], "acks": "all", "enable.idempotence": True, "linger.ms": 2}
    )
    stopped = closed = False

    def poll() -> None:
        while not closed:
            producer.poll(0.1)

    threading.Thread(target=poll, daemon=True).start()
    rng = random.Random(1)
    latencies: list[float] = []
    measuring = False

    def sent(event: bytes, key: bytes) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = loop.create_future()

        def delivered(error: Any, _: object) -> None:
            loop.call_soon_threadsafe(
                lambda: done.set_exception(RuntimeError(str(error))) if error else done.set_result(None)
            )

        producer.produce(given["topic"], event, key, on_delivery=delivered)
        return done

    async def place() -> None:
        id = uuid.uuid4()
        chosen = sorted(rng.sample(given["ids"], given["lines"]))
        quantities = [rng.randint(1, 3) for _ in chosen]
        lines = [
            {"product_id": p, "name": "WHITE HANGING HEART", "quantity": q, "unit_price": "2.55"}
            for p, q in zip(chosen, quantities, strict=True)
        ]
        document = {
            "_id": Binary.from_uuid(id),
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
                "SELECT outcome FROM reserve($1, $2, $3)", id, [uuid.UUID(p) for p in chosen], quantities
            )
        assert outcome == 1
        event = str(uuid.uuid4())
        change = {"$set": {"status": "confirmed"}, "$push": {"outbox": {"id": event, "type": "order.created"}}}
        await orders.update_one({"_id": document["_id"], "status": "pending"}, change)
        value = json.dumps(
            {"id": event, "data": {"id": str(id), "items": lines, "total": "12.75", "currency": "GBP"}}
        ).encode()
        await sent(value, str(id).encode())
        await orders.update_one({"_id": document["_id"]}, {"$pull": {"outbox": {"id": event}}})

    async def worker() -> None:
        while not stopped:
            started = time.perf_counter()
            await place()
            if measuring:
                latencies.append(time.perf_counter() - started)

    workers = [asyncio.create_task(worker()) for _ in range(given["in_flight"])]
    await asyncio.sleep(given["warmup"])
    print("begin", flush=True)
    measuring, started, cpu = True, time.perf_counter(), time.process_time()
    await asyncio.sleep(given["seconds"])
    measuring, seconds = False, time.perf_counter() - started
    share = (time.process_time() - cpu) / seconds
    print("end", flush=True)
    stopped = True
    await asyncio.gather(*workers)
    closed = True
    await pool.close()
    await mongo.close()
    return Result(len(latencies) / seconds, len(latencies), percentiles(latencies), share)


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(json.load(sys.stdin)))).decode(), flush=True)
