"""The limit of gathered reservations: the batch function alone, two batches of up to 128 in flight, no gRPC.

`callers` orders are in flight in all. Reads a JSON object from stdin; says begin, end and the result.
"""

import asyncio
import json
import random
import sys
import time
import uuid
from typing import Any

import asyncpg
import msgspec
import uvloop

from benchmarks.figures import percentiles
from benchmarks.limits.order_writes import Result
from market.inventory import store
from market.inventory.app import SETTINGS
from market.inventory.domain import Outcome, Reservation


async def main(given: dict[str, Any]) -> Result:
    pool = await asyncpg.create_pool(given["postgres"], min_size=2, max_size=2, server_settings=SETTINGS)
    rng = random.Random(1)
    ids = sorted(uuid.UUID(p) for p in given["ids"])
    latencies: list[float] = []
    stopped = measuring = False
    size = min(128, max(1, given["callers"] // 2))

    async def worker() -> None:
        async with pool.acquire() as conn:
            while not stopped:
                batch = [
                    Reservation(uuid.uuid4(), sorted(rng.sample(ids, given["lines"])), [1] * given["lines"])
                    for _ in range(size)
                ]
                started = time.perf_counter()
                decided = await store.reserve_many(conn, batch)
                assert all(outcome is Outcome.DONE for outcome, _ in decided)
                if measuring:
                    latencies.extend([time.perf_counter() - started] * size)

    workers = [asyncio.create_task(worker()) for _ in range(2)]
    await asyncio.sleep(given["warmup"])
    print("begin", flush=True)
    measuring, started, cpu = True, time.perf_counter(), time.process_time()
    await asyncio.sleep(given["seconds"])
    measuring, seconds = False, time.perf_counter() - started
    share = (time.process_time() - cpu) / seconds
    print("end", flush=True)
    stopped = True
    await asyncio.gather(*workers)
    await pool.close()
    return Result(len(latencies) / seconds, len(latencies), percentiles(latencies), share)


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(json.load(sys.stdin)))).decode(), flush=True)
