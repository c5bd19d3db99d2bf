"""kit/http.py and kit/wire.py against servers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from market_dev.stack import processes as spawn
from prometheus_client import REGISTRY

from market.kit import context
from market.kit.config import HttpUpstream
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.http import client as kit_http
from market.kit.http.client import ConnectFailed, HttpClient
from market.kit.http.pool import ConnectError, ConnectionPool

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Some: Thing\r\n\r\nok"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
_ports = spawn.free_ports()


@asynccontextmanager
async def server(serve: Serve, sock: socket.socket | None = None) -> AsyncIterator[tuple[str, list[int]]]:
    """`serve` gets each connection with its number; the list has the connections so far."""
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


def client(url: str, **more: int) -> HttpClient:
    """One with patience: that a busy machine takes its time is no news here."""
    return HttpClient("neighbour", HttpUpstream(url=url, timeout_seconds=60, **more))


def free_port() -> int:
    """Where nobody listens, and no connection that goes out comes by."""
    return next(_ports)


async def until(so: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not so():
            await asyncio.sleep(0.01)


async def request_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(data: bytes, *, close: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await request_head(reader)
            writer.write(data)
            await writer.drain()
            if close:
                return

    return serve


async def test_a_connection_is_used_again() -> None:
    async with server(answering(OK)) as (url, connections), client(url) as http:
        for _ in range(5):
            answer = await http.request("GET", "/x")
            assert (answer.status, answer.body, answer.headers["x-some"]) == (200, b"ok", "Thing")
    assert len(connections) == 1


@pytest.mark.parametrize(
    "data",
    [
        LAST,
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
    ],
)
async def test_an_answer_that_ends_its_connection_is_whole_and_the_connection_is_left(data: bytes) -> None:
    async with server(answering(data, close=True)) as (url, connections), client(url) as http:
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
async def test_other_forms_of_answers_are_read_and_the_connection_kept(data: bytes, status: int, body: bytes) -> None:
    async with server(answering(data)) as (url, connections), client(url) as http:
        for _ in range(3):
            answer = await http.request("GET", "/x")
            assert (answer.status, answer.body) == (status, body)
    assert len(connections) == 1


async def test_two_answers_to_one_request_end_the_connection_and_do_not_reach_the_next() -> None:
    async with (
        server(answering(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")) as (url, connections),
        client(url) as http,
    ):
        for _ in range(3):
            answer = await http.request("GET", "/x")
            assert (answer.body, answer.headers["content-length"]) == (b"ok", "2")
    assert len(connections) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
    ],
)
async def test_what_is_no_whole_http_answer_is_unavailable(data: bytes) -> None:
    async with server(answering(data, close=True)) as (url, _), client(url) as http:
        with pytest.raises(Unavailable):
            await http.request("POST", "/x", body=b"{}")


async def test_a_connection_that_the_neighbour_closed_meanwhile_is_not_used() -> None:
    noticed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_head(reader)
        writer.write(OK)
        writer.write_eof()
        # It ends where the other side has closed its half, too.
        await reader.read()
        noticed.set()

    async with server(serve) as (url, connections), client(url) as http:
        assert (await http.request("POST", "/x", body=b"")).status == 200
        await asyncio.wait_for(noticed.wait(), 60)
        assert (await http.request("POST", "/x", body=b"")).status == 200
    assert len(connections) == 2


async def test_an_idempotent_call_is_tried_again_and_another_is_not() -> None:
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


async def test_a_port_where_nobody_listens_is_not_sent() -> None:
    async with client(f"http://127.0.0.1:{free_port()}") as http:
        with pytest.raises(ConnectFailed):
            await http.request("POST", "/x", body=b"{}")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_who_is_refused_looks_for_a_connection_until_there_is_one(method: str) -> None:
    def refused() -> float:
        return REGISTRY.get_sample_value("market_retries_total", {"upstream": "neighbour"}) or 0

    with socket.socket() as sock:
        # Bound, and not listening yet: who comes is refused. The kernel's choice: a port that a test has used is not at rest.
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        async with client(f"http://127.0.0.1:{sock.getsockname()[1]}") as http:
            before = refused()
            calls = [asyncio.create_task(http.request(method, "/x", body=b"{}")) for _ in range(20)]
            await until(lambda: refused() >= before + 40)
            assert not any(c.done() for c in calls)
            sock.listen()
            async with server(answering(OK), sock):
                assert [(await c).status for c in calls] == [200] * 20
            # However often each was refused, it was no failure of the neighbour.
            assert not http.is_open


async def test_who_is_refused_for_long_gives_up_well_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch, stop_clock: Callable[..., Any]
) -> None:
    clock = stop_clock(context)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(kit_http, "asyncio", SimpleNamespace(sleep=sleep))
    async with client(f"http://127.0.0.1:{free_port()}") as http:
        with pytest.raises(ConnectFailed):
            await http.request("GET", "/x")
        assert len(pauses) == 6
        assert 0.7 <= sum(pauses) <= 1.4
        pauses.clear()
        with context.deadline_in(0.1), pytest.raises(Unavailable):
            await http.request("GET", "/x")
        assert 0 < sum(pauses) < 0.1


async def test_an_address_that_does_not_even_refuse_is_unreachable_after_a_second() -> None:
    # Its line is full and nobody takes from it: what comes now gets no answer at all.
    with socket.socket() as deaf, ExitStack() as before:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            waiting = before.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        pool = ConnectionPool(f"http://127.0.0.1:{deaf.getsockname()[1]}", 1)
        for _ in range(2):
            with pytest.raises(ConnectError, match="no connection within 1 s"):
                await pool.request("GET", "/x", dict, None, 60)


async def test_the_deadline_ends_a_call_and_its_connection_and_travels_with_it() -> None:
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
        # The connection is there: what follows is sent within the same breath as its deadline is set.
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
        # The late answer belongs to nobody.
        late.set()
        assert (await http.request("GET", "/x")).status == 200
    assert len(connections) == 2


async def test_who_finds_no_connection_free_waits_in_line() -> None:
    most = [0, 0]
    full = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            path = (await request_head(reader)).split()[1]
            most[0] += 1
            most[1] = max(most)
            if most[0] == 3:
                full.set()
            # The first ones wait for each other: a busy machine might serve one before the next has come.
            await asyncio.wait_for(full.wait(), 60)
            await asyncio.sleep(0.01)
            most[0] -= 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))

    async with server(serve) as (url, connections), client(url, connections=3) as http:
        done: list[int] = []

        async def one(n: int) -> bytes:
            body = (await http.request("GET", f"/{n}")).body
            done.append(n)
            return body

        assert await asyncio.gather(*map(one, range(20))) == [b"/%d" % n for n in range(20)]
    assert len(connections) == 3
    assert most[1] == 3
    assert all(abs(place - n) <= 3 for place, n in enumerate(done))


async def test_waiting_in_line_counts_and_a_cancelled_call_frees_its_place() -> None:
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


async def test_nothing_can_be_smuggled_into_a_request() -> None:
    async with server(answering(OK)) as (url, _), client(url) as http:
        for path, headers in (("/x y", {}), ("/x\r\nz: 1", {}), ("/x", {"a": "b\r\nc: d"}), ("/x", {"a": "b\nc: d"})):
            with pytest.raises(ValueError, match="forbidden character"):
                await http.request("GET", path, headers=headers)


async def test_a_large_body_goes_out_and_a_large_answer_comes_in() -> None:
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


def test_it_works_on_the_loop_that_the_services_run_on() -> None:
    async def calls() -> None:
        async with server(answering(OK)) as (url, connections), client(url) as http:
            assert [(await http.request("GET", "/x")).body for _ in range(3)] == [b"ok"] * 3
        assert len(connections) == 1
        async with server(answering(OK, close=True)) as (url, connections), client(url) as http:
            for _ in range(3):
                assert (await http.request("GET", "/x")).status == 200
                await asyncio.sleep(0.02)
        assert len(connections) == 3

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(calls())

    # In a thread: the tests' own loop is running here.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()
