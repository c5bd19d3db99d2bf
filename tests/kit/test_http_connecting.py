"""Connecting and waiting for connections: refusals, deadlines and the queue of the pool."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack

import pytest
from prometheus_client import REGISTRY

from market.kit import context
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.http.client import UpstreamUnreachable
from market.kit.http.pool import ConnectError, ConnectionPool
from tests.kit.http_servers import OK, client, request_head, responding, server
from tests.support.ports import free_port
from tests.support.waiting import until


async def test_a_refused_connection_makes_the_upstream_unreachable() -> None:
    async with client(f"http://127.0.0.1:{free_port()}") as http:
        with pytest.raises(UpstreamUnreachable):
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
        with pytest.raises(UpstreamUnreachable):
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
