"""The load generator: a process of its own, so that its CPU time is not counted for what it measures.

Reads a JSON specification from stdin (see `Spec`), prints lines `begin` and `end` around the measured time, then the
result as JSON. Closed loop: each of N connections sends its next request when the response has arrived. Open loop:
requests are due at a fixed rate whether or not responses arrive, and latency counts from when a request was due.
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
from benchmarks.measurements import Latency, percentiles

# How long to wait for responses after the end.
_GRACE_SECONDS = 15


class Spec(msgspec.Struct, kw_only=True):
    """What to send.

    kind: http, grpc (raw frames), reserve (the client that orders uses), or reserve-unbatched (without its batching)
    streams: concurrent requests per connection, for kind grpc
    rate: requests per second of an open loop; None is a closed loop
    count: a closed loop that ends after so many requests instead of after `seconds`
    retries_refused: 429 and 503 are no failures; the connection sends its next request after the time in Retry-After
    """

    kind: str = "http"
    host: str = "127.0.0.1"
    port: int
    workload: str
    params: dict[str, Any] = {}
    connections: int = 64
    streams: int = 1
    rate: float | None = None
    warmup: float = 1.0
    seconds: float = 5.0
    count: int | None = None
    retries_refused: bool = False


class Result(msgspec.Struct, kw_only=True):
    """What was measured.

    rate: successful responses per second
    unanswered: requests that were due and had no response at the end
    cpu_share: of one core, by the generator itself; if it is near 1, the generator is what was measured
    """

    rate: float
    succeeded: int
    failed: int
    unanswered: int
    seconds: float
    cpu_share: float
    latency: Latency
    statuses: dict[str, int]
    example_of_failure: str = ""


class LoadRun:
    """Owns the connections and the counts of one run."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.requests = workloads.make(spec.workload, spec.params)
        self.idle: deque[Any] = deque()
        # When the requests that wait for a connection were due.
        self.waiting: deque[float] = deque()
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.measuring = False
        self.stopped = False
        self.in_flight = 0
        self.failed = 0
        self.sent = 0
        self.example_of_failure = ""
        self.finished = asyncio.Event()

    def completed(self, connection: Any, due: float, status: str, succeeded: bool, body: bytes) -> None:
        """Record a response and use its connection for the next request."""
        now = time.perf_counter()
        self.in_flight -= 1
        refused = self.spec.retries_refused and status in ("429", "503")
        if self.measuring:
            self.statuses[status] += 1
            if succeeded:
                self.latencies.append(now - due)
            elif not refused:
                self.failed += 1
                self.example_of_failure = self.example_of_failure or body[:300].decode("utf-8", "replace")
        if self.stopped:
            if not self.in_flight:
                self.finished.set()
            return
        if refused:
            asyncio.get_running_loop().call_later(connection.retry_after, self.send_again, connection)
        elif self.spec.rate is None:
            if self.spec.count is not None and self.sent >= self.spec.count:
                if not self.in_flight:
                    self.finished.set()
                return
            self.send(connection, now)
        elif self.waiting:
            self.send(connection, self.waiting.popleft())
        else:
            self.idle.append(connection)

    def send(self, connection: Any, due: float) -> None:
        self.in_flight += 1
        self.sent += 1
        connection.send(next(self.requests), due)

    def send_again(self, connection: Any) -> None:
        """Send the next request on a connection whose last one was refused."""
        if not self.stopped:
            self.send(connection, time.perf_counter())

    async def run(self) -> Result:
        spec = self.spec
        connect = http1.connect if spec.kind == "http" else h2.connect
        slots = [
            slot for _ in range(spec.connections) for slot in await connect(self, spec.host, spec.port, spec.streams)
        ]
        pacing = None
        if spec.rate is None:
            for slot in slots[: spec.count]:
                self.send(slot, time.perf_counter())
        else:
            self.idle.extend(slots)
            pacing = asyncio.create_task(pace(spec.rate, self.arrive))
        if spec.count is None:
            await asyncio.sleep(spec.warmup)
        started, cpu = self.begin()
        if spec.count is None:
            await asyncio.sleep(spec.seconds)
        else:
            await self.finished.wait()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        print("end", flush=True)
        self.measuring = False
        unanswered = len(self.waiting)
        self.stopped = True
        if pacing:
            pacing.cancel()
        succeeded = len(self.latencies)
        if self.in_flight:
            try:
                await asyncio.wait_for(self.finished.wait(), _GRACE_SECONDS)
            except TimeoutError:
                # Too slow to wait for: the rate shows it, and it is noted.
                unanswered += self.in_flight
        return self.result(succeeded, unanswered, seconds, cpu_seconds)

    def begin(self) -> tuple[float, float]:
        """Begin to measure. Return the times of perf_counter and process_time."""
        gc.collect()
        gc.freeze()
        print("begin", flush=True)
        self.measuring = True
        return time.perf_counter(), time.process_time()

    def arrive(self, due: float) -> None:
        """Send a request. If no connection is idle it waits, and its latency counts from when it was due."""
        if self.idle:
            self.send(self.idle.popleft(), due)
        else:
            self.waiting.append(due)

    def result(self, succeeded: int, unanswered: int, seconds: float, cpu_seconds: float) -> Result:
        return Result(
            rate=succeeded / seconds,
            succeeded=succeeded,
            failed=self.failed,
            unanswered=unanswered,
            seconds=seconds,
            cpu_share=cpu_seconds / seconds,
            latency=percentiles(self.latencies),
            statuses=dict(self.statuses),
            example_of_failure=self.example_of_failure,
        )


async def pace(rate: float, arrive: Callable[[float], None]) -> None:
    """Call `arrive` for each request when it is due, `rate` times per second."""
    started = time.perf_counter()
    number = 0
    while True:
        now = time.perf_counter()
        while (due := started + number / rate) <= now:
            number += 1
            arrive(due)
        # uvloop's timers have a resolution of a millisecond: a shorter sleep would spin, and take a core from what is
        # measured.
        await asyncio.sleep(max(0.001, due - now))


class ReserveRun:
    """N callers of the gRPC client that orders uses, so that reservations are batched as in orders."""

    def __init__(self, run: LoadRun, client: Any) -> None:
        self.run = run
        self.client = client
        # Open loop: when the requests that no caller has taken yet were due.
        self.due: asyncio.Queue[float] | None = asyncio.Queue() if run.spec.rate else None

    async def caller(self) -> None:
        run = self.run
        while True:
            started = time.perf_counter() if self.due is None else await self.due.get()
            if run.stopped:
                return
            order_id, lines = next(run.requests)
            try:
                response = await self.client.reserve(order_id, lines)
            except Exception as e:
                run.failed += run.measuring
                run.example_of_failure = run.example_of_failure or repr(e)[:300]
                continue
            if run.measuring:
                name = type(response).__name__
                run.statuses[name] += 1
                if name == "Reserved":
                    run.latencies.append(time.perf_counter() - started)
                else:
                    run.failed += 1


def unbatched_client(channel: Any, config: Any) -> Any:
    """Return the client that orders uses, without its batching: each reservation is one call."""
    from market.contracts import inventory_pb2 as pb
    from market.orders.clients import InventoryClient

    class Unbatched(InventoryClient):
        async def reserve(self, order_id: Any, wanted: Any) -> Any:
            items = [pb.Item(product_id=w.product_id, quantity=w.quantity) for w in wanted]
            [response] = await self._reserve_many([pb.ReserveRequest(reservation_id=str(order_id), items=items)])
            return response

    return Unbatched(channel, config)


async def run_reserve(run: LoadRun) -> Result:
    from market.kit.config import GrpcUpstream
    from market.kit.rpc import client as rpc
    from market.orders.clients import InventoryClient

    spec = run.spec
    config = GrpcUpstream(target=f"dns:///{spec.host}:{spec.port}", timeout_seconds=30)
    async with rpc.channel(config) as channel:
        client: Any = InventoryClient(channel, config) if spec.kind == "reserve" else unbatched_client(channel, config)
        reserve_run = ReserveRun(run, client)
        callers = [asyncio.create_task(reserve_run.caller()) for _ in range(spec.connections)]
        pacing = None
        if spec.rate and reserve_run.due is not None:
            pacing = asyncio.create_task(pace(spec.rate, reserve_run.due.put_nowait))
        await asyncio.sleep(spec.warmup)
        started, cpu = run.begin()
        await asyncio.sleep(spec.seconds)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        print("end", flush=True)
        run.measuring, run.stopped = False, True
        unanswered = 0
        if pacing and reserve_run.due is not None:
            pacing.cancel()
            unanswered = reserve_run.due.qsize()
            for _ in callers:
                reserve_run.due.put_nowait(0)
        await asyncio.gather(*callers)
    return run.result(len(run.latencies), unanswered, seconds, cpu_seconds)


async def main(spec: Spec) -> None:
    run = LoadRun(spec)
    result = await (run_reserve(run) if spec.kind.startswith("reserve") else run.run())
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)))
