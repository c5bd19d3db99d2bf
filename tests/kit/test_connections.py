"""The HTTP server on a real socket: clients that misbehave, and one that behaves beside them."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import shutil
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import uvloop
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.responses import Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer, listen
from tests.kit.edge_process import MEMORY_LIMIT_BYTES
from tests.support.ports import free_port
from tests.support.waiting import until

HOST = b"Host: shop.example\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
PAGE = b"p" * (8 << 20)
JAVA = Path(__file__).with_name("Post.java")


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
        self._socket = listen("127.0.0.1", 0)
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
        routes = {"GET /": describe, "POST /": describe, "GET /page": page, "GET /slow": self.slow}
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
    """A connection that sends what it likes."""

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
    """Be the client that behaves."""
    async with connected(server) as client:
        await client.send(GET.replace(b"/ ", path.encode() + b" ", 1))
        status, _, body = await client.response()
        return status, body


def cut_off(limit: str) -> float:
    return REGISTRY.get_sample_value("market_http_connections_cut_off_total", {"limit": limit}) or 0


@asynccontextmanager
async def connections(server: Server, count: int, data: bytes, **options: int) -> AsyncIterator[list[Client]]:
    """Open connections that send the same and then nothing."""
    opened = [connected(server, **options) for _ in range(count)]
    clients = [await c.__aenter__() for c in opened]
    try:
        for client in clients:
            client.writer.write(data)
        yield clients
    finally:
        for c in opened:
            await c.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"G", "the headers must arrive within 0.4 s"),
        (b"GET / HTTP/1.1\r\nHost: shop", "the headers must arrive within 0.4 s"),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nx",
            "the body must arrive within 0.4 s",
        ),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
            "the body must arrive within 0.4 s",
        ),
    ],
)
async def test_an_incomplete_request_gets_408_and_is_never_in_flight(data: bytes, detail: str) -> None:
    async with serving(max_in_flight=3, header_timeout_seconds=0.4, body_timeout_seconds=0.4) as server:
        async with connections(server, 30, data) as hostile:
            while not hostile[0].reader._buffer:  # type: ignore[attr-defined]
                assert (await get(server))[0] == 200
                await asyncio.sleep(0.02)
            for client in hostile:
                status, headers, body = await client.response()
                assert (status, headers["connection"]) == (408, "close")
                assert headers["content-type"] == "application/problem+json"
                problem = json.loads(body)
                assert (problem["type"], problem["detail"]) == ("urn:market:problem:request-timeout", detail)
                assert await client.end() == b""


async def test_a_slow_request_that_keeps_the_deadlines_is_served() -> None:
    async with serving(header_timeout_seconds=5, body_timeout_seconds=5) as server:
        async with connected(server) as client:
            for _ in range(2):
                request = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"
                await client.send(*(request[n : n + 7] for n in range(0, len(request), 7)))
                status, _, body = await client.response()
                assert (status, json.loads(body)["body"]) == (200, "hello")


async def test_an_idle_connection_is_closed_without_a_response_and_a_used_one_stays_open() -> None:
    async with serving(keep_alive_seconds=1) as server:
        async with connected(server) as idle, connected(server) as used:
            for _ in range(15):
                await used.send(GET)
                assert (await used.response())[0] == 200
                await asyncio.sleep(0.1)
            assert await idle.end() == b""
            assert await used.end() == b""


@pytest.mark.parametrize(
    ("pieces", "status", "detail"),
    [
        ([b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 3000 + b"\r\n\r\n"], 431, "at most 2000 bytes"),
        ([b"GET / HTTP/1.1\r\n" + HOST + b"A: ", *[b"x" * 500] * 9], 431, "at most 2000 bytes"),
        ([b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"], 431, "at most 2000 bytes"),
        ([b"GET /", *[b"x" * 500] * 9], 431, "at most 2000 bytes"),
        ([b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 20 + b"\r\n"], 431, "at most 20, got 21"),
        (
            [b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: ", *[b"x" * 500] * 9],
            431,
            "at most 2000 bytes",
        ),
        ([b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n", *[b"x" * 999] * 9], 413, "3000 bytes"),
        (
            [
                b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
                *[b"200\r\n" + b"x" * 512 + b"\r\n"] * 9,
            ],
            413,
            "3000 bytes",
        ),
    ],
)
async def test_what_is_too_large_is_refused_and_ends_its_connection(
    pieces: list[bytes], status: int, detail: str
) -> None:
    async with serving(max_header_bytes=2000, max_headers=20, max_body_bytes=3000) as server:
        async with connected(server) as client, connected(server) as beside:
            await client.send(*pieces)
            got, headers, body = await client.response()
            assert (got, headers["connection"]) == (status, "close")
            assert detail in json.loads(body)["detail"]
            assert len(headers["x-request-id"]) == 32
            await client.send(GET)
            assert await client.end() == b""
            await beside.send(b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 19 + b"\r\n")
            assert (await beside.response())[0] == 200
            await beside.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3000\r\n\r\n" + b"x" * 3000)
            assert (await beside.response())[0] == 200


async def test_beyond_max_connections_the_one_that_has_waited_longest_makes_room() -> None:
    async with serving(max_connections=10) as server:
        before = cut_off("connections")
        async with connections(server, 5, b""), connections(server, 15, b"GET / HTTP/1.1\r\nA: ") as hostile:
            await until(lambda: cut_off("connections") == before + 10)
            for _ in range(5):
                assert (await get(server))[0] == 200
            # The youngest are still open.
            hostile[-1].writer.write(b"b\r\n" + HOST + b"\r\n")
            assert (await hostile[-1].response())[0] == 200


async def test_a_connection_beyond_requests_in_flight_gets_503() -> None:
    async with serving(max_connections=3) as server:
        async with connections(server, 3, GET.replace(b"/ ", b"/slow ", 1)):
            await until(lambda: server.slow_requests == 3)
            async with connected(server) as client:
                status, _, body = await client.response()
                assert (status, json.loads(body)["detail"]) == (503, "too many connections")
                assert await client.end() == b""


async def test_incomplete_bodies_are_bounded_together() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n"
    async with serving(max_receive_buffer_bytes=1 << 20) as server:
        before = cut_off("receive_buffer_bytes")
        async with connections(server, 20, head + b"x" * 200_000):
            await until(lambda: cut_off("receive_buffer_bytes") >= before + 15)
            async with connected(server) as client:
                await client.send(head, *[b"x" * 100_000] * 10)
                assert (await client.response())[0] == 200


async def test_a_response_that_is_not_taken_ends_its_connection_and_a_slow_reader_gets_all_of_it() -> None:
    request = GET.replace(b"/ ", b"/page ", 1)
    async with serving(send_timeout_seconds=1, min_send_bytes_per_second=2 << 20) as server:
        before = cut_off("send_timeout_seconds")
        async with connections(server, 3, request, receive_buffer=4096), connected(server) as slow:
            await slow.send(request)
            received = 0
            while received < len(PAGE):
                piece = await slow.reader.read(65536)
                assert piece
                received += len(piece)
                # About two seconds altogether.
                await asyncio.sleep(0.01)
            await until(lambda: cut_off("send_timeout_seconds") == before + 3, 20)


async def test_responses_that_are_not_taken_are_bounded_together_and_the_slowest_end() -> None:
    request = GET.replace(b"/ ", b"/page ", 1)
    async with serving(max_send_buffer_bytes=24 << 20) as server:
        before = cut_off("send_buffer_bytes")
        async with connections(server, 12, request, receive_buffer=4096):
            await until(lambda: cut_off("send_buffer_bytes") >= before + 6)
            for _ in range(3):
                assert await get(server, "/page") == (200, PAGE)


async def test_the_next_request_is_not_in_flight_while_the_last_response_is_not_taken() -> None:
    async with serving(max_in_flight=2) as server:
        pages = GET.replace(b"/ ", b"/page ", 1) * 3
        async with connections(server, 5, pages, receive_buffer=65536) as hostile:
            # Their first responses do not fit into the buffers of their sockets.
            await asyncio.sleep(0.5)
            for _ in range(5):
                assert (await get(server))[0] == 200
            for _ in range(3):
                assert (await hostile[0].response())[0] == 200


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"Content-Length: 5\r\n\r\n", b"hello"],
        [b"Content-Length: 5\r\n\r\nhello"],
        [b"Content-Length: 5\r\n\r\nhel", b"lo"],
        [b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"lo\r\n0\r\n\r\n"],
        [b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\nUser: trailer\r\n\r\n"],
    ],
)
async def test_a_request_that_offers_an_upgrade_is_handled_as_if_it_did_not(pieces: list[bytes]) -> None:
    async with serving() as server:
        async with connected(server) as client:
            first, *rest = pieces
            # Twice on one connection, and another request at once after the body.
            for _ in range(2):
                await client.send(
                    b"POST / HTTP/1.1\r\n" + HOST + UPGRADE + first, *rest[:-1], (rest or [b""])[-1] + GET
                )
                status, _, body = await client.response()
                described = json.loads(body)
                assert (status, described["method"], described["body"]) == (200, "POST", "hello")
                assert {"upgrade", "http2-settings", "user"}.isdisjoint(described["headers"])
                status, _, body = await client.response()
                assert (status, json.loads(body)["method"]) == (200, "GET")


async def test_the_rest_of_the_connection_header_counts_when_an_upgrade_is_offered() -> None:
    async with serving() as server:
        async with connected(server) as client:
            await client.send(GET.replace(HOST, HOST + b"Connection: close, upgrade\r\nUpgrade: websocket\r\n"))
            status, headers, _ = await client.response()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.end() == b""


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on this machine")
async def test_javas_stock_client_can_post() -> None:
    async with serving() as server:
        process = await asyncio.create_subprocess_exec(
            "java",
            "-Xshare:auto",
            "-XX:TieredStopAtLevel=1",
            str(JAVA),
            f"http://127.0.0.1:{server.port}/",
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        lines = output.decode().splitlines()
        assert [json.loads(line.partition(" ")[2])["body"] for line in lines] == ["hello 1", "hello 2", "hello 3"]
        assert {line.partition(" ")[0] for line in lines} == {"200"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
async def test_curl_can_post_with_http2_offered_and_with_a_large_body() -> None:
    async with serving() as server:
        for size, options in ((5, ["--http2"]), (900_000, ["-H", "Expect: 100-continue"]), (900_000, ["--http2"])):
            process = await asyncio.create_subprocess_exec(
                "curl",
                "--silent",
                "--show-error",
                *options,
                "--data-binary",
                "@-",
                f"http://127.0.0.1:{server.port}/",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await asyncio.wait_for(process.communicate(b"x" * size), 60)
            assert json.loads(output)["body"] == "x" * size


@pytest.mark.parametrize(
    ("request_head", "status", "detail"),
    [
        (b"GET / HTTP/1.1\r\n", 400, "Host: is missing"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400, "Host: must not be repeated"),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n", 400, "Host: must not be repeated"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n", 400, "Host: must be a host name or an address"),
        (b"BREW / HTTP/1.1\r\n" + HOST, 501, "the method is unknown"),
        (b"CONNECT a:1 HTTP/1.1\r\n" + HOST, 501, "CONNECT: this server is not a proxy"),
        ("GET /café HTTP/1.1\r\n".encode() + HOST, 400, "URL: must be percent-encoded"),
        (b"GET /a b HTTP/1.1\r\n" + HOST, 400, "spaces in its URL must be percent-encoded"),
        (b"GET tea HTTP/1.1\r\n" + HOST, 400, "URL: must be percent-encoded, and begin with /"),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n",
            501,
            "Transfer-Encoding: must be chunked",
        ),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            400,
            "is not valid HTTP",
        ),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n", 400, "is not valid HTTP"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n", 400, "is not valid HTTP"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n", 400, "is not valid HTTP"),
        (b"PRI * HTTP/2.0\r\n", 400, "is not valid HTTP"),
    ],
)
async def test_what_cannot_be_handled_gets_a_problem_document_and_ends_its_connection(
    request_head: bytes, status: int, detail: str
) -> None:
    async with serving() as server:
        async with connected(server) as client:
            # The requests before it have their responses first.
            await client.send(GET + GET + request_head + b"\r\n" + GET)
            for _ in range(2):
                assert (await client.response())[0] == 200
            got, headers, body = await client.response()
            assert (got, headers["connection"], headers["content-type"]) == (
                status,
                "close",
                "application/problem+json",
            )
            assert detail in json.loads(body)["detail"]
            assert await client.end() == b""


async def test_http_1_0_needs_no_host_and_a_known_method_without_a_route_gets_405() -> None:
    async with serving() as server:
        async with connected(server) as old, connected(server) as other:
            await old.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await old.response())[0] == 200
            await other.send(GET.replace(b"GET", b"LOCK"))
            assert (await other.response())[0] == 405


async def test_spaces_behind_the_value_of_a_header_are_not_part_of_it() -> None:
    async with serving() as server:
        async with connected(server) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: a \t\r\nX-Request-Id: abc-1 \t \r\n\r\n")
            status, headers, _ = await client.response()
            assert (status, headers["x-request-id"]) == (200, "abc-1")


async def test_a_client_that_expects_100_gets_it_only_for_a_body_that_will_be_read() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    async with serving() as server:
        async with connected(server) as client:
            await client.send(head % 5)
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"hello")
            assert json.loads((await client.response())[2])["body"] == "hello"
            await client.send(head % 5_000_000)
            assert (await client.response())[0] == 413
            assert await client.end() == b""


async def test_more_than_a_hundred_requests_ahead_are_refused() -> None:
    async with serving() as server:
        async with connected(server) as client:
            await client.send(GET * 80)
            assert [(await client.response())[0] for _ in range(80)] == [200] * 80
            await client.send(GET * 1000)
            rest = await client.end()
            statuses = re.findall(rb"HTTP/1.1 (\d+)", rest)
            assert statuses == [b"200"] * 101 + [b"503"]


async def test_a_server_that_stops_does_not_wait_for_incomplete_requests() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nx"
    async with serving() as server:
        async with connections(server, 3, head) as bodies, connections(server, 3, b"GET /") as heads:
            assert (await get(server))[0] == 200
            server.stop()
            for client in (*bodies, *heads):
                assert await client.end() == b""


async def test_with_the_defaults_hostile_clients_of_all_kinds_leave_room_for_others_and_memory_to_spare() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.kit.edge_process",
        str(port),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    hostile: list[socket.socket] = []

    def connect() -> socket.socket:
        sock = socket.socket()
        hostile.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        return sock

    async def is_served() -> bool:
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello")
                response = await reader.read()
                writer.close()
                return response.startswith(b"HTTP/1.1 200 OK")
        except OSError:
            return False

    try:
        await until(is_served)
        with open_files(4096):
            for _ in range(1030):
                connect().sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nx")
            assert await is_served()
            for _ in range(60):
                connect().sendall(GET.replace(b"/ ", b"/page ", 1))
            assert await is_served()
            for _ in range(1500):
                connect().sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 30_000)
            assert await is_served()
            for _ in range(100):
                sock = connect()
                sock.setblocking(False)
                sock.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 999_000)
            assert await is_served()
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kb = int(status.partition("VmHWM:")[2].split()[0])
            assert peak_kb < MEMORY_LIMIT_BYTES * 0.75 / 1024
    finally:
        for sock in hostile:
            sock.close()
        process.kill()
        await process.wait()


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """Allow this process that many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
