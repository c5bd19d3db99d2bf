"""Compression of responses: for whom, of what, and what the headers say about it."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import Compression, Http
from market.kit.http import compression, edge
from market.kit.http.compression import zstd
from market.kit.http.responses import json_response
from tests.support.waiting import PATIENCE, until

from .http_app import serving

LARGE = {"items": [{"name": f"Teapot {n}"} for n in range(200)]}
BODY = json.dumps(LARGE, separators=(",", ":")).encode()
HUGE = json.dumps([f"Teapot {n}" for n in range(20_000)]).encode()


async def large(_: Request) -> Response:
    return json_response(LARGE, 200, {"ETag": '"3"'})


async def small(_: Request) -> Response:
    return json_response({"name": "Teapot"}, 200, {"ETag": '"3"'})


async def huge(_: Request) -> Response:
    return json_response(HUGE)


async def encoded(_: Request) -> Response:
    return json_response(BODY, 200, {"Content-Encoding": "br", "Vary": "accept-encoding"})


async def untransformable(_: Request) -> Response:
    return json_response(LARGE, 200, {"Cache-Control": "no-transform"})


async def varying(_: Request) -> Response:
    return json_response(LARGE, 200, {"Vary": "accept"})


ROUTES = {
    "GET /large": large,
    "GET /small": small,
    "GET /huge": huge,
    "GET /encoded": encoded,
    "GET /untransformable": untransformable,
    "GET /varying": varying,
}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(ROUTES) as client:
        yield client


async def fetch(http: httpx.AsyncClient, path: str, accept: str, method: str = "GET", **headers: str) -> Any:
    """Return the response with `raw`, its body as it was sent."""
    request = http.build_request(method, path, headers={"accept-encoding": accept, **headers})
    response = await http.send(request, stream=True)
    response.raw = b"".join([piece async for piece in response.aiter_raw()])  # type: ignore[attr-defined]
    await response.aclose()
    return response


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        # What Chromium, curl --compressed, httpx and Java's clients send.
        ("gzip, deflate, br, zstd", "zstd"),
        ("deflate, gzip, br, zstd", "zstd"),
        ("gzip, deflate", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "zstd"),
        ("*;q=0.1, zstd;q=0", "gzip"),
        ("gzip;q=0.8, zstd;q=0.5", "gzip"),
        ("gzip;q=0.5, identity", None),
        ("gzip, identity", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, *;q=0", None),
        ("gzip;q=x", None),
        ("identity", None),
        ("br, deflate", None),
        ("", None),
        (",;q=1,, ;", None),
        ("a" * 5000, None),
    ],
)
async def test_the_client_chooses_the_coding(http: httpx.AsyncClient, accept: str, coding: str | None) -> None:
    response = await fetch(http, "/large", accept)
    assert response.headers.get("content-encoding") == coding
    assert response.headers["vary"] == "accept-encoding"
    assert response.headers["content-length"] == str(len(response.raw))
    assert response.headers["etag"] == (f'"3-{coding}"' if coding else '"3"')
    plain = {"gzip": gzip.decompress, "zstd": zstd.decompress, None: bytes}[coding](response.raw)
    assert plain == BODY
    if coding:
        assert len(response.raw) < len(BODY) / 3


async def test_without_the_header_the_body_is_sent_as_it_is(http: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port)
    writer.write(b"GET /large HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    response = await reader.read()
    writer.close()
    assert response.endswith(BODY)
    assert b"vary: accept-encoding" in response


@pytest.mark.parametrize("path", ["/small", "/untransformable", "/encoded"])
async def test_small_encoded_and_untransformable_bodies_are_sent_as_they_are(
    http: httpx.AsyncClient, path: str
) -> None:
    response = await fetch(http, path, "gzip")
    assert response.headers.get("content-encoding") in (None, "br")
    if path == "/small":
        assert "vary" not in response.headers
        assert response.headers["etag"] == '"3"'


async def test_a_client_may_forbid_transformations(http: httpx.AsyncClient) -> None:
    response = await fetch(http, "/large", "gzip", **{"cache-control": "max-age=0, no-transform"})
    assert (response.headers.get("content-encoding"), response.raw) == (None, BODY)


async def test_what_the_response_varies_by_is_kept(http: httpx.AsyncClient) -> None:
    assert (await fetch(http, "/varying", "gzip")).headers["vary"] == "accept, accept-encoding"


async def test_head_describes_the_compressed_body(http: httpx.AsyncClient) -> None:
    got, head = await fetch(http, "/large", "gzip"), await fetch(http, "/large", "gzip", "HEAD")
    assert head.raw == b""
    same = ("content-length", "content-encoding", "content-type", "etag", "vary")
    assert [head.headers[n] for n in same] == [got.headers[n] for n in same]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_large_bodies_are_compressed_in_threads(http: httpx.AsyncClient, coding: str) -> None:
    responses = await asyncio.gather(*(fetch(http, "/huge", coding) for _ in range(12)))
    for response in responses:
        assert {"gzip": gzip.decompress, "zstd": zstd.decompress}[coding](response.raw) == HUGE


async def test_the_thread_of_a_cancelled_request_counts_until_it_has_finished() -> None:
    may_finish, bodies = threading.Event(), []

    def compressor(body: bytes, _: str) -> bytes:
        bodies.append(body)
        may_finish.wait(PATIENCE)
        return b"compressed"

    compressing = compression.Compression(Compression(), compressor=compressor)

    async def respond() -> Response:
        response = json_response(HUGE)
        await compressing.apply(response, [(b"accept-encoding", b"gzip")])
        return response

    requests = [asyncio.create_task(respond()) for _ in range(2)]
    await until(lambda: len(bodies) == 2)
    for request in requests:
        request.cancel()
    await asyncio.wait(requests)
    assert all(request.cancelled() for request in requests)
    with context.deadline_in(0.1):
        assert (await respond()).body == HUGE
    assert len(bodies) == 2
    may_finish.set()
    assert (await respond()).body == b"compressed"


async def test_compression_may_be_disabled() -> None:
    async with serving(ROUTES, compression=Compression(enabled=False)) as http:
        response = await fetch(http, "/large", "gzip")
        assert (response.headers.get("content-encoding"), response.headers.get("vary")) == (None, None)


async def test_the_minimum_is_configured() -> None:
    async with serving(ROUTES, compression=Compression(min_bytes=len(BODY))) as http:
        assert (await fetch(http, "/large", "gzip")).headers["content-encoding"] == "gzip"
    async with serving(ROUTES, compression=Compression(min_bytes=len(BODY) + 1)) as http:
        assert "content-encoding" not in (await fetch(http, "/large", "gzip")).headers


async def test_without_memory_for_it_a_body_is_sent_as_it_is() -> None:
    asked = []

    def reserve(_: Response, size: int) -> bool:
        asked.append(size)
        return False

    app = edge.application(ROUTES, Http(port=1), reserve=reserve)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        response = await http.get("/large", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in response.headers
    assert response.content == BODY
    assert asked == [2 * len(BODY)]
