"""What a client that keeps its connection open sees while a service drains."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer, bind
from market.kit.process.health import Health


async def test_a_draining_server_responds_and_closes_the_connection_with_each_response() -> None:
    async def hello(_: Request) -> Response:
        return json_response(b"ok")

    health = Health()
    socket = bind("127.0.0.1", 0)
    server = HttpServer(edge.application({"GET /": hello}, Http(port=1), health=health), sock=socket)
    await server.start()

    async def get(path: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return await reader.readuntil(b"\r\n\r\n")

    reader, writer = await asyncio.open_connection(*socket.getsockname())
    assert b"connection: close" not in await get(b"/", reader, writer)
    assert await reader.readexactly(2) == b"ok"
    health.draining = True
    # Errors close the connection too.
    for path, status, stream in ((b"/", b" 200 ", (reader, writer)), (b"/none", b" 404 ", None)):
        reader, writer = stream or await asyncio.open_connection(*socket.getsockname())
        head = await get(path, reader, writer)
        assert status in head
        assert head.count(b"connection: close") == 1
        await reader.read()
        assert reader.at_eof()
        writer.close()
    await server.stop(1)
