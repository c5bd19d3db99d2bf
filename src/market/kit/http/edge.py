"""The HTTP edge that products, orders and the gateway share: routing, problems, limits.

Requests and responses are Starlette's; its router and its stack of middleware are not used: they cost more than a small
endpoint does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import Http
from market.kit.errors import BadInput, MethodNotAllowed, NotFound, Overloaded, Problem, TooLarge
from market.kit.http.responses import problem_response
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer

log = logs.get_logger("http")

REQUESTS = Counter("market_http_requests_total", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "market_http_request_seconds",
    "Time to the answer.",
    ["method", "route"],
    buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)
IN_FLIGHT = Gauge("market_http_in_flight", "Requests under way.")

Endpoint = Callable[[Request], Awaitable[Response]]
# How a Problem is answered, by the request's scope: problem documents, unless an edge speaks otherwise.
RenderProblem = Callable[[Any, Problem], Response]


def application(
    routes: Mapping[str, Endpoint],
    config: Http,
    *,
    tracer: Tracer | None = None,
    health: Health | None = None,
    timeouts: Mapping[str, float] | None = None,
    render_problem: RenderProblem = lambda _, problem: problem_response(problem),
) -> Any:
    """The ASGI app. `routes` maps "GET /api/x/{id}" to an endpoint; `timeouts` gives a route's deadline (default 3).

    A path's parameters are in `request.path_params`. HEAD is answered by GET where it has no endpoint of its own.
    """
    paths: dict[str, _Route] = {}
    for key, endpoint in routes.items():
        method, path = key.split(" ")
        allowed = (timeouts or {}).get(key, 3.0)
        route = paths.setdefault(path, _Route(path))
        route.methods[method] = (endpoint, allowed)
        if method == "GET":
            route.methods.setdefault("HEAD", (endpoint, allowed))
    return Edge(list(paths.values()), config, tracer or Tracer(), health or Health(), render_problem)


class _Route:
    """A path of ours, and what it takes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.methods: dict[str, tuple[Endpoint, float]] = {}
        self.pattern = None
        if "{" in path:
            self.pattern = re.compile(
                "".join(f"(?P<{p[1:-1]}>[^/]+)" if p[:1] == "{" else re.escape(p) for p in re.split(r"({\w+})", path))
            )


_NO_ROUTE = _Route("-")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Edge:
    """The ASGI app: request id, deadline, size of the body, load shedding, figures, and no stack trace to anyone."""

    def __init__(
        self, routes: list[_Route], config: Http, tracer: Tracer, health: Health, render_problem: RenderProblem
    ) -> None:
        self._plain = {r.path: r for r in routes if r.pattern is None}
        self._patterns = [(r.pattern, r) for r in routes if r.pattern is not None]
        self._most_bytes = config.max_body_bytes
        self._most = config.max_in_flight
        self._under_way = 0
        self._tracer = tracer
        self._health = health
        self._render_problem = render_problem
        self._figures: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not id or not context.valid_request_id(id):
            id = context.new_request_id()
        context.request_id.set(id)
        trace = headers.get(b"traceparent", b"").decode("latin-1")
        context.traceparent.set(trace if trace and context.valid_traceparent(trace) else "")
        old_deadline = context.deadline.set(None)
        self._under_way += 1
        IN_FLIGHT.inc()
        route = _NO_ROUTE
        status = 499
        try:
            try:
                self._admit(headers)
                route, parameters = self._find(scope["path"])
                if self._tracer.enabled:
                    with self._tracer.span(f"{scope['method']} {route.path}"):
                        response = await self._respond(route, parameters, headers, scope, receive)
                else:
                    response = await self._respond(route, parameters, headers, scope, receive)
            except Problem as e:
                response = self._render_problem(scope, e)
                if isinstance(e, MethodNotAllowed):
                    response.headers["Allow"] = ", ".join(sorted(route.methods))
            except ClientDisconnect:
                return
            except Exception:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                response = self._render_problem(
                    scope, Problem("this is a defect of ours; the log has it under the request id")
                )
            response.raw_headers.append((b"x-request-id", id.encode()))
            if self._health.draining:
                # Callers that keep their connection open move to another pod before this one stops listening.
                response.raw_headers.append((b"connection", b"close"))
            status = response.status_code
            await response(scope, receive, send)
        finally:
            self._under_way -= 1
            IN_FLIGHT.dec()
            context.deadline.reset(old_deadline)
            seconds = time.perf_counter() - started
            self._count(scope["method"], route.path, status, seconds)
            # At debug, where it costs nothing otherwise: the way of one request id through the services.
            log.debug("answered", method=scope["method"], route=route.path, status=status, seconds=round(seconds, 4))

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        if self._under_way > self._most:
            raise Overloaded("too many requests are under way here")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > self._most_bytes):
            raise TooLarge("body", f"must have at most {self._most_bytes} bytes")
        if given := headers.get(b"x-deadline-ms"):
            if not given.isdigit() or len(given) > 9:
                raise BadInput("X-Deadline-Ms", "must be a whole number of milliseconds")
            context.deadline.set(time.monotonic() + int(given) / 1000)

    def _find(self, path: str) -> tuple[_Route, dict[str, str]]:
        if found := self._plain.get(path):
            return found, {}
        for pattern, route in self._patterns:
            if match := pattern.fullmatch(path):
                return route, match.groupdict()
        raise NotFound("such address")

    async def _respond(
        self, route: _Route, parameters: dict[str, str], headers: dict[bytes, bytes], scope: Any, receive: Any
    ) -> Response:
        if (found := route.methods.get(scope["method"])) is None:
            raise MethodNotAllowed(f"{route.path} takes {', '.join(sorted(route.methods))}")
        endpoint, allowed = found
        at = time.monotonic() + allowed
        given = context.deadline.get()
        context.deadline.set(at if given is None else min(at, given))
        scope["path_params"] = parameters
        if b"content-length" in headers or b"transfer-encoding" in headers:
            receive = self._limited(receive)
        return await endpoint(Request(scope, receive))

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

    def _count(self, method: str, route: str, status: int, seconds: float) -> None:
        # Looking a label up costs more than counting; and nobody may make labels for us by inventing methods.
        key = (method if method in _METHODS else "-", route, status)
        figures = self._figures.get(key)
        if figures is None:
            figures = self._figures[key] = (REQUESTS.labels(*key), SECONDS.labels(*key[:2]))
        figures[0].inc()
        figures[1].observe(seconds)
