"""gRPC as the services use it, against a neighbour that dies, hangs and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from market_dev.chaos.proxy import Proxy
from market_dev.stack import processes as spawn

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryServicer, InventoryStub, add_InventoryServicer_to_server
from market.kit import context
from market.kit.config import GrpcUpstream
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.resilience import CircuitBreaker
from market.kit.rpc import client as rpc
from market.kit.rpc.server import SERVER_OPTIONS


class Neighbour(InventoryServicer):
    """Answers at once, and remembers how much time each caller said to have left."""

    def __init__(self) -> None:
        self.left: list[float] = []
        self.port = next(spawn.free_ports())
        self._server: Any = None

    async def GetStock(self, request: pb.GetStockRequest, context: Any) -> pb.GetStockResponse:
        self.left.append(context.time_remaining())
        return pb.GetStockResponse()

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        add_InventoryServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def die(self) -> None:
        await self._server.stop(None)


@pytest.fixture
async def neighbour() -> AsyncIterator[Neighbour]:
    made = Neighbour()
    await made.start()
    yield made
    await made.die()


@asynccontextmanager
async def awake() -> AsyncIterator[Callable[[], float]]:
    """Seconds since here, without those in which this process stood still: each gap counts for at most a twentieth."""
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


async def asked(stub: Any, seconds: float = 300.0) -> None:
    await rpc.call(stub.GetStock, pb.GetStockRequest(), seconds)


async def test_the_time_that_is_left_is_the_deadline_of_the_grpc_call(neighbour: Neighbour) -> None:
    async with rpc.channel(GrpcUpstream(target=f"127.0.0.1:{neighbour.port}")) as channel:
        stub = InventoryStub(channel)
        await asked(stub)
        with context.deadline_in(100):
            await asked(stub)
        # Never lengthened by whoever has less.
        with context.deadline_in(1000):
            await asked(stub, 150)
        with context.deadline_in(0), pytest.raises(DeadlineExceeded):
            await asked(stub)
    first, second, third = neighbour.left
    # Of long times gRPC tells whole seconds.
    assert 250 < first <= 302
    assert 50 < second <= 102
    assert 110 < third <= 152


async def test_a_grpc_neighbour_that_hangs_costs_the_deadline_and_no_more(neighbour: Neighbour) -> None:
    async with (
        Proxy(to=neighbour.port) as network,
        rpc.channel(GrpcUpstream(target=f"127.0.0.1:{network.port}")) as channel,
    ):
        stub = InventoryStub(channel)
        await asked(stub)
        network.blackhole()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await asked(stub, 0.5)
        # Without it the channel itself would give the neighbour up, after 13 s.
        assert time.monotonic() - began < 10
        network.heal()
        await asked(stub)


@pytest.mark.parametrize("down_seconds", [0.3, 12.0])
async def test_a_grpc_neighbour_that_is_back_is_used_within_a_second(neighbour: Neighbour, down_seconds: float) -> None:
    """However long it was away: the pauses between attempts do not grow beyond a third of a second, the circuit's included.

    By gRPC's own rule they would be at five seconds after the longer time.
    """
    circuit = CircuitBreaker("channels", failures=5)

    async def ask(seconds: float = 1.0) -> bool:
        try:
            await circuit(lambda: asked(stub, seconds))
        except Unavailable:
            return False
        return True

    async with rpc.channel(GrpcUpstream(target=f"127.0.0.1:{neighbour.port}")) as channel:
        stub = InventoryStub(channel)
        assert await ask(60)
        await neighbour.die()
        end = time.monotonic() + down_seconds
        while time.monotonic() < end:
            assert not await ask()
            await asyncio.sleep(0.02)
        await neighbour.start()
        async with awake() as seconds:
            while not await ask():
                await asyncio.sleep(0.02)
        assert seconds() < 1.5
