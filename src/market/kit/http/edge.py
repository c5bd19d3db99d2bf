"""The HTTP layer of the services: an ASGI app with routing, deadlines, limits and problem documents.

Requests and responses are Starlette's. Its router and middleware are not used, because they take more time than a small
endpoint (docs/decisions/0010).
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import Counter, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from market.kit import context
from market.kit.auth import metrics
from market.kit.auth.bearer import bearer_token
from market.kit.auth.config import is_loopback
from market.kit.auth.identity import ANONYMOUS, UNRESTRICTED, identity, token
from market.kit.auth.permissions import Access, check_table
from market.kit.config import Http
from market.kit.errors import (
    INTERNAL_ERROR,
    BadInput,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooLarge,
    Unauthenticated,
)
from market.kit.http.caller import ClientAddresses, address_caller, subject_caller
from market.kit.http.compression import Compression, Reserve
from market.kit.http.cors import Cors
from market.kit.http.hosts import Hosts
from market.kit.http.in_flight import InFlight
from market.kit.http.rate_limit import RateLimit
from market.kit.http.responses import problem_response
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer

if TYPE_CHECKING:
    from market.kit.auth.authenticator import Authenticator

log = logs.get_logger("http")

REQUESTS = Counter("market_http_requests_total", "HTTP requests handled.", ["method", "route", "status"])
DURATION = Histogram(
    "market_http_request_duration_seconds",
    "Time from the request to the end of the response.",
    ["method", "route"],
    buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)

Endpoint = Callable[[Request], Awaitable[Response]]
# Turns a Problem into a response, given the ASGI scope.
RenderProblem = Callable[[Any, Problem], Response]

DEFAULT_TIMEOUT_SECONDS = 3.0
# The default rate limit of one caller in one process, if callers sign in.
DEFAULT_REQUESTS_PER_SECOND = 1000.0
# Nginx's status for a client that closed the connection before the response; it appears only in metrics and logs.
_CLIENT_CLOSED_REQUEST = 499
_TRACE_HEADERS = tuple(name.encode() for name in context.TRACE_HEADERS)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def application(
    routes: Mapping[str, Endpoint],
    config: Http,
    *,
    tracer: Tracer | None = None,
    health: Health | None = None,
    timeouts: Mapping[str, float] | None = None,
    render_problem: RenderProblem = lambda _, problem: problem_response(problem),
    reserve: Reserve = lambda _, __: True,
    authenticator: Authenticator | None = None,
    access: Mapping[str, Access] | None = None,
) -> Any:
    """Return the ASGI app.

    routes: endpoints by method and path: {"GET /api/x/{id}": get_x}. A path's parameters are in `request.path_params`.
        HEAD uses the endpoint of GET unless the path has one for HEAD.
    timeouts: the timeout of a route in seconds, by the same key; 3 by default. The client's X-Deadline-Ms may shorten
        it.
    health: while the process is draining, every response closes its connection.
    render_problem: turns a Problem into a response; by default, into a problem document.
    reserve: reserves memory for compressing a response. If it returns False, the response is sent uncompressed.
    authenticator: verifies the callers' tokens. Without it, everybody may use every route.
    access: who may use each route, by the same key.

    Raises ValueError if there is an authenticator, but no `access` for one of the routes.
    """
    if authenticator is not None:
        check_table(access or {}, routes)
    paths: dict[str, _Route] = {}
    for key, endpoint in routes.items():
        method, path = key.split(" ")
        timeout = (timeouts or {}).get(key, DEFAULT_TIMEOUT_SECONDS)
        route = paths.setdefault(path, _Route(path))
        route.methods[method] = operation = _Operation(endpoint, timeout, (access or {}).get(key))
        if method == "GET":
            route.methods.setdefault("HEAD", operation)
    return Edge(
        list(paths.values()), config, tracer or Tracer(), health or Health(), render_problem, reserve, authenticator
    )


class _Operation(NamedTuple):
    """An endpoint, its timeout in seconds, and who may use it. `access` is None only if nobody signs in."""

    endpoint: Endpoint
    timeout: float
    access: Access | None


class _Route:
    """A path and its operations by method."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.methods: dict[str, _Operation] = {}
        self.pattern = None
        if "{" in path:
            self.pattern = re.compile(
                "".join(f"(?P<{p[1:-1]}>[^/]+)" if p[:1] == "{" else re.escape(p) for p in re.split(r"({\w+})", path))
            )

    @property
    def allowed(self) -> str:
        """The methods, as the header Allow lists them."""
        return ", ".join(sorted(self.methods))


_NO_ROUTE = _Route("-")


class Edge:
    """The ASGI app: sets a request's context, enforces limits and permissions, and records metrics.

    Clients never get a stack trace.
    """

    def __init__(
        self,
        routes: list[_Route],
        config: Http,
        tracer: Tracer,
        health: Health,
        render_problem: RenderProblem,
        reserve: Reserve,
        authenticator: Authenticator | None = None,
    ) -> None:
        self._plain = {r.path: r for r in routes if r.pattern is None}
        self._patterns = [(r.pattern, r) for r in routes if r.pattern is not None]
        self._max_body_bytes = config.max_body_bytes
        self._min_deadline_ms = config.min_deadline_ms
        self._client_addresses = ClientAddresses(config)
        self.in_flight = InFlight(config)
        self._tracer = tracer
        self._health = health
        self._render_problem = render_problem
        self._authenticator = authenticator
        per_second = config.max_requests_per_second_per_caller
        if per_second is None and authenticator is not None:
            per_second = DEFAULT_REQUESTS_PER_SECOND
        self._rate_limit = None if per_second is None else RateLimit(per_second, config.max_burst_per_caller)
        # The header Host is checked only if nobody signs in and the address is a loopback address (see hosts.py).
        self._hosts = Hosts(config.allowed_hosts) if authenticator is None and is_loopback(config.host) else None
        self._cors = Cors(config.cors_origins)
        self._compression = Compression(config.compression, reserve)
        # The counter and the histogram, by method, route and status.
        self._metrics: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not request_id or not context.valid_request_id(request_id):
            request_id = context.new_request_id()
        context.request_id.set(request_id)
        if b"traceparent" in headers:
            context.set_trace(*(_joined(scope["headers"], name) for name in _TRACE_HEADERS))
        else:
            context.set_trace("")
        address = self._client_addresses.find(scope)
        scope["client"] = (address, 0)
        context.client_address.set(address)
        identity.set(UNRESTRICTED if self._authenticator is None else ANONYMOUS)
        token.set("")
        deadline_token = context.deadline.set(None)
        # The size of the body, which the connection has received completely (market.kit.http.protocol).
        body_bytes: int = scope.get("state", {}).get("body_bytes", 0)
        caller = address_caller(address)
        self.in_flight.add(caller, body_bytes)
        route = _NO_ROUTE
        status = _CLIENT_CLOSED_REQUEST
        try:
            try:
                self._check_limits(headers, caller, body_bytes)
                self._set_deadline(headers)
                route, parameters = self._find(scope["path"])
                if self._cors.is_enabled and self._cors.is_preflight(scope["method"], headers):
                    response = self._cors.preflight_response(route.allowed)
                else:
                    operation = self._select_operation(route, scope["method"])
                    try:
                        if self._authenticator is not None:
                            await self._authenticate(self._authenticator, headers, scope["headers"])
                            caller = self._count_as_subject(caller)
                            self.in_flight.check_caller(caller)
                            _check_permission(operation)
                    except Problem:
                        # A refused request also counts towards the rate limit: that of its subject if its token is
                        # valid, or else that of its address.
                        self._check_rate(caller, address)
                        raise
                    self._check_rate(caller, address)
                    scope["path_params"] = parameters
                    if self._tracer.enabled:
                        with self._tracer.span(f"{scope['method']} {route.path}"):
                            response = await self._respond(operation.endpoint, headers, scope, receive)
                    else:
                        response = await self._respond(operation.endpoint, headers, scope, receive)
            except Problem as e:
                response = self._render_problem(scope, e)
                if isinstance(e, MethodNotAllowed):
                    response.headers["Allow"] = route.allowed
                elif isinstance(e, Unauthenticated | Forbidden) and e.challenge is not None:
                    response.headers["WWW-Authenticate"] = e.challenge
            except ClientDisconnect:
                return
            except Exception:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                response = self._render_problem(scope, Problem(INTERNAL_ERROR))
            await self._compression.apply(response, scope["headers"])
            if self._cors.is_enabled:
                self._cors.apply(response, headers)
            response.raw_headers.append((b"x-request-id", request_id.encode()))
            if self._health.draining:
                # So clients with open connections move to another pod before this one stops listening.
                response.raw_headers.append((b"connection", b"close"))
            status = response.status_code
            await response(scope, receive, send)
        finally:
            self.in_flight.remove(caller, body_bytes)
            context.deadline.reset(deadline_token)
            seconds = time.perf_counter() - started
            self._count(scope["method"], route.path, status, seconds)
            # With this line, a request id can be followed through the services.
            log.debug(
                "request handled", method=scope["method"], route=route.path, status=status, seconds=round(seconds, 4)
            )

    def _check_limits(self, headers: dict[bytes, bytes], caller: str, body_bytes: int) -> None:
        if self._hosts is not None:
            self._hosts.check(headers.get(b"host"))
        self.in_flight.check(caller, body_bytes)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > self._max_body_bytes):
            raise TooLarge("body", f"must be at most {self._max_body_bytes} bytes")

    def _check_rate(self, caller: str, address: str) -> None:
        """Count the request for its caller. Raises TooManyRequests if the caller has sent too many.

        The rate of a trusted proxy that has not signed in is not limited: it is another service, which sends requests
        for many callers.
        """
        if self._rate_limit is not None and (identity.get().signed_in or not self._client_addresses.trusts(address)):
            self._rate_limit.check(caller)

    def _set_deadline(self, headers: dict[bytes, bytes]) -> None:
        if deadline := headers.get(b"x-deadline-ms"):
            if not deadline.isdigit() or len(deadline) > 9:
                raise BadInput("X-Deadline-Ms", "must be a whole number of milliseconds")
            milliseconds = int(deadline)
            if milliseconds:
                milliseconds = max(milliseconds, self._min_deadline_ms)
            context.deadline.set(time.monotonic() + milliseconds / 1000)

    def _find(self, path: str) -> tuple[_Route, dict[str, str]]:
        if found := self._plain.get(path):
            return found, {}
        for pattern, route in self._patterns:
            if match := pattern.fullmatch(path):
                return route, match.groupdict()
        raise NotFound("resource at this path")

    def _select_operation(self, route: _Route, method: str) -> _Operation:
        """Return the operation, and set its deadline. Raises MethodNotAllowed."""
        if (operation := route.methods.get(method)) is None:
            raise MethodNotAllowed(f"{route.path} allows {route.allowed}")
        expires_at = time.monotonic() + operation.timeout
        requested = context.deadline.get()
        context.deadline.set(expires_at if requested is None else min(expires_at, requested))
        return operation

    async def _authenticate(
        self, authenticator: Authenticator, headers: dict[bytes, bytes], all_headers: list[tuple[bytes, bytes]]
    ) -> None:
        """Set the identity and the token of the request. Raises Unauthenticated."""
        value = headers.get(b"authorization")
        if value is None:
            return
        try:
            if [name for name, _ in all_headers].count(b"authorization") > 1:
                raise Unauthenticated("must be sent in a single Authorization header")
            presented = bearer_token(value.decode("latin-1"))
            identity.set(await authenticator.authenticate(presented))
        except Unauthenticated:
            metrics.REFUSED.labels("token").inc()
            raise
        token.set(presented)

    def _count_as_subject(self, caller: str) -> str:
        """Count the request for the caller's subject instead of its address, if the caller has signed in.

        Return the caller for which the request is counted now.

        caller: the caller for which it was counted so far, named by its address.
        """
        if not (subject := identity.get().subject):
            return caller
        signed_in_caller = subject_caller(subject)
        self.in_flight.reassign(caller, signed_in_caller)
        return signed_in_caller

    async def _respond(self, endpoint: Endpoint, headers: dict[bytes, bytes], scope: Any, receive: Any) -> Response:
        if b"content-length" in headers or b"transfer-encoding" in headers:
            receive = self._limited(receive)
        return await endpoint(Request(scope, receive))

    def _limited(self, receive: Any) -> Any:
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._max_body_bytes:
                    raise TooLarge("body", f"must be at most {self._max_body_bytes} bytes")
            return message

        return limited

    def _count(self, method: str, route: str, status: int, seconds: float) -> None:
        # The metrics are cached, because looking up labels takes more time than counting. An unknown method is counted
        # as "-", so that clients cannot create labels.
        key = (method if method in _METHODS else "-", route, status)
        found = self._metrics.get(key)
        if found is None:
            found = self._metrics[key] = (REQUESTS.labels(*key), DURATION.labels(*key[:2]))
        requests, duration = found
        requests.inc()
        duration.observe(seconds)


def _check_permission(operation: _Operation) -> None:
    """Raise Unauthenticated or Forbidden unless the caller may use the operation."""
    if operation.access is None:
        return
    try:
        operation.access.require(identity.get())
    except Problem as e:
        metrics.REFUSED.labels("role" if isinstance(e, Forbidden) else "no_token").inc()
        raise


def _joined(headers: list[tuple[bytes, bytes]], wanted: bytes) -> str:
    """Return a header's values, joined by commas.

    `tracestate` and `baggage` may be split over several headers. A repeated `traceparent` becomes invalid.
    """
    return b",".join(value for name, value in headers if name == wanted).decode("latin-1")
