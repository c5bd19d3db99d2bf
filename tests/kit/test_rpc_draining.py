"""A gRPC server that drains: it serves on, unless its store is unavailable and the clients are better off elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue

from market.kit.config import GrpcUpstream
from market.kit.errors import Unavailable
from market.kit.process.health import Health
from market.kit.rpc import client as rpc
from market.kit.rpc.server import GrpcServer, endpoint
from tests.support.ports import free_port
from tests.support.waiting import until


class Store:
    """`available`: whether it is, from the next use on. `checks`: how often a server has checked it."""

    def __init__(self, available: Callable[[int], bool] = lambda _: True) -> None:
        self.available = available
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        self.use()

    def use(self) -> None:
        if not self.available(self.checks):
            raise Unavailable("the database is unavailable: InvalidPasswordError")


@asynccontextmanager
async def serving(name: str, store: Store) -> AsyncIterator[tuple[GrpcServer, str]]:
    """Yield a server that responds with its name while its store is available, and its address."""

    async def handler(_: Any) -> StringValue:
        store.use()
        return StringValue(value=name)

    method = grpc.unary_unary_rpc_method_handler(
        endpoint("Name", handler), StringValue.FromString, StringValue.SerializeToString
    )
    health, port = Health(), free_port()
    health.add_check("postgres", store.check)
    services = {"test.Name": grpc.method_handlers_generic_handler("test.Name", {"Name": method})}
    server = GrpcServer("127.0.0.1", port, health, services, check_seconds=0.01)
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_a_draining_server_without_its_store_leaves_its_clients_to_the_other_servers_at_once() -> None:
    store = Store()
    async with (
        serving("old", store) as (old, old_address),
        serving("new", Store()) as (_, new_address),
        rpc.channel(GrpcUpstream(target=f"ipv4:{old_address},{new_address}")) as channel,
    ):
        method = channel.unary_unary("/test.Name/Name", StringValue.SerializeToString, StringValue.FromString)

        async def names() -> set[str]:
            """Return the names of the servers that respond to ten calls; the reason, where one fails."""
            found = set()
            for _ in range(10):
                try:
                    found.add((await rpc.call(method, StringValue(), 10)).value)
                except Unavailable as e:
                    found.add(str(e))
            return found

        async def are_called(expected: set[str]) -> bool:
            return await names() == expected

        await until(lambda: are_called({"old", "new"}))
        # As after a change of the password: the other server has the new one.
        store.available = lambda _: False
        await until(lambda: are_called({"the database is unavailable: InvalidPasswordError", "new"}))
        await old.drain(3600)
        await old.stop(15)
        await until(lambda: are_called({"new"}))


async def test_a_draining_server_serves_on_while_its_store_is_available_again_and_again() -> None:
    store = Store(available=lambda checks: checks % 3 == 0)
    async with serving("old", store) as (server, _):
        draining = asyncio.create_task(server.drain(3600))
        await until(lambda: store.checks >= 12)
        assert not draining.done()
        draining.cancel()


async def test_a_draining_server_stops_after_its_time() -> None:
    async with serving("old", Store()) as (server, _):
        for seconds in (0, 0.2):
            await server.drain(seconds)
