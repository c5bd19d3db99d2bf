"""The HTTP edge: GraphQL over HTTP at /graphql, and the files of GraphiQL and the demo catalogue beside it.

Status codes and media types are those of the GraphQL over HTTP specification: https://graphql.github.io/graphql-over-http
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from market.graphql.engine.executor import Executor, Result, rejected
from market.graphql.graphiql.files import StaticFiles
from market.kit.config import Http
from market.kit.errors import BadInput, MethodNotAllowed, Problem, Unavailable
from market.kit.http import edge
from market.kit.http.edge import Endpoint
from market.kit.http.requests import read_body, read_header
from market.kit.http.responses import json_response, problem_response
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer

PATH = "/graphql"
# Some clients and ingresses add the slash.
_PATHS = (PATH, f"{PATH}/")
TIMEOUT_SECONDS = 10.0
PREFERRED = "application/graphql-response+json"
LEGACY = "application/json"
_CONTENT_TYPES = {t: f"{t}; charset=utf-8".encode() for t in (PREFERRED, LEGACY)}
_MAX_CACHED_ACCEPT = 256
_HEADERS = {"cache-control": "no-store", "vary": "accept"}


class GraphQLRequest(Struct, frozen=True):
    """A GraphQL-over-HTTP request. The specification reserves all other names; they are ignored."""

    query: str
    operationName: str | None = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None


class NotAcceptable(BadInput):
    """The Accept header allows neither media type."""

    status = 406


class MutationByGet(MethodNotAllowed):
    """A mutation that was sent by GET."""


_request_decoder = msgspec.json.Decoder(GraphQLRequest)
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)


def application(executor: Executor, files: StaticFiles, config: Http, tracer: Tracer, health: Health) -> Any:
    """Return the ASGI application."""

    async def post(request: Request) -> Response:
        media_type = _media_type(request.scope)
        # JSON only: another site's page can make a browser send a form or plain text.
        call = await read_body(request, _request_decoder)
        prepared = executor.prepare(call.query, call.operationName or None)
        return _response(await executor.execute(prepared, call.variables or {}), media_type)

    async def get(request: Request) -> Response:
        if not request.scope["query_string"] and b"text/html" in (read_header(request, b"accept") or b""):
            return Response(status_code=303, headers={"location": "/"})
        media_type = _media_type(request.scope)
        call = parse_get_request(request.scope["query_string"])
        prepared = executor.prepare(call.query, call.operationName)
        if prepared.is_mutation:
            # Returned, not raised: for a MethodNotAllowed that is raised, the edge allows every method of the path.
            return render_problem(request.scope, MutationByGet("mutations must be sent by POST"))
        return _response(await executor.execute(prepared, call.variables or {}), media_type)

    routes: dict[str, Endpoint] = dict.fromkeys(files.routes, files.get)
    for path in _PATHS:
        routes |= {f"POST {path}": post, f"GET {path}": get}
    timeouts = dict.fromkeys(routes, TIMEOUT_SECONDS)
    return edge.application(
        routes, config, tracer=tracer, health=health, timeouts=timeouts, render_problem=render_problem
    )


def render_problem(scope: Any, problem: Problem) -> Response:
    """Return a GraphQL response with a 4xx or 5xx status for a request that could not be executed."""
    if scope["path"] not in _PATHS:
        return problem_response(problem)
    headers = dict(_HEADERS)
    if isinstance(problem, MutationByGet):
        headers["allow"] = "POST"
    if isinstance(problem, Unavailable):
        headers["retry-after"] = str(problem.retry_after)
    # The specification knows 400, not 422.
    status = 400 if problem.status == 422 else problem.status
    content_type = _CONTENT_TYPES[negotiate(_accept(scope)) or LEGACY]
    return json_response(rejected(problem).body, status, headers, content_type=content_type)


def parse_get_request(query_string: bytes) -> GraphQLRequest:
    """Return the request in a query string. Raises BadInput."""
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise BadInput("query", "must be a query string in UTF-8 with at most 20 parameters") from None
    parameters = dict(pairs)
    for name in ("query", "operationName", "variables", "extensions"):
        if sum(name == n for n, _ in pairs) > 1:
            raise BadInput(name, "must not be repeated")
    if not parameters.get("query"):
        raise BadInput("query", "is missing")
    objects: dict[str, dict[str, Any] | None] = {}
    for name in ("variables", "extensions"):
        if parameters.get(name):
            try:
                objects[name] = _object_decoder.decode(parameters[name])
            except (msgspec.DecodeError, RecursionError):
                raise BadInput(name, "must be a JSON object") from None
    return GraphQLRequest(parameters["query"], parameters.get("operationName") or None, **objects)


def negotiate(accept: str) -> str | None:
    """Return the media type that an Accept header prefers, or None if it allows neither.

    A wildcard, or no header, selects LEGACY: the specification's audit asks for it, because a client that knows the
    other type names it (https://graphql.github.io/graphql-over-http/draft/#sec-Legacy-Watershed).
    """
    # A longer header is rare, and could fill the cache with megabytes.
    return _negotiate_cached(accept) if len(accept) <= _MAX_CACHED_ACCEPT else _negotiate(accept)


def _negotiate(accept: str) -> str | None:
    if not accept.strip():
        return LEGACY
    ranks: dict[str, tuple[float, int]] = {}
    wildcard_quality: float | None = None
    for i, part in enumerate(accept.lower().split(",")):
        media_type, *parameters = (p.strip() for p in part.split(";"))
        rank = (_quality(parameters), -i)
        if media_type in (PREFERRED, LEGACY):
            ranks[media_type] = max(rank, ranks.get(media_type, rank))
        elif media_type in ("*/*", "application/*") and wildcard_quality is None:
            wildcard_quality = rank[0]
    if wildcard_quality is not None:
        # Of the same quality, a type that is named comes first.
        ranks.setdefault(LEGACY, (wildcard_quality, -accept.count(",") - 1))
    best = max(ranks, key=lambda media_type: ranks[media_type], default=None)
    return best if best is not None and ranks[best][0] > 0 else None


_negotiate_cached = lru_cache(maxsize=256)(_negotiate)


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0


def _accept(scope: Any) -> str:
    for name, value in scope["headers"]:
        if name == b"accept":
            accept: str = value.decode("latin-1")
            return accept
    return ""


def _media_type(scope: Any) -> str:
    media_type = negotiate(_accept(scope))
    if media_type is None:
        raise NotAcceptable("Accept", f"must allow {PREFERRED} or {LEGACY}")
    return media_type


def _response(result: Result, media_type: str) -> Response:
    # In the legacy type a client trusts the body of a 200 alone.
    status = 200 if result.executed or media_type == LEGACY else 400
    return json_response(result.body, status, _HEADERS, content_type=_CONTENT_TYPES[media_type])
