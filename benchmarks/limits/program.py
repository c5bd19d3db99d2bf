"""How the programs without services measure: operations repeated concurrently, for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from benchmarks.measurements import Latency, percentiles


class Result(msgspec.Struct):
    """`rate`: operations per second; `cpu_share`: of one core, by the program itself."""

    rate: float
    succeeded: int
    latency: Latency
    cpu_share: float


async def measure(
    operations: Sequence[Callable[[], Awaitable[list[float]]]], *, warmup: float, seconds: float
) -> Result:
    """Repeat all operations concurrently. Each returns the latencies, in seconds, of what it has just completed."""
    latencies: list[float] = []
    stopped = measuring = False

    async def repeat(operation: Callable[[], Awaitable[list[float]]]) -> None:
        while not stopped:
            completed = await operation()
            if measuring:
                latencies.extend(completed)

    loops = [asyncio.create_task(repeat(operation)) for operation in operations]
    await asyncio.sleep(warmup)
    print("begin", flush=True)
    measuring, started, cpu = True, time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    measuring, elapsed = False, time.perf_counter() - started
    cpu_share = (time.process_time() - cpu) / elapsed
    print("end", flush=True)
    stopped = True
    await asyncio.gather(*loops)
    return Result(len(latencies) / elapsed, len(latencies), percentiles(latencies), cpu_share)
