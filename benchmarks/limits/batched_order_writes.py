"""The limit of the write path with batches: the writes of `order_writes`, gathered as the services gather them.

What concurrent orders want to write while a call is in flight goes into the next call. As in the services, at most two
calls per step are in flight, one for the removal of published events, with at most 128 orders each. No HTTP, no gRPC,
no validation, no prices, no indexes but those of the stores' own. Reads a JSON object from stdin; prints begin, end and
the result, as the generator does.
"""

import asyncio
import json
import random
import sys
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvloop
from bson import Binary, Decimal128
from pymongo import AsyncMongoClient, InsertOne, UpdateOne, WriteConcern

from benchmarks.limits.program import Publisher, Result, measure
from market.inventory.app import SETTINGS
from market.inventory.domain import Outcome, Reservation
from market.inventory.store import Database, ReservationRepository

_MAX_ORDERS = 128


class _Gathered:
    """One step of all orders: calls `write` with the items that have arrived since the last call began."""

    def __init__(self, write: Callable[[list[Any]], Awaitable[None]], concurrency: int) -> None:
        self._write = write
        self._free = concurrency
        self._waiting: deque[tuple[Any, asyncio.Future[None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, item: Any) -> "asyncio.Future[None]":
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, written))
        if self._free:
            self._free -= 1
            task = asyncio.create_task(self._write_waiting())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return written

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_MAX_ORDERS, len(self._waiting)))]
            await self._write([item for item, _ in batch])
            for _, written in batch:
                written.set_result(None)
        self._free += 1


async def main(spec: dict[str, Any]) -> Result:
    mongo: Any = AsyncMongoClient(spec["mongodb"], maxPoolSize=100)
    orders = mongo["bare"].get_collection("batched", write_concern=WriteConcern("majority", j=True))
    pool = await asyncpg.create_pool(spec["postgres"], min_size=2, max_size=2, server_settings=SETTINGS)
    reservations = ReservationRepository(Database(pool, timeout_seconds=30))
    publisher = Publisher(spec["kafka"], spec["topic"])
    rng = random.Random(1)

    async def write_orders(operations: list[Any]) -> None:
        await orders.bulk_write(operations, ordered=False)

    async def reserve_many(batch: list[Any]) -> None:
        decided = await reservations.reserve_many(batch)
        assert all(decision.outcome is Outcome.DONE for decision in decided)

    insert, confirm, remove = _Gathered(write_orders, 2), _Gathered(write_orders, 2), _Gathered(write_orders, 1)
    reserve = _Gathered(reserve_many, 2)

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
        await insert(InsertOne(document))
        await reserve(Reservation(order_id, [uuid.UUID(p) for p in products], quantities))
        event = str(uuid.uuid4())
        change = {"$set": {"status": "confirmed"}, "$push": {"outbox": {"id": event, "type": "order.created"}}}
        await confirm(UpdateOne({"_id": document["_id"], "status": "pending"}, change))
        data = {"id": str(order_id), "items": lines, "total": "12.75", "currency": "GBP"}
        await publisher.publish(json.dumps({"id": event, "data": data}).encode(), str(order_id).encode())
        await remove(UpdateOne({"_id": document["_id"]}, {"$pull": {"outbox": {"id": event}}}))
        return [time.perf_counter() - started]

    result = await measure([place_order] * spec["in_flight"], warmup=spec["warmup"], seconds=spec["seconds"])
    publisher.close()
    await pool.close()
    await mongo.close()
    return result


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(json.load(sys.stdin)))).decode(), flush=True)
