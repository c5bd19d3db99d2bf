"""What a client that keeps its connection sees while a service drains."""

from __future__ import annotations

import asyncio
from typing import Any

from market.kit.http.server import HttpServer, listen


async def app(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_a_draining_server_answers_and_closes_the_connection_with_the_answer() -> None:
    socket = listen("127.0.0.1", 0)
    server = HttpServer(app, sock=socket)
    await server.start()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        return await reader.readuntil(b"\r\n\r\nok")

    reader, writer = await asyncio.open_connection(*socket.getsockname())
    assert b"connection: close" not in await ask(reader, writer)
    server.drain()
    assert b"connection: close" in await ask(reader, writer)
    assert await reader.read() == b""
    writer.close()
    # It goes on serving, and goes on saying so after uvicorn has made its headers anew.
    await asyncio.sleep(1.3)
    reader, writer = await asyncio.open_connection(*socket.getsockname())
    assert b"connection: close" in await ask(reader, writer)
    writer.close()
    await server.stop(1)
