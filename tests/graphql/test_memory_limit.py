"""All limits at their worst at once, on a gateway process that may have no more memory than its pod in Kubernetes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.graphql.graphql_gateway import FakeUpstream, order, product, serve
from tests.graphql.test_memory import FOUR_CONDITIONS, MIB, page
from tests.support.issuer import Issuer
from tests.support.memory import MemoryLimit, memory_limit
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess

DEPLOY = Path(__file__).parents[2] / "deploy/base/services"
SECONDS = 20

# The largest pages of the REST contracts: 100 products with texts of full length, and 8 MiB of orders.
LONG_PRODUCTS = page([product(n, name="🜁" * 200, description="🜁" * 10_000) for n in range(100)])
SHORT_LINES = [product(n % 2000, name="x")["id"] for n in range(1000)]
MANY_LINES = page([order(n, "a", SHORT_LINES) for n in range(77)])


@pytest.fixture
def limit() -> Iterator[MemoryLimit]:
    with memory_limit("graphql") as limit:
        yield limit


class LargestPages(FakeUpstream):
    """An upstream whose lists are as large as the contract allows, except for the user "honest"."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode()
        if scope["method"] != "GET" or "honest" in query or "limit=3" in query:
            await super().__call__(scope, receive, send)
            return
        body = LONG_PRODUCTS if self.kind == "product" else MANY_LINES
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def post(body: bytes, head: str = "") -> bytes:
    """Return a request with the body; `head` are further headers, each with its line break."""
    first = "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{first}{head}content-length: {len(body)}\r\n\r\n".encode() + body


def call(query: str, **more: Any) -> bytes:
    return post(json.dumps({"query": query, **more}).encode())


WIDE = (
    "{ "
    + " ".join(f'a{i}: orders(user:"x"){{items{{items{{product{{id}}}}}}}}' for i in range(49))
    + " n%d: __typename }"
)
HOSTILE: dict[str, bytes | list[bytes]] = {
    "orders of 8 MiB": call('{ orders(user: "a", limit: 1000) { items { id items { productId name quantity } } } }'),
    "joined descriptions": call(
        '{ orders(user: "a", limit: 1000) { items { items { product { id description } } } } }'
    ),
    "joined names": call('{ orders(user: "a", limit: 1000) { items { items { product { id name } } } } }'),
    "two pages of 8 MiB": call('{ a: orders(user: "a") { total } b: orders(user: "b") { total } }'),
    "descriptions": call(
        "{ " + " ".join(f"a{i}: products(limit: 100) {{ items {{ description }} }}" for i in range(20)) + "}"
    ),
    "aliases": call("{ products(limit: 100) { items { " + " ".join(f"a{i}: description" for i in range(12)) + " } } }"),
    "bodies of empty lists": call("{ products(limit: 3) { total } }", variables={"a": [[]] * 200_000}),
    "bodies of texts": call("{ products(limit: 3) { total } }", variables={"a": ["🜁" + "a" * 1000] * 1000}),
    "operation names": [
        call("{ products(limit: 3) { total } }", operationName=f"{n}" + "x" * 1_000_000) for n in range(4)
    ],
    "new wide documents": [call(WIDE % n) for n in range(40)],
    "conditions": [
        call(FOUR_CONDITIONS + " " * (n // 16), variables={c: bool(n & 1 << bit) for bit, c in enumerate("abcd")})
        for n in range(64)
    ],
    "orders in the document": [
        call(
            f'mutation {{ createOrder(input: {{user: "a{n}", items: ['
            + '{productId: "x", quantity: 1},' * 1400
            + "]}) { id } }"
        )
        for n in range(4)
    ],
    "the schema": call(
        "{ __schema { types { "
        + " ".join(f"f{i}: fields {{ name description type {{ name fields {{ name }} }} }}" for i in range(12))
        + "} } }"
    ),
}


async def send_repeatedly(port: int, requests: list[bytes], end: float, statuses: Counter[str]) -> None:
    """Send the requests one after another, each on a connection of its own, and read the responses."""
    n = 0
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(requests[n % len(requests)])
            async with asyncio.timeout(30):
                status = (await reader.readline()).decode()[9:12]
                statuses[status or "closed"] += 1
                length = 0
                while (line := await reader.readline()) not in (b"\r\n", b""):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                while length > 0 and (data := await reader.read(1 << 20)):
                    length -= len(data)
            writer.close()
        except (OSError, TimeoutError, ValueError):
            statuses["error"] += 1
            await asyncio.sleep(0.05)
        n += 1


async def never_read(port: int, request: bytes, end: float) -> None:
    """Send a request and read nothing of its response."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request)
        await asyncio.sleep(end - time.monotonic())
        writer.transport.abort()
        del reader


async def send_half(port: int, request: bytes, end: float) -> None:
    """Send half of a request, and then nothing."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request[: len(request) // 2])
        await asyncio.sleep(end - time.monotonic())
        writer.transport.abort()


async def honest(url: str, end: float, outcomes: Counter[str], headers: dict[str, str]) -> list[float]:
    """Query small pages, and return the seconds that each took."""
    query = '{ products(limit: 3) { items { name price } } orders(user: "honest") { items { id items { quantity } } } }'
    seconds: list[float] = []
    async with httpx.AsyncClient(timeout=200) as http:
        while time.monotonic() < end:
            started = time.monotonic()
            response = await http.post(url, json={"query": query}, headers=headers)
            errors = response.json().get("errors", [])
            outcomes.update([error["message"] for error in errors] or [str(response.status_code)])
            seconds.append(time.monotonic() - started)
            await asyncio.sleep(0.05)
    return sorted(seconds)


def requests_of_many_callers(issuer: Issuer) -> list[bytes]:
    """Return requests that each have a token of their own, nearly as large as it may be."""
    body = json.dumps({"query": "{ products(limit: 3) { total } }"}).encode()
    tokens = (issuer.token(f"buyer-{n}", padding="x" * 5000) for n in range(1000))
    return [post(body, f"authorization: Bearer {token}\r\n") for token in tokens]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["open", "required"])
async def test_the_worst_of_all_limits_at_once_stays_below_the_memory_limit(
    limit: MemoryLimit, tmp_path: Path, mode: str
) -> None:
    assert 8 * MIB - MIB < len(MANY_LINES) <= 8 * MIB
    async with AsyncExitStack() as stack:
        hostile = dict(HOSTILE)
        headers: dict[str, str] = {}
        upstreams = LargestPages("product"), LargestPages("order")
        for upstream in upstreams:
            server, upstream.url = await serve(upstream)
            stack.push_async_callback(server.stop, 1)
        for n in range(10):
            upstreams[0].resources[product(n)["id"]] = product(n)
            upstreams[1].resources[order(n, "honest", [])["id"]] = order(n, "honest", [product(n)["id"]])
        config = yaml.safe_load((DEPLOY / "config/graphql-service.yaml").read_text())
        config["admin"] = {"host": "127.0.0.1", "port": free_port()}
        config["http"] = {**config["http"], "host": "127.0.0.1", "port": free_port()}
        config["shutdown"] = {"drain_seconds": 0, "grace_seconds": 1}
        config |= {"products": {"url": upstreams[0].url}, "orders": {"url": upstreams[1].url}}
        if mode == "required":
            issuer = await stack.enter_async_context(Issuer().serving())
            config["auth"] = {"mode": mode, "issuer": issuer.url}
            hostile["tokens of many callers"] = requests_of_many_callers(issuer)
            headers["authorization"] = f"Bearer {issuer.token('honest')}"
        gateway = ServiceProcess("graphql", config, tmp_path, command=limit.command, env=limit.environment)
        gateway.start()
        stack.callback(gateway.kill)
        await gateway.ready()
        assert gateway.process is not None
        process = psutil.Process(gateway.process.pid)
        idle = process.memory_info().rss
        port, end = config["http"]["port"], time.monotonic() + SECONDS
        statuses: dict[str, Counter[str]] = {name: Counter() for name in hostile}
        tasks: list[asyncio.Task[None]] = []
        for name, requests in hostile.items():
            several = requests if isinstance(requests, list) else [requests]
            tasks += [asyncio.create_task(send_repeatedly(port, several, end, statuses[name])) for _ in range(8)]
        largest = HOSTILE["orders of 8 MiB"]
        assert isinstance(largest, bytes)
        tasks += [asyncio.create_task(never_read(port, largest, end)) for _ in range(100)]
        text = HOSTILE["bodies of texts"]
        assert isinstance(text, bytes)
        tasks += [
            asyncio.create_task(send_repeatedly(port, [text], end, statuses["bodies of texts"])) for _ in range(60)
        ]
        tasks += [asyncio.create_task(send_half(port, text, end)) for _ in range(100)]
        outcomes: Counter[str] = Counter()
        seconds = await honest(f"http://127.0.0.1:{port}/graphql", end, outcomes, headers)
        await asyncio.gather(*tasks)
        assert gateway.process.poll() is None, gateway.log[-2000:]
        print(
            f"\n{limit.report(process.pid)}, idle {idle // MIB} MiB, after {process.memory_info().rss // MIB} MiB; "
            f"{len(seconds)} honest requests: median {seconds[len(seconds) // 2]:.3f} s, most {seconds[-1]:.3f} s"
        )
        for name, counts in [*statuses.items(), ("honest", outcomes)]:
            print(f"  {name}: {dict(counts)}")
        assert limit.peak(process.pid) < 0.95 * limit.limit
        # It may be slow, because the gateway has one thread, but large requests take none of its memory.
        assert outcomes["200"] > 0
        assert not [message for message in outcomes if "large requests" in message]
        assert all(counts.total() > 0 for counts in statuses.values())
        assert not [name for name, counts in statuses.items() if counts["500"]], gateway.log[-3000:]
        assert await gateway.stop() == 0, gateway.log[-2000:]
