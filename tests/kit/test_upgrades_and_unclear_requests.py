"""The HTTP server on a real socket: requests that offer an upgrade, and requests that cannot be handled."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.kit.connections import GET, HOST, connected, serving

JAVA = Path(__file__).with_name("Post.java")
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
            await client.send(b"GET / HTTP/1.1\r\nHost: localhost \t\r\nX-Request-Id: abc-1 \t \r\n\r\n")
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
