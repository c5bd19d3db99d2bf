"""The REST edge that products, orders and the gateway share: routing, parsing, problems, limits.

Bodies are parsed by msgspec in strict mode into the service's own structs. Requests and answers are
Starlette's; its router and its stack of middleware are not used: they cost more than a small endpoint does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import inspect
from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from market.kit import context
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
from market.kit.process import logs
from market.kit.process.tracing import Tracer

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

# The field's name is the rest of the message: it may hold any character, a line break too.
_FIELD = re.compile(r" - at `(?:key in )?\$?\.?(.*)`$", re.DOTALL)
_QUOTED = re.compile(r"field `(.*)`$", re.DOTALL)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")


class _Encoded(Response):
    """An answer whose bytes are there: Starlette's, without its rendering."""

    def __init__(self, body: bytes, status: int, content_type: bytes, headers: Mapping[str, str] | None) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        self.raw_headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        if headers:
            self.raw_headers += [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
            ]


def answer(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, media: bytes = b"application/json"
) -> Response:
    """A JSON answer, or another type's; the body is anything msgspec encodes, or bytes that are written already."""
    return _Encoded(body if isinstance(body, bytes) else msgspec.json.encode(body), status, media, headers)


def problem_answer(problem: Problem) -> Response:
    """The RFC 9457 answer."""
    headers = {"Retry-After": str(problem.retry_after)} if isinstance(problem, Unavailable) else None
    return _Encoded(msgspec.json.encode(problem.document()), problem.status, b"application/problem+json", headers)


def bad_input(e: msgspec.ValidationError) -> BadInput:
    """The decoder's complaint as ours: which field, and what is allowed."""
    text = str(e)
    where = _FIELD.search(text)
    field = where[1] if where else ""
    reason = text[: where.start()] if where else text
    if named := _QUOTED.search(reason):
        field = f"{field}.{named[1]}" if field else named[1]
    return BadInput(field[:200] or "body", (reason[0].lower() + reason[1:])[:500])


def header(request: Request, name: bytes) -> bytes | None:
    """A header's value; `name` in lower case. What came several times is joined by commas, as RFC 9110 has it."""
    found = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(found) if found else None


async def body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body. Raises Malformed, BadInput, UnsupportedMediaType, TooLarge."""
    content_type = header(request, b"content-type")
    if content_type != b"application/json":
        _check_type((content_type or b"").decode("latin-1"))
    if (header(request, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Content-Encoding", "must be absent: compressed bodies are not taken")
    data = await request.body()
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as e:
            # It stops at the first field that is wrong; what comes behind may not even be JSON.
            msgspec.json.decode(data)
            raise bad_input(e) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed("body", f"is not JSON: {e}") from None


def _check_type(content_type: str) -> None:
    kind, *parameters = content_type.split(";")
    if kind.strip().lower() != JSON:
        raise UnsupportedMediaType("Content-Type", "must be application/json")
    for parameter in parameters:
        name, _, value = parameter.strip().lower().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("Content-Type", "charset must be utf-8")


def query(request: Request, type: type[T]) -> T:
    """The query string as a struct: unknown and repeated names, and values out of bounds, are BadInput."""
    raw: bytes = request.scope["query_string"]
    values: dict[str, Any] = {}
    if raw:
        try:
            pairs = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=50)
        except ValueError:  # UnicodeDecodeError is one, too.
            raise BadInput("query", "is not a query string in UTF-8") from None
        readers = _readers(type)  # type: ignore[arg-type]
        for name, value in pairs:
            if name in values:
                raise BadInput(name, "is given twice")
            reader = readers.get(name)
            values[name] = reader(value) if reader else value
    try:
        return msgspec.convert(values, type)
    except msgspec.ValidationError as e:
        raise bad_input(e) from None


@lru_cache
def _readers(type: Any) -> dict[str, Callable[[str], Any]]:
    """Readers of the fields that are not plain text. msgspec's own lax mode takes 1e2 and 20.0 for an int."""
    info = inspect.type_info(type)
    assert isinstance(info, inspect.StructType)
    readers = {}
    for field in info.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for kind in kinds:
            if made := _reader(field.encode_name, kind):
                readers[field.encode_name] = made
    return readers


def _reader(name: str, kind: inspect.Type) -> Callable[[str], Any] | None:
    if isinstance(kind, inspect.IntType):
        least, most = kind.ge, kind.le
        bounds = f" from {least} to {most}" if least is not None and most is not None else ""

        def whole(text: str) -> int:
            if not _WHOLE.fullmatch(text):
                raise BadInput(name, f"must be a whole number{bounds}")
            value = int(text)
            if (least is not None and value < least) or (most is not None and value > most):
                raise BadInput(name, f"must be a whole number{bounds}")
            return value

        return whole
    if isinstance(kind, inspect.BoolType):
        return lambda text: _one_of(name, text, {"true": True, "false": False})
    if isinstance(kind, inspect.LiteralType):
        allowed = {str(value): value for value in kind.values}
        return lambda text: _one_of(name, text, allowed)
    return None


def _one_of(name: str, text: str, allowed: Mapping[str, Any]) -> Any:
    if text not in allowed:
        raise BadInput(name, f"must be one of {', '.join(allowed)}")
    return allowed[text]


Endpoint = Callable[[Request], Awaitable[Response]]
# How a Problem is answered, by the request's scope: problem documents, unless an edge speaks otherwise.
Refusal = Callable[[Any, Problem], Response]


def application(
    routes: Mapping[str, Endpoint],
    config: Http,
    *,
    tracer: Tracer | None = None,
    seconds: Mapping[str, float] | None = None,
    refusal: Refusal = lambda _, problem: problem_answer(problem),
) -> Any:
    """The ASGI app. `routes` maps "GET /api/x/{id}" to an endpoint; `seconds` gives a route's deadline (default 3).

    A path's parameters are in `request.path_params`. HEAD is answered by GET where it has no endpoint of its own.
    """
    paths: dict[str, _Route] = {}
    for key, endpoint in routes.items():
        method, path = key.split(" ")
        allowed = (seconds or {}).get(key, 3.0)
        route = paths.setdefault(path, _Route(path))
        route.methods[method] = (endpoint, allowed)
        if method == "GET":
            route.methods.setdefault("HEAD", (endpoint, allowed))
    return Edge(list(paths.values()), config, tracer or Tracer(), refusal)


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

    def __init__(self, routes: list[_Route], config: Http, tracer: Tracer, refusal: Refusal) -> None:
        self._plain = {r.path: r for r in routes if r.pattern is None}
        self._patterns = [(r.pattern, r) for r in routes if r.pattern is not None]
        self._most_bytes = config.max_body_bytes
        self._most = config.max_in_flight
        self._under_way = 0
        self._tracer = tracer
        self._refusal = refusal
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
                response = self._refusal(scope, e)
                if isinstance(e, MethodNotAllowed):
                    response.headers["Allow"] = ", ".join(sorted(route.methods))
            except ClientDisconnect:
                return
            except Exception:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                response = self._refusal(
                    scope, Problem("this is a defect of ours; the log has it under the request id")
                )
            response.raw_headers.append((b"x-request-id", id.encode()))
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
