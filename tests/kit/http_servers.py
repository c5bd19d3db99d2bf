"""HTTP servers that send arbitrary bytes, and the client under test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from market.kit.config import HttpUpstream
from market.kit.http.client import HttpClient

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Some: Thing\r\n\r\nok"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def server(serve: Serve, sock: socket.socket | None = None) -> AsyncIterator[tuple[str, list[int]]]:
    """Run a server; `serve` gets each connection with its number. Yields the URL and the list of connections so far."""
    connections: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        connections.append(len(connections))
        try:
            await serve(reader, writer, connections[-1])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    it = await (
        asyncio.start_server(accept, "127.0.0.1", 0) if sock is None else asyncio.start_server(accept, sock=sock)
    )
    try:
        yield f"http://127.0.0.1:{it.sockets[0].getsockname()[1]}", connections
    finally:
        it.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def client(url: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, **settings: int) -> HttpClient:
    """A client with a timeout that a busy machine does not exceed."""
    return HttpClient("upstream", HttpUpstream(url=url, timeout_seconds=60, **settings), sleep=sleep)


async def request_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def responding(data: bytes, *, close: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await request_head(reader)
            writer.write(data)
            await writer.drain()
            if close:
                return

    return serve
