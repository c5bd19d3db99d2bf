"""The HTTP client and its connection pool against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop

from market.kit.errors import BadInput, Unavailable
from market.kit.http.client import ResponseTooLarge, UpstreamUnreachable
from market.kit.http.pool import ConnectionPool
from tests.kit.http_servers import LAST, OK, client, request_head, responding, server
from tests.support.waiting import until


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
        assert not isinstance(e.value, UpstreamUnreachable)
        assert len(connections) == 3


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

    def accept_size(size: int) -> bool:
        sizes.append(size)
        return size < 2

    async with server(responding(data)) as (url, connections), client(url) as http:
        for n in range(8):
            with pytest.raises(ResponseTooLarge, match="2 bytes"):
                await http.request("GET", "/", accept_size=accept_size)
            assert (sizes[-1], len(connections)) == (2, n + 1)
        # The circuit breaker does not count it.
        assert (await http.request("GET", "/", accept_size=lambda size: size <= 2)).body == b"ok"


async def test_what_admit_raises_reaches_the_caller() -> None:
    def accept_size(size: int) -> bool:
        raise BadInput("query", f"{size} bytes are too many")

    async with server(responding(OK)) as (url, _), client(url) as http:
        with pytest.raises(BadInput, match="query: 2 bytes are too many"):
            await http.request("GET", "/", accept_size=accept_size)


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
