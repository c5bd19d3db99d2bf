"""Servers that listen on `::`: clients reach them by IPv6 and by IPv4."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import GrpcUpstream, Http
from market.kit.http import edge
from market.kit.http.caller import caller
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer, bind
from market.kit.process.health import Health
from market.kit.rpc import client as rpc
from market.kit.rpc.server import GrpcServer
from tests.support.ports import free_port


def loopback_addresses() -> list[str]:
    """Return 127.0.0.1 and, on a machine that has it, ::1."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def show(request: Request) -> Response:
    return json_response({"caller": caller(request), "address": context.client_address.get()})


@pytest.fixture
async def http_port() -> AsyncIterator[int]:
    sock = bind("::", 0)
    config = Http(port=1, trusted_proxies=("127.0.0.0/8", "::1/128"))
    server = HttpServer(edge.application({"GET /": show}, config), sock=sock)
    await server.start()
    yield sock.getsockname()[1]
    await server.stop(1)


@pytest.mark.parametrize("address", loopback_addresses())
async def test_an_http_server_on_both_families_sees_each_client_by_its_own_address(
    http_port: int, address: str
) -> None:
    """An IPv4 client is not `::ffff:127.0.0.1`, which would be in no network of trusted proxies."""
    async with httpx.AsyncClient(base_url=f"http://{in_url(address)}:{http_port}", timeout=60) as client:
        own = (await client.get("/")).json()
        forwarded = (await client.get("/", headers={"X-Forwarded-For": "203.0.113.7"})).json()
    name = "address:::/64" if address == "::1" else f"address:{address}"
    assert own == {"caller": name, "address": address}
    assert forwarded == {"caller": "address:203.0.113.7", "address": "203.0.113.7"}


@pytest.mark.parametrize("address", loopback_addresses())
async def test_a_grpc_server_on_both_families_serves_each_client(address: str) -> None:
    port = free_port()
    server = GrpcServer("::", port, Health(), {})
    await server.start()
    try:
        async with rpc.channel(GrpcUpstream(target=f"{in_url(address)}:{port}")) as channel:
            check: Any = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await check(health_pb2.HealthCheckRequest(service="unknown"), timeout=60, wait_for_ready=True)
    finally:
        await server.stop(0)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_without_ipv6_every_address_is_that_of_ipv4() -> None:
    """As on a node whose kernel was started with ipv6.disable=1."""

    def new_socket(family: int, kind: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    with bind("::", 0, new_socket=new_socket) as sock:
        assert (sock.family, sock.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")
    with pytest.raises(OSError, match="cannot listen on ::1:0: Address family not supported by protocol"):
        bind("::1", 0, new_socket=new_socket)
