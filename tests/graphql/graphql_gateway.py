"""The gateway over fakes of products and orders: responses of the REST contract, from memory, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx

from market.graphql.app import build
from market.graphql.config import Config, GatewayHttp
from market.kit.config import HttpUpstream, Listen
from market.kit.http.server import HttpServer, bind
from market.kit.process.lifecycle import Process
from tests.support.ports import free_port

# The timeout of calls to products and orders: longer than this process may stall, and less than the edge's own.
UPSTREAM_TIMEOUT_SECONDS = 9.0
NOW = "2026-01-02T03:04:05.000006Z"


def product(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": str(uuid.UUID(int=n, version=4)),
        "name": f"Thing {n} “é”",
        "description": f'A thing.\nWith a "quote", a tab\t and {n} 🜁',
        "price": f"{n}.50",
        "currency": "GBP",
        "image_url": None if n % 3 == 0 else f"/images/{n}.svg",
        "available": [True, False, None][n % 3],
        "version": 1,
        "created_at": NOW,
        "updated_at": NOW,
        **changes,
    }


def with_stock(product: dict[str, Any]) -> dict[str, Any]:
    """Return the product as REST returns it with `stock=true`."""
    return {**product, "stock": {True: 7, False: 0, None: None}[product["available"]]}


def order(n: int, user: str, products: list[str], **changes: Any) -> dict[str, Any]:
    lines = [
        {"product_id": p, "name": f"then {p[:4]}", "quantity": i + 1, "unit_price": "2.50"}
        for i, p in enumerate(products)
    ]
    return {
        "id": str(uuid.UUID(int=10_000 + n, version=4)),
        "user": user,
        "email": None if n % 2 else "a@example.test",
        "items": lines,
        "total": "7.50",
        "currency": "GBP",
        "status": "confirmed",
        "created_at": NOW,
        **changes,
    }


class FakeUpstream:
    """An ASGI app with a table of resources. `fail` makes it return a problem; `calls` are the requests it received."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.resources: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str, Any, dict[str, str]]] = []
        self.failures: list[tuple[int, dict[str, Any], dict[str, str]]] = []
        self.fail_always: tuple[int, dict[str, Any], dict[str, str]] | None = None
        self.keys: dict[str, str] = {}
        # Called with the resource before each PUT.
        self.before_update: Callable[[dict[str, Any]], None] | None = None
        # If set, requests get their responses once it is set.
        self.gate: asyncio.Event | None = None
        # False: like orders of an earlier version, which returns no order from DELETE.
        self.returns_cancelled = True
        self.url = ""

    def reset(self) -> None:
        self.calls.clear()
        self.failures.clear()
        self.fail_always = None
        self.before_update = None
        self.gate = None
        self.returns_cancelled = True

    def fail(
        self,
        status: int,
        problem_type: str,
        *,
        times: int = 1,
        headers: dict[str, str] | None = None,
        detail: str = "no",
        **members: Any,
    ) -> None:
        """Return this problem to the next `times` requests; 0: to all from now on."""
        document = {
            "type": f"urn:market:problem:{problem_type}",
            "title": problem_type,
            "status": status,
            "detail": detail,
            **members,
        }
        response = (status, document, headers or {})
        if times:
            self.failures += [response] * times
        else:
            self.fail_always = response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode(), keep_blank_values=True).items()}
        path = unquote(scope["raw_path"].decode())
        self.calls.append(
            (f"{scope['method']} {path}", scope["query_string"].decode(), json.loads(body) if body else None, headers)
        )
        if self.gate is not None:
            await self.gate.wait()
        status, document, more = self.respond(scope["method"], path, query, json.loads(body) if body else {}, headers)
        data = b"" if document is None else json.dumps(document, ensure_ascii=False).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        raw = [(b"content-type", kind.encode()), (b"content-length", str(len(data)).encode())]
        if "content-type" in more:
            raw = raw[1:]
        raw += [(k.encode(), v.encode()) for k, v in more.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": data})

    def respond(
        self, method: str, path: str, query: dict[str, str], body: Any, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        if self.failures:
            return self.failures.pop(0)
        if self.fail_always:
            return self.fail_always
        base = f"/api/{self.kind}"
        resource_id = path.removeprefix(base).strip("/")
        if method == "GET" and not resource_id:
            page = self._page(query)
            if query.get("stock") == "true":
                page["items"] = [with_stock(p) for p in page["items"]]
            return 200, page, {}
        if method == "POST":
            key = headers.get("idempotency-key")
            if key in self.keys:
                return 200, self.resources[self.keys[key]], {"idempotency-replayed": "true"}
            created = self._create(body)
            self.resources[created["id"]] = created
            if key:
                self.keys[key] = created["id"]
            return 201, created, {"location": f"{base}/{created['id']}"}
        if method == "PUT":
            resource_id = body["id"]
        resource = self.resources.get(resource_id)
        if resource is None:
            problem = {
                "type": "urn:market:problem:not-found",
                "title": "Not found",
                "status": 404,
                "detail": f"there is no {self.kind} {resource_id}",
            }
            return 404, problem, {}
        if method == "PUT":
            if "image_url" not in body:
                error = {"field": "image_url", "reason": "is missing"}
                return 422, {"type": "urn:market:problem:bad-input", "status": 422, "errors": [error]}, {}
            if self.before_update is not None:
                self.before_update(resource)
        etag = {"etag": f'"{resource.get("version")}"'} if self.kind == "product" else {}
        if headers.get("if-match") not in (None, etag.get("etag")):
            problem = {"type": "urn:market:problem:precondition-failed", "status": 412, "detail": "another version"}
            return 412, problem | {"version": resource["version"]}, {}
        if method == "PUT":
            body.pop("stock", None)
            resource.update(body, version=resource["version"] + 1)
            return 200, resource, {}
        if method == "DELETE":
            if self.kind == "product":
                del self.resources[resource_id]
            else:
                resource["status"] = "cancelled"
                if self.returns_cancelled and headers.get("prefer") == "return=representation":
                    return 200, resource, {}
            return 204, None, {}
        return 200, with_stock(resource) if query.get("stock") == "true" else resource, etag

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        limit, offset = int(query.get("limit", 20 if self.kind == "product" else 100)), int(query.get("offset", 0))
        resources = list(self.resources.values())
        if "ids" in query:
            ids = [i for i in query["ids"].split(",") if i]
            resources = [self.resources[i] for i in ids if i in self.resources]
            return {"items": resources, "total": len(resources), "limit": len(ids), "offset": 0}
        if "user" in query:
            resources = [
                r for r in resources if r["user"] == query["user"] and query.get("status") in (None, r["status"])
            ]
        if "q" in query:
            resources = [r for r in resources if query["q"] in r["name"]]
        return {"items": resources[offset : offset + limit], "total": len(resources), "limit": limit, "offset": offset}

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        n = len(self.resources) + 50_000
        if self.kind == "product":
            body.pop("stock", None)
            return product(n, **{"image_url": None, **body})
        created = order(n, body["user"], [i["product_id"] for i in body["items"]], email=body.get("email"))
        for line, requested in zip(created["items"], body["items"], strict=True):
            line["quantity"] = requested["quantity"]
        return created


async def serve(app: Any) -> tuple[HttpServer, str]:
    """Serve the app on a port of its own. Return the server and its URL."""
    sock = bind("127.0.0.1", 0)
    server = HttpServer(app, sock=sock)
    await server.start()
    return server, f"http://127.0.0.1:{sock.getsockname()[1]}"


@dataclass
class Gateway:
    url: str
    products: FakeUpstream
    orders: FakeUpstream
    http: httpx.AsyncClient

    async def run(self, query: str, variables: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Send a well-formed request and return the response's JSON."""
        response = await self.http.post(self.url, json={"query": query, "variables": variables, **more})
        assert response.status_code < 500, response.text
        result: dict[str, Any] = response.json()
        return result


@asynccontextmanager
async def running_gateway(
    upstream: type[FakeUpstream] = FakeUpstream, process: Process | None = None, **changes: Any
) -> AsyncIterator[Gateway]:
    """Run a gateway over fakes with 230 products, and Ann's and Bob's orders."""
    async with AsyncExitStack() as stack:
        upstreams = upstream("product"), upstream("order")
        for upstream in upstreams:
            server, upstream.url = await serve(upstream)
            stack.push_async_callback(server.stop, 1)
        products, orders = upstreams
        for n in range(1, 231):
            products.resources[product(n)["id"]] = product(n)
        ids = list(products.resources)
        for n in range(30):
            created = order(n, "ann" if n < 25 else "bob", [ids[(7 * n + k) % 230] for k in range(n % 5 + 1)])
            orders.resources[created["id"]] = created
        settings: dict[str, Any] = {
            "products": HttpUpstream(url=products.url, timeout_seconds=UPSTREAM_TIMEOUT_SECONDS),
            "orders": HttpUpstream(url=orders.url, timeout_seconds=UPSTREAM_TIMEOUT_SECONDS),
            "http": GatewayHttp(port=free_port()),
            "admin": Listen(port=1),
            **changes,
        }
        config = Config(**settings)
        server = await stack.enter_async_context(build(config, process or Process()))
        await server.start()
        stack.push_async_callback(server.stop, 1)
        url = f"http://127.0.0.1:{config.http.port}"
        # Named, so that request errors have a status of their own: in application/json they are 200.
        headers = {"accept": "application/graphql-response+json"}
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60, headers=headers))
        yield Gateway(f"{url}/graphql", products, orders, http)


def code(result: dict[str, Any], i: int = 0) -> str:
    """Return the code of the error, by default of the first one."""
    found: str = result["errors"][i]["extensions"]["code"]
    return found
