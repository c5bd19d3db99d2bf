"""How the programs without services measure: operations repeated concurrently, for some seconds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from confluent_kafka import Producer

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


class Publisher:
    """Publishes events to a topic with acks=all. Owns the producer, and the thread that serves its callbacks."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            {"bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 2}
        )
        self._closed = False
        threading.Thread(target=self._poll, daemon=True).start()

    def publish(self, event: bytes, key: bytes) -> asyncio.Future[None]:
        """Return a future that is done once Kafka has acknowledged the event."""
        done: asyncio.Future[None] = self._loop.create_future()

        def delivered(error: object, _: object) -> None:
            self._loop.call_soon_threadsafe(
                lambda: done.set_exception(RuntimeError(str(error))) if error else done.set_result(None)
            )

        self._producer.produce(self._topic, event, key, on_delivery=delivered)
        return done

    def close(self) -> None:
        """Stop serving callbacks."""
        self._closed = True

    def _poll(self) -> None:
        while not self._closed:
            self._producer.poll(0.1)
