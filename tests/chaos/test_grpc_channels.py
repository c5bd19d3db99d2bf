"""gRPC calls as the services make them, to an upstream that stops, hangs and recovers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from market_dev.chaos.proxy import Proxy

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryServicer, InventoryStub, add_InventoryServicer_to_server
from market.kit import context
from market.kit.config import GrpcUpstream
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.resilience import CircuitBreaker
from market.kit.rpc import client as rpc
from market.kit.rpc.server import SERVER_OPTIONS
from tests.support.ports import free_port


class Upstream(InventoryServicer):
    """Responds at once, and records the remaining time of each call."""

    def __init__(self) -> None:
        self.remaining: list[float] = []
        self.port = free_port()
        self._server: Any = None

    async def GetStock(self, request: pb.GetStockRequest, context: Any) -> pb.GetStockResponse:
        self.remaining.append(context.time_remaining())
        return pb.GetStockResponse()

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        add_InventoryServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    await upstream.start()
    yield upstream
    await upstream.stop()


@asynccontextmanager
async def stopwatch() -> AsyncIterator[Callable[[], float]]:
    """Yield the seconds since here, without those in which this process stalled: a gap counts for at most 0.05 s."""
    counted = 0.0

    async def count() -> None:
        nonlocal counted
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            counted += min(now - last, 0.05)
            last = now

    counting = asyncio.create_task(count())
    try:
        yield lambda: counted
    finally:
        counting.cancel()


async def call(stub: Any, seconds: float = 300.0) -> None:
    await rpc.call(stub.GetStock, pb.GetStockRequest(), seconds)


async def test_the_remaining_time_is_the_deadline_of_the_grpc_call(upstream: Upstream) -> None:
    async with rpc.channel(GrpcUpstream(target=f"127.0.0.1:{upstream.port}")) as channel:
        stub = InventoryStub(channel)
        await call(stub)
        with context.deadline_in(100):
            await call(stub)
        # A longer deadline of the caller does not extend the call's own.
        with context.deadline_in(1000):
            await call(stub, 150)
        with context.deadline_in(0), pytest.raises(DeadlineExceeded):
            await call(stub)
    first, second, third = upstream.remaining
    # gRPC transmits long timeouts in whole seconds.
    assert 250 < first <= 302
    assert 50 < second <= 102
    assert 110 < third <= 152


async def test_a_hanging_upstream_costs_no_more_than_the_deadline(upstream: Upstream) -> None:
    target = upstream.port
    async with (
        Proxy(upstream=target) as network,
        rpc.channel(GrpcUpstream(target=f"127.0.0.1:{network.port}")) as channel,
    ):
        stub = InventoryStub(channel)
        await call(stub)
        network.blackhole()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await call(stub, 0.5)
        # Without the deadline, the channel's keepalive would close the connection after 13 s.
        assert time.monotonic() - started < 10
        network.heal()
        await call(stub)


@pytest.mark.parametrize("down_seconds", [0.3, 12.0])
async def test_an_upstream_that_recovers_is_used_again_within_a_second(upstream: Upstream, down_seconds: float) -> None:
    """However long it was down: neither the backoff of the channel nor that of the circuit breaker exceeds a third of a
    second.

    By gRPC's defaults the backoff would be five seconds after the longer outage.
    """
    circuit = CircuitBreaker("channels", failure_threshold=5)

    async def succeeds(seconds: float = 1.0) -> bool:
        try:
            await circuit(lambda: call(stub, seconds))
        except Unavailable:
            return False
        return True

    async with rpc.channel(GrpcUpstream(target=f"127.0.0.1:{upstream.port}")) as channel:
        stub = InventoryStub(channel)
        assert await succeeds(60)
        await upstream.stop()
        end = time.monotonic() + down_seconds
        while time.monotonic() < end:
            assert not await succeeds()
            await asyncio.sleep(0.02)
        await upstream.start()
        async with stopwatch() as elapsed:
            while not await succeeds():
                await asyncio.sleep(0.02)
        assert elapsed() < 1.5
