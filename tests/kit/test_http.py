"""The HTTP client and its connection pool against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager

import pytest
import uvloop
from prometheus_client import REGISTRY

from market.kit import context
from market.kit.config import HttpUpstream
from market.kit.errors import BadInput, DeadlineExceeded, Unavailable
from market.kit.http.client import ConnectFailed, HttpClient, ResponseRefused
from market.kit.http.pool import ConnectError, ConnectionPool
from tests.support.ports import free_port
from tests.support.waiting import until

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


async def test_a_connection_is_reused() -> None:
    async with server(responding(OK)) as (url, connections), client(url) as http:
        for _ in range(5):
            response = await http.request("GET", "/x")
            assert (response.status, response.body, response.headers["x-some"]) == (200, b"ok", "Thing")
    assert len(connections) == 1


@pytest.mark.parametrize(
    "data",
    [
        LAST,
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
    ],
)
async def test_a_response_that_ends_its_connection_is_complete_and_the_connection_is_not_reused(data: bytes) -> None:
    async with server(responding(data, close=True)) as (url, connections), client(url) as http:
        assert [(await http.request("GET", "/x")).body for _ in range(3)] == [b"ok"] * 3
    assert len(connections) == 3


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
    ],
)
async def test_other_forms_of_responses_are_read_and_the_connection_is_reused(
    data: bytes, status: int, body: bytes
) -> None:
    async with server(responding(data)) as (url, connections), client(url) as http:
        for _ in range(3):
            response = await http.request("GET", "/x")
            assert (response.status, response.body) == (status, body)
    assert len(connections) == 1


async def test_a_second_response_ends_the_connection_and_reaches_no_other_request() -> None:
    async with (
        server(responding(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")) as (url, connections),
        client(url) as http,
    ):
        for _ in range(3):
            response = await http.request("GET", "/x")
            assert (response.body, response.headers["content-length"]) == (b"ok", "2")
    assert len(connections) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
    ],
)
async def test_an_invalid_or_incomplete_response_is_unavailable(data: bytes) -> None:
    async with server(responding(data, close=True)) as (url, _), client(url) as http:
        with pytest.raises(Unavailable):
            await http.request("POST", "/x", body=b"{}")


async def test_a_connection_that_the_upstream_closed_is_not_used() -> None:
    noticed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_head(reader)
        writer.write(OK)
        writer.write_eof()
        # Ends once the client has closed its half, too.
        await reader.read()
        noticed.set()

    async with server(serve) as (url, connections), client(url) as http:
        assert (await http.request("POST", "/x", body=b"")).status == 200
        await asyncio.wait_for(noticed.wait(), 60)
        assert (await http.request("POST", "/x", body=b"")).status == 200
    assert len(connections) == 2


async def test_an_idempotent_request_is_retried_and_another_is_not() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_head(reader)
        if number % 2:
            writer.write(LAST)
            await writer.drain()

    async with server(serve) as (url, connections), client(url) as http:
        assert (await http.request("GET", "/x")).status == 200
        assert len(connections) == 2
        with pytest.raises(Unavailable) as e:
            await http.request("POST", "/x", body=b"{}")
        assert not isinstance(e.value, ConnectFailed)
        assert len(connections) == 3


async def test_a_refused_connection_is_connect_failed() -> None:
    async with client(f"http://127.0.0.1:{free_port()}") as http:
        with pytest.raises(ConnectFailed):
            await http.request("POST", "/x", body=b"{}")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refused_connection_is_retried_until_one_is_accepted(method: str) -> None:
    def retries() -> float:
        return REGISTRY.get_sample_value("market_retries_total", {"upstream": "upstream"}) or 0

    with socket.socket() as sock:
        # Bound but not listening, so that connections are refused. The kernel chooses a port that no test has used
        # before.
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        async with client(f"http://127.0.0.1:{sock.getsockname()[1]}") as http:
            before = retries()
            calls = [asyncio.create_task(http.request(method, "/x", body=b"{}")) for _ in range(20)]
            await until(lambda: retries() >= before + 40)
            assert not any(c.done() for c in calls)
            sock.listen()
            async with server(responding(OK), sock):
                assert [(await c).status for c in calls] == [200] * 20
            # However often they were refused, the circuit counts no failure.
            assert not http.circuit_is_open


async def test_connection_attempts_end_well_within_the_deadline() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if (at := context.deadline.get()) is not None:
            context.deadline.set(at - seconds)

    async with client(f"http://127.0.0.1:{free_port()}", sleep=sleep) as http:
        with pytest.raises(ConnectFailed):
            await http.request("GET", "/x")
        assert len(pauses) == 6
        assert 0.7 <= sum(pauses) <= 1.4
        pauses.clear()
        # A machine that stands still may use up the deadline before the first attempt.
        for _ in range(20):
            with context.deadline_in(0.5), pytest.raises(Unavailable):
                await http.request("GET", "/x")
            assert sum(pauses) < 0.5
            if pauses:
                break
        assert pauses


async def test_a_connection_attempt_without_any_reply_fails_after_a_second() -> None:
    # Its backlog is full and nobody accepts: another connection gets no reply at all.
    with socket.socket() as silent, ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        pool = ConnectionPool(f"http://127.0.0.1:{silent.getsockname()[1]}", 1)
        for _ in range(2):
            with pytest.raises(ConnectError, match="no connection within 1 s"):
                await pool.request("GET", "/x", dict, None, 60)


async def test_the_deadline_ends_a_request_and_its_connection_and_is_propagated() -> None:
    heads: list[tuple[float, bytes]] = []
    late = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            head = await request_head(reader)
            heads.append((time.monotonic(), head))
            if head.startswith(b"GET /late"):
                await late.wait()
            writer.write(OK)
            await writer.drain()

    async with server(serve) as (url, connections), client(url) as http:
        # With an open connection, the request is sent as soon as its deadline is set.
        assert (await http.request("GET", "/x")).status == 200
        with context.deadline_in(1):
            end = context.deadline.get()
            with pytest.raises(DeadlineExceeded):
                await http.request("GET", "/late")
        assert end is not None
        await until(lambda: len(heads) == 2)
        arrived, head = heads[1]
        sent = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n")[1:])
        assert 1000 * (end - arrived) - 1 <= int(sent["x-deadline-ms"]) <= 1000
        # The late response reaches no other request.
        late.set()
        assert (await http.request("GET", "/x")).status == 200
    assert len(connections) == 2


async def test_callers_wait_in_order_when_all_connections_are_in_use() -> None:
    in_flight = max_in_flight = 0
    full = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal in_flight, max_in_flight
        while True:
            path = (await request_head(reader)).split()[1]
            in_flight += 1
            max_in_flight = max(in_flight, max_in_flight)
            if in_flight == 3:
                full.set()
            # The first three wait for each other, since a busy machine might serve one before the next arrives.
            await asyncio.wait_for(full.wait(), 60)
            await asyncio.sleep(0.01)
            in_flight -= 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))

    async with server(serve) as (url, connections), client(url, connections=3) as http:
        done: list[int] = []

        async def one(n: int) -> bytes:
            body = (await http.request("GET", f"/{n}")).body
            done.append(n)
            return body

        assert await asyncio.gather(*map(one, range(20))) == [b"/%d" % n for n in range(20)]
    assert len(connections) == 3
    assert max_in_flight == 3
    assert all(abs(place - n) <= 3 for place, n in enumerate(done))


async def test_waiting_for_a_connection_counts_and_a_cancelled_caller_leaves_the_queue() -> None:
    arrived = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            head = await request_head(reader)
            if b"/slow" in head:
                arrived.set()
                await asyncio.sleep(300)
            writer.write(OK)

    async with server(serve) as (url, _), client(url, connections=1) as http:
        slow = asyncio.create_task(http.request("GET", "/slow"))
        await asyncio.wait_for(arrived.wait(), 60)
        with context.deadline_in(0.05), pytest.raises(DeadlineExceeded):
            await http.request("GET", "/x")
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert [(await http.request("GET", "/x")).status for _ in range(3)] == [200] * 3


async def test_a_request_cannot_be_smuggled_into_a_path_or_header() -> None:
    async with server(responding(OK)) as (url, _), client(url) as http:
        for path, headers in (("/x y", {}), ("/x\r\nz: 1", {}), ("/x", {"a": "b\r\nc: d"}), ("/x", {"a": "b\nc: d"})):
            with pytest.raises(ValueError, match="forbidden character"):
                await http.request("GET", path, headers=headers)


async def test_large_bodies_are_sent_and_received() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            head = await request_head(reader)
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (length * 4) + body * 4)
            await writer.drain()

    async with server(serve) as (url, _), client(url) as http:
        for size in (0, 3_000_000):
            assert (await http.request("POST", "/x", body=b"a" * size)).body == b"a" * size * 4


def test_the_client_works_on_uvloop() -> None:
    async def requests() -> None:
        async with server(responding(OK)) as (url, connections), client(url) as http:
            assert [(await http.request("GET", "/x")).body for _ in range(3)] == [b"ok"] * 3
        assert len(connections) == 1
        async with server(responding(OK, close=True)) as (url, connections), client(url) as http:
            for _ in range(3):
                assert (await http.request("GET", "/x")).status == 200
                await asyncio.sleep(0.02)
        assert len(connections) == 3

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(requests())

    # In a thread, because the loop of the tests is running in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


@pytest.mark.parametrize(
    "data",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"],
    ids=["of known length", "chunked"],
)
async def test_a_response_that_the_caller_does_not_admit_is_neither_read_nor_retried(data: bytes) -> None:
    sizes: list[int] = []

    def admit(size: int) -> bool:
        sizes.append(size)
        return size < 2

    async with server(responding(data)) as (url, connections), client(url) as http:
        for n in range(8):
            with pytest.raises(ResponseRefused, match="2 bytes"):
                await http.request("GET", "/", admit=admit)
            assert (sizes[-1], len(connections)) == (2, n + 1)
        # The circuit breaker does not count it.
        assert (await http.request("GET", "/", admit=lambda size: size <= 2)).body == b"ok"


async def test_what_admit_raises_reaches_the_caller() -> None:
    def admit(size: int) -> bool:
        raise BadInput("query", f"{size} bytes are too many")

    async with server(responding(OK)) as (url, _), client(url) as http:
        with pytest.raises(BadInput, match="query: 2 bytes are too many"):
            await http.request("GET", "/", admit=admit)


async def test_an_idle_connection_does_not_keep_the_last_response() -> None:
    body = b"x" * 1_000_000
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with server(responding(data)) as (url, _):
        pool = ConnectionPool(url, 8)
        tracemalloc.start()
        try:
            await asyncio.gather(*(pool.request("GET", "/", dict, None, 60) for _ in range(8)))
            gc.collect()
            await until(lambda: tracemalloc.get_traced_memory()[0] < 2_000_000, 30)
        finally:
            tracemalloc.stop()
            pool.close()
