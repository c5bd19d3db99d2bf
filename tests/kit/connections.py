"""An HTTP server on a real socket for the tests, and clients that send arbitrary bytes to it."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager

import uvloop
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.responses import Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer, bind

HOST = b"Host: localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
PAGE = b"p" * (8 << 20)


async def describe(request: Request) -> Response:
    """Return what the server has understood of the request."""
    body = await request.body()
    names = sorted(name.decode() for name, _ in request.scope["headers"])
    return json_response({"method": request.method, "body": body.decode(), "headers": names})


async def page(_: Request) -> Response:
    return json_response(PAGE)


class Server:
    """A server in a thread of its own, on the loop of production."""

    def __init__(self, config: Http) -> None:
        self._socket = bind("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self._config = config
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._slow = asyncio.Event()
        self.slow_requests = 0

    async def slow(self, _: Request) -> Response:
        self.slow_requests += 1
        await self._slow.wait()
        return json_response({})

    def run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        routes = {
            "GET /": describe,
            "POST /": describe,
            "GET /page": page,
            "GET /slow": self.slow,
            "POST /slow": self.slow,
        }
        server = HttpServer(edge.application(routes, self._config), sock=self._socket, limits=self._config)
        await server.start()
        self._started.set()
        await self._stop.wait()
        self._slow.set()
        await server.stop(1)

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            assert await asyncio.to_thread(self._started.wait, 60)
            yield self
        finally:
            self.stop()
            await asyncio.to_thread(thread.join)


def serving(**limits: float) -> AbstractAsyncContextManager[Server]:
    return Server(Http(port=1, **limits)).running()  # type: ignore[arg-type]


class Client:
    """A connection to the server, on which a test can send arbitrary bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        """Send each piece on its own."""
        for piece in pieces:
            try:
                self.writer.write(piece)
                await self.writer.drain()
            except ConnectionError:
                return
            await asyncio.sleep(0.02)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next final response: status, headers, body."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            return int(first.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def end(self) -> bytes:
        """Return what arrives until the server ends the connection."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def connected(server: Server, *, receive_buffer: int = 0) -> AsyncIterator[Client]:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def get(server: Server, path: str = "/") -> tuple[int, bytes]:
    """Send a request as a well-behaved client, and return the status and the body of the response."""
    async with connected(server) as client:
        await client.send(GET.replace(b"/ ", path.encode() + b" ", 1))
        status, _, body = await client.response()
        return status, body


def cut_off(limit: str) -> float:
    return REGISTRY.get_sample_value("market_http_connections_cut_off_total", {"limit": limit}) or 0


@asynccontextmanager
async def connections(server: Server, count: int, data: bytes, **options: int) -> AsyncIterator[list[Client]]:
    """Open connections that all send `data`, and nothing after it."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server, **options)) for _ in range(count)]
        for client in clients:
            client.writer.write(data)
        yield clients


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """Allow this process at least `count` open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
