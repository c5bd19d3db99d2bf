"""The limit of batched reservations: the SQL function alone, two batches of up to 128 in flight, no gRPC.

`callers` orders are in flight in all. Reads a JSON object from stdin; prints begin, end and the result.
"""

import json
import random
import sys
import time
import uuid
from typing import Any

import asyncpg
import msgspec
import uvloop

from benchmarks.limits.program import Result, measure
from market.inventory.app import SETTINGS
from market.inventory.domain import Outcome, Reservation
from market.inventory.store import Database, ReservationRepository


async def main(spec: dict[str, Any]) -> Result:
    pool = await asyncpg.create_pool(spec["postgres"], min_size=2, max_size=2, server_settings=SETTINGS)
    rng = random.Random(1)
    ids = sorted(uuid.UUID(p) for p in spec["ids"])
    size = min(128, max(1, spec["callers"] // 2))

    reservations = ReservationRepository(Database(pool, timeout_seconds=30))

    async def reserve_batch() -> list[float]:
        batch = [
            Reservation(uuid.uuid4(), sorted(rng.sample(ids, spec["lines"])), [1] * spec["lines"]) for _ in range(size)
        ]
        started = time.perf_counter()
        decided = await reservations.reserve_many(batch)
        assert all(decision.outcome is Outcome.DONE for decision in decided)
        return [time.perf_counter() - started] * size

    result = await measure([reserve_batch] * 2, warmup=spec["warmup"], seconds=spec["seconds"])
    await pool.close()
    return result


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(json.load(sys.stdin)))).decode(), flush=True)
