"""The load generator: a process of its own, so that what it costs is not counted to whom it measures.

Reads a JSON specification from stdin (see `Spec`), prints `begin` and `end` lines around the measured time, then the
result as JSON. Closed loop: each of N connections sends its next request when the answer is there. Open loop: requests
are due at a fixed rate whether or not answers come, and latency counts from when a request was due.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from benchmarks import h2, http1, workloads
from benchmarks.figures import Latency, percentiles


class Spec(msgspec.Struct, kw_only=True):
    """`rate` None is a closed loop. `kind`: http, grpc (raw frames), reserve (the client that orders uses) or direct (without its gathering)."""

    kind: str = "http"
    host: str = "127.0.0.1"
    port: int
    workload: str
    params: dict[str, Any] = {}
    connections: int = 64
    # Requests under way on one connection; gRPC only.
    streams: int = 1
    rate: float | None = None
    warmup: float = 1.0
    seconds: float = 5.0
    # A closed loop that ends after so many requests instead of after a time.
    count: int | None = None


class Result(msgspec.Struct, kw_only=True):
    """`rate`: good answers per second. `late`: requests that were due in time and had no answer at the end."""

    rate: float
    good: int
    bad: int
    late: int
    seconds: float
    # Of the generator itself: if it comes near 1, the generator is what was measured.
    cpu_share: float
    latency: Latency
    statuses: dict[str, int]
    example: str = ""


class Load:
    """Owns the connections and the figures of one run."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.requests = workloads.make(spec.workload, spec.params)
        self.idle: deque[Any] = deque()
        self.waiting: deque[float] = deque()
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.measuring = False
        self.stopped = False
        self.under_way = 0
        self.bad = 0
        self.sent = 0
        self.example = ""
        self.finished = asyncio.Event()

    def answered(self, connection: Any, due: float, status: str, good: bool, body: bytes) -> None:
        """A connection has an answer and is free again."""
        now = time.perf_counter()
        self.under_way -= 1
        if self.measuring:
            self.statuses[status] += 1
            if good:
                self.latencies.append(now - due)
            else:
                self.bad += 1
                self.example = self.example or body[:300].decode("utf-8", "replace")
        if self.stopped:
            if not self.under_way:
                self.finished.set()
            return
        if self.spec.rate is None:
            if self.spec.count is not None and self.sent >= self.spec.count:
                if not self.under_way:
                    self.finished.set()
                return
            self.send(connection, now)
        elif self.waiting:
            self.send(connection, self.waiting.popleft())
        else:
            self.idle.append(connection)

    def send(self, connection: Any, due: float) -> None:
        self.under_way += 1
        self.sent += 1
        connection.send(next(self.requests), due)

    async def run(self) -> Result:
        spec = self.spec
        make = http1.connect if spec.kind == "http" else h2.connect
        slots = [slot for _ in range(spec.connections) for slot in await make(self, spec.host, spec.port, spec.streams)]
        pacing = None
        if spec.rate is None:
            for slot in slots[: spec.count]:
                self.send(slot, time.perf_counter())
        else:
            self.idle.extend(slots)
            pacing = asyncio.create_task(pace(spec.rate, self.arrive))
        if spec.count is None:
            await asyncio.sleep(spec.warmup)
        started, cpu = self._begin()
        if spec.count is None:
            await asyncio.sleep(spec.seconds)
        else:
            await self.finished.wait()
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        print("end", flush=True)
        self.measuring = False
        late = len(self.waiting)
        self.stopped = True
        if pacing:
            pacing.cancel()
        good = len(self.latencies)
        if self.under_way:
            try:
                await asyncio.wait_for(self.finished.wait(), 15)
            except TimeoutError:
                # So slow that it cannot be waited for: the rate says so, and it is noted.
                late += self.under_way
        return Result(
            rate=good / seconds,
            good=good,
            bad=self.bad,
            late=late,
            seconds=seconds,
            cpu_share=used / seconds,
            latency=percentiles(self.latencies),
            statuses=dict(self.statuses),
            example=self.example,
        )

    def _begin(self) -> tuple[float, float]:
        gc.collect()
        gc.freeze()
        print("begin", flush=True)
        self.measuring = True
        return time.perf_counter(), time.process_time()

    def arrive(self, due: float) -> None:
        """A request that finds no connection free waits, and its latency counts from when it was due."""
        if self.idle:
            self.send(self.idle.popleft(), due)
        else:
            self.waiting.append(due)


async def pace(rate: float, arrive: Callable[[float], None]) -> None:
    """Tells of each request when it is due, `rate` of them a second."""
    started = time.perf_counter()
    number = 0
    while True:
        now = time.perf_counter()
        while (due := started + number / rate) <= now:
            number += 1
            arrive(due)
        # uvloop counts in milliseconds: less than one would be a spin, and take a core from whom it measures.
        await asyncio.sleep(max(0.001, due - now))


class Reserving:
    """N callers of the client that orders uses: reservations are gathered as they are in orders."""

    def __init__(self, load: Load, inventory: Any) -> None:
        self.load = load
        self.inventory = inventory
        # Of the open loop: when the requests that no caller has taken yet were due.
        self.due: asyncio.Queue[float] | None = asyncio.Queue() if load.spec.rate else None

    async def caller(self) -> None:
        load = self.load
        while True:
            started = time.perf_counter() if self.due is None else await self.due.get()
            if load.stopped:
                return
            id, wanted = next(load.requests)
            try:
                answer = await self.inventory.reserve(id, wanted)
            except Exception as e:
                load.bad += load.measuring
                load.example = load.example or repr(e)[:300]
                continue
            if load.measuring:
                name = type(answer).__name__
                load.statuses[name] += 1
                if name == "Reserved":
                    load.latencies.append(time.perf_counter() - started)
                else:
                    load.bad += 1


def direct(channel: Any, config: Any) -> Any:
    """The client that orders uses, without its gathering: each reservation is a call."""
    from market.contracts import inventory_pb2 as pb
    from market.orders.clients import Inventory

    class Direct(Inventory):
        async def reserve(self, order_id: Any, wanted: Any) -> Any:
            items = [pb.Item(product_id=w.product_id, quantity=w.quantity) for w in wanted]
            [answer] = await self._reserve_many([pb.ReserveRequest(reservation_id=str(order_id), items=items)])
            return answer

    return Direct(channel, config)


async def reserve(load: Load) -> Result:
    from market.kit.config import GrpcUpstream
    from market.kit.rpc import client as rpc
    from market.orders.clients import Inventory

    spec = load.spec
    config = GrpcUpstream(target=f"dns:///{spec.host}:{spec.port}", timeout_seconds=30)
    async with rpc.channel(config) as channel:
        inventory: Any = Inventory(channel, config) if spec.kind == "reserve" else direct(channel, config)
        reserving = Reserving(load, inventory)
        callers = [asyncio.create_task(reserving.caller()) for _ in range(spec.connections)]
        pacing = None
        if spec.rate and reserving.due is not None:
            pacing = asyncio.create_task(pace(spec.rate, reserving.due.put_nowait))
        await asyncio.sleep(spec.warmup)
        started, cpu = load._begin()
        await asyncio.sleep(spec.seconds)
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        print("end", flush=True)
        load.measuring, load.stopped = False, True
        late = 0
        if pacing and reserving.due is not None:
            pacing.cancel()
            late = reserving.due.qsize()
            for _ in callers:
                reserving.due.put_nowait(0)
        await asyncio.gather(*callers)
    return Result(
        rate=len(load.latencies) / seconds,
        good=len(load.latencies),
        bad=load.bad,
        late=late,
        seconds=seconds,
        cpu_share=used / seconds,
        latency=percentiles(load.latencies),
        statuses=dict(load.statuses),
        example=load.example,
    )


async def main(spec: Spec) -> None:
    load = Load(spec)
    result = await (reserve(load) if spec.kind in ("reserve", "direct") else load.run())
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)))
