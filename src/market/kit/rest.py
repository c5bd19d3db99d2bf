"""The REST edge that products, orders and the gateway share: parsing, problems, limits.

Bodies are parsed by msgspec in strict mode into the service's own structs; Starlette only routes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from prometheus_client import Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from market.kit import context, logs
from market.kit.config import Http
from market.kit.errors import (
    BadInput,
    Malformed,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Problem,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from market.kit.tracing import Tracer

T = TypeVar("T")
log = logs.get("rest")

PROBLEM = "application/problem+json"
JSON = "application/json"

REQUESTS = Counter("market_http_requests_total", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "market_http_request_seconds",
    "Time to the answer.",
    ["method", "route"],
    buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)
IN_FLIGHT = Gauge("market_http_in_flight", "Requests under way.", multiprocess_mode="livesum")

_FIELD = re.compile(r" - at `(?:key in )?\$?\.?(.*)`$")
_QUOTED = re.compile(r"field `([^`]*)`")


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; the body is anything msgspec encodes, or bytes that are JSON already."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Response(data, status, headers=dict(headers) if headers else None, media_type=JSON)


def problem_answer(problem: Problem) -> Response:
    """The RFC 9457 answer."""
    headers = {"Retry-After": str(problem.retry_after)} if isinstance(problem, Unavailable) else {}
    return Response(msgspec.json.encode(problem.document()), problem.status, headers=headers, media_type=PROBLEM)


def bad_input(e: msgspec.ValidationError) -> BadInput:
    """The decoder's complaint as ours: which field, and what is allowed."""
    text = str(e)
    where = _FIELD.search(text)
    field = where[1] if where else ""
    reason = text[: where.start()] if where else text
    if named := _QUOTED.search(reason):
        field = f"{field}.{named[1]}" if field else named[1]
    return BadInput(field or "body", reason[0].lower() + reason[1:])


async def body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body. Raises Malformed, BadInput, UnsupportedMediaType, TooLarge."""
    content_type = request.headers.get("content-type", "")
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != JSON:
        raise UnsupportedMediaType("Content-Type", "must be application/json")
    charset = parameters.strip().lower()
    if charset.startswith("charset=") and charset[8:].strip('"') != "utf-8":
        raise UnsupportedMediaType("Content-Type", "charset must be utf-8")
    data = await request.body()
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as e:
        raise bad_input(e) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed("body", f"is not JSON: {e}") from None


def query(request: Request, type: type[T]) -> T:
    """The query string as a struct: unknown and repeated names, and values out of bounds, are BadInput."""
    raw = request.scope["query_string"].decode("latin-1")
    values: dict[str, str] = {}
    if raw:
        try:
            pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=50)
        except (ValueError, UnicodeDecodeError):
            raise BadInput("query", "is not a query string in UTF-8") from None
        for name, value in pairs:
            if name in values:
                raise BadInput(name, "is given twice")
            values[name] = value
    try:
        return msgspec.convert(values, type, strict=False)
    except msgspec.ValidationError as e:
        raise bad_input(e) from None


Endpoint = Callable[[Request], Awaitable[Response]]


def application(
    routes: Mapping[str, Endpoint], config: Http, *, tracer: Tracer | None = None, seconds: Mapping[str, float] | None = None
) -> Any:
    """The ASGI app. `routes` maps "GET /api/x/{id}" to an endpoint; `seconds` gives a route's deadline (default 3)."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for key, endpoint in routes.items():
        method, path = key.split(" ")
        paths.setdefault(path, {})[method] = endpoint
    limits = {**dict.fromkeys(routes, 3.0), **(seconds or {})}

    def route(path: str, methods: dict[str, Endpoint]) -> Route:
        async def dispatch(request: Request) -> Response:
            request.scope["market.route"] = path
            method = "GET" if request.method == "HEAD" and "HEAD" not in methods else request.method
            endpoint = methods.get(method)
            if endpoint is None:
                allowed = ", ".join(sorted(methods))
                refused = problem_answer(MethodNotAllowed(f"{path} takes {allowed}"))
                refused.headers["Allow"] = allowed
                return refused
            with context.allow(limits[f"{method} {path}"]):
                return await endpoint(request)

        return Route(path, dispatch, methods=["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])

    async def on_problem(_: Request, e: Exception) -> Response:
        assert isinstance(e, Problem)
        return problem_answer(e)

    async def on_http(_: Request, e: Exception) -> Response:
        assert isinstance(e, HTTPException)
        return problem_answer(NotFound("such address") if e.status_code == 404 else BadInput("", e.detail))

    app = Starlette(
        routes=[route(path, methods) for path, methods in paths.items()],
        exception_handlers={Problem: on_problem, HTTPException: on_http},
    )
    # A path with a slash too many is no path of ours, not a redirect.
    app.router.redirect_slashes = False
    return Edge(app, config, tracer or Tracer())


class Edge:
    """Around the routes: request id, deadline, size of the body, load shedding, figures, and no stack trace to anyone."""

    def __init__(self, app: Any, config: Http, tracer: Tracer) -> None:
        self._app = app
        self._most_bytes = config.max_body_bytes
        self._most = config.max_in_flight
        self._under_way = 0
        self._tracer = tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        id = headers.get(b"x-request-id", b"").decode("latin-1")
        id = id if context.valid_request_id(id) else context.new_request_id()
        context.request_id.set(id)
        trace = headers.get(b"traceparent", b"").decode("latin-1")
        context.traceparent.set(trace if context.valid_traceparent(trace) else "")
        status = 0

        async def send_on(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            await send(message)

        self._under_way += 1
        IN_FLIGHT.inc()
        try:
            try:
                self._admit(headers)
                with self._tracer.span(f"{scope['method']} {scope['path']}"):
                    await self._app(scope, self._limited(receive), send_on)
            except ClientDisconnect:
                status = status or 499
            except Problem as e:
                if status == 0:
                    await problem_answer(e)(scope, receive, send_on)
            except Exception:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                if status == 0:
                    await problem_answer(Problem("this is a defect of ours; the log has it under the request id"))(scope, receive, send_on)
        finally:
            self._under_way -= 1
            IN_FLIGHT.dec()
            route = scope.get("market.route", "-")
            method = scope["method"] if len(scope["method"]) < 8 else "-"
            REQUESTS.labels(method, route, status).inc()
            SECONDS.labels(method, route).observe(time.perf_counter() - started)

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        if self._under_way > self._most:
            raise Overloaded("too many requests are under way here")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._most_bytes:
            raise TooLarge("body", f"must have at most {self._most_bytes} bytes")
        context.deadline.set(None)
        if given := headers.get(b"x-deadline-ms"):
            if not given.isdigit() or len(given) > 9:
                raise BadInput("X-Deadline-Ms", "must be a whole number of milliseconds")
            context.deadline.set(time.monotonic() + int(given) / 1000)

    def _limited(self, receive: Any) -> Any:
        read = 0

        async def receive_on() -> Any:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._most_bytes:
                    raise TooLarge("body", f"must have at most {self._most_bytes} bytes")
            return message

        return receive_on
