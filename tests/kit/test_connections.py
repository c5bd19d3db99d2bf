"""The HTTP server on a real socket: clients that misbehave, and one that behaves beside them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from pathlib import Path

import pytest

from market.kit.config import HttpLimits
from market.kit.http.connections import Connections
from tests.kit.connections import GET, HOST, PAGE, connected, connections, cut_off, get, open_files, serving
from tests.kit.edge_process import MEMORY_LIMIT_BYTES
from tests.support.ports import free_port
from tests.support.waiting import until


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
            statuses = []
            while not hostile[0].reader._buffer:  # type: ignore[attr-defined]
                statuses.append((await get(server))[0])
                await asyncio.sleep(0.02)
            # 503 would mean that the incomplete requests are in flight. A machine that stands still may be too late.
            assert 200 in statuses
            assert set(statuses) <= {200, 408}
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
    async with serving(keep_alive_seconds=4) as server:
        async with connected(server) as idle, connected(server) as used:
            ended = asyncio.create_task(idle.end())
            while not ended.done():
                await used.send(GET)
                assert (await used.response())[0] == 200
                await asyncio.sleep(0.1)
            assert await ended == b""
            assert await used.end() == b""


@pytest.mark.parametrize(
    ("pieces", "status", "detail"),
    [
        ([b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 3000 + b"\r\n\r\n"], 431, "at most 2000 bytes"),
        ([b"GET / HTTP/1.1\r\n" + HOST + b"A: ", *[b"x" * 500] * 9], 431, "at most 2000 bytes"),
        ([b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"], 431, "at most 2000 bytes"),
        ([b"GET /", *[b"x" * 500] * 9], 431, "at most 2000 bytes"),
        ([b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 20 + b"\r\n"], 431, "at most 20 are allowed, got 21"),
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
    # The whole page may take 9 s.
    async with serving(send_timeout_seconds=1, min_send_bytes_per_second=1 << 20) as server:
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
            await until(lambda: cut_off("send_timeout_seconds") == before + 3)


async def test_responses_that_are_not_taken_are_bounded_together_and_the_slowest_end() -> None:
    request = GET.replace(b"/ ", b"/page ", 1)
    async with serving(max_send_buffer_bytes=24 << 20) as server:
        before = cut_off("send_buffer_bytes")
        async with connections(server, 12, request, receive_buffer=4096):
            await until(lambda: cut_off("send_buffer_bytes") >= before + 6)
            for _ in range(3):
                assert await get(server, "/page") == (200, PAGE)


class SlowReader:
    """A connection with a response of 10 MiB, whose client has taken all but `unsent_bytes`."""

    buffered_response_bytes = 10 << 20

    def __init__(self, rate: float) -> None:
        self.unsent_bytes = self.buffered_response_bytes
        self.rate = rate
        self.is_cut_off = False

    def send_rate(self, _now: float, _min_seconds: float) -> float:
        return self.rate

    def cut_off(self) -> None:
        self.is_cut_off = True


def test_a_response_counts_in_full_until_the_client_has_taken_all_of_it() -> None:
    all_connections = Connections(HttpLimits(max_send_buffer_bytes=24 << 20))
    first, second, third = (SlowReader(rate) for rate in (2.0, 1.0, 3.0))
    for reader in (first, second):
        all_connections.writing_paused(reader)  # type: ignore[arg-type]
        # It leaves a few bytes, so the event loop still holds the whole response.
        reader.unsent_bytes = 1000
        all_connections.writing_resumed(reader)  # type: ignore[arg-type]
    assert (first.is_cut_off, second.is_cut_off) == (False, False)
    all_connections.writing_paused(third)  # type: ignore[arg-type]
    assert [reader.is_cut_off for reader in (first, second, third)] == [False, True, False]


async def test_bodies_of_requests_in_flight_are_bounded_together() -> None:
    body = b"x" * 700_000
    request = b"POST /slow HTTP/1.1\r\n" + HOST + b"Content-Length: 700000\r\n\r\n" + body
    async with serving(max_in_flight_body_bytes=1 << 20) as server:
        async with connections(server, 1, request), connected(server) as second:
            await until(lambda: server.slow_requests == 1)
            await second.send(request)
            status, headers, problem = await second.response()
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(problem)["detail"] == "the request bodies in flight exceed the limit on their total size"
            # It ends with its request, and requests without a body are served.
            assert (await get(server))[0] == 200
            await second.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 300000\r\n\r\n" + body[:300_000])
            assert (await second.response())[0] == 200
            assert server.slow_requests == 1


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
