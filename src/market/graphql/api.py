"""The HTTP edge: GraphQL over HTTP at /graphql, GraphiQL at /, its files and the pictures beside it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from market.graphql.engine.documents import Documents
from market.graphql.engine.executor import Executor, Result, failed
from market.graphql.graphiql.files import Files
from market.graphql.media import LEGACY, PREFERRED, negotiated
from market.graphql.problems import explained
from market.kit.config import Http
from market.kit.errors import BadInput, MethodNotAllowed, Problem
from market.kit.http import edge
from market.kit.http.edge import Endpoint
from market.kit.http.requests import read_body, read_header
from market.kit.http.responses import json_response, problem_response
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer

PATH = "/graphql"
SECONDS = 10.0
_MEDIA = {t: f"{t}; charset=utf-8".encode() for t in (PREFERRED, LEGACY)}
_HEADERS = {"cache-control": "no-store", "vary": "accept"}


class Call(Struct, frozen=True):
    """A GraphQL-over-HTTP request. Names that it does not know are reserved, and ignored."""

    query: str
    operationName: str | None = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None


class NotAcceptable(BadInput):
    status = 406


class MutationByGet(MethodNotAllowed):
    pass


_call = msgspec.json.Decoder(Call)
_map = msgspec.json.Decoder(dict[str, Any] | None)


def application(
    documents: Documents, executor: Executor, web: Files, config: Http, tracer: Tracer, health: Health
) -> Any:
    """The ASGI app."""

    async def post(request: Request) -> Response:
        media = _media(request.scope)
        # JSON alone: a form or a plain text is what a foreign page could make a browser send.
        call = await read_body(request, _call)
        prepared = documents.get(call.query, call.operationName or None)
        return _respond(await executor.run(prepared, call.variables or {}), media)

    async def get(request: Request) -> Response:
        if not request.scope["query_string"] and b"text/html" in (read_header(request, b"accept") or b""):
            return Response(status_code=303, headers={"location": "/"})
        media = _media(request.scope)
        call = from_query(request.scope["query_string"])
        prepared = documents.get(call.query, call.operationName)
        if prepared.is_mutation:
            # Answered, not raised: the edge would allow what the path allows.
            return refusal(request.scope, MutationByGet("a mutation comes by POST"))
        return _respond(await executor.run(prepared, call.variables or {}), media)

    routes: dict[str, Endpoint] = {f"POST {PATH}": post, f"GET {PATH}": get, **dict.fromkeys(web.routes, web.get)}
    return edge.application(
        routes, config, tracer=tracer, health=health, timeouts=dict.fromkeys(routes, SECONDS), render_problem=refusal
    )


def refusal(scope: Any, problem: Problem) -> Response:
    """What never became a GraphQL request gets a 4xx or 503 whose body is a GraphQL answer all the same."""
    if scope["path"] != PATH:
        return problem_response(problem)
    told = explained(problem)
    headers = dict(_HEADERS)
    if isinstance(problem, MutationByGet):
        headers["allow"] = "POST"
    if "retryAfter" in told.extensions:
        headers["retry-after"] = str(told.extensions["retryAfter"])
    body = failed([{"message": str(told), "extensions": told.extensions}]).body
    status = 400 if problem.status == 422 else problem.status
    return json_response(body, status, headers, content_type=_MEDIA[negotiated(_accept(scope)) or PREFERRED])


def from_query(raw: bytes) -> Call:
    """The request in a query string. Raises BadInput."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise BadInput("query", "is not a query string in UTF-8") from None
    given = dict(pairs)
    for name in ("query", "operationName", "variables", "extensions"):
        if sum(name == n for n, _ in pairs) > 1:
            raise BadInput(name, "is given twice")
    if not given.get("query"):
        raise BadInput("query", "is missing")
    maps: dict[str, dict[str, Any] | None] = {}
    for name in ("variables", "extensions"):
        if given.get(name):
            try:
                maps[name] = _map.decode(given[name])
            except (msgspec.DecodeError, RecursionError):
                raise BadInput(name, "must be a JSON object") from None
    return Call(given["query"], given.get("operationName") or None, **maps)


def _accept(scope: Any) -> str:
    for name, value in scope["headers"]:
        if name == b"accept":
            accept: str = value.decode("latin-1")
            return accept
    return ""


def _media(scope: Any) -> str:
    media = negotiated(_accept(scope))
    if media is None:
        raise NotAcceptable("Accept", f"must allow {PREFERRED} or {LEGACY}")
    return media


def _respond(result: Result, media: str) -> Response:
    # In the legacy type only a 200 says that the answer is ours.
    status = 200 if result.began or media == LEGACY else 400
    return json_response(result.body, status, _HEADERS, content_type=_MEDIA[media])
