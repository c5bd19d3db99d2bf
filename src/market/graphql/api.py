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

from market.contracts.access import GRAPHQL_ROUTES
from market.graphql.engine.executor import Executor, Result, rejected
from market.graphql.graphiql.files import StaticFiles
from market.graphql.memory.budget import MemoryBudget, RequestMemory, json_cost
from market.kit.auth.authenticator import Authenticator
from market.kit.config import Http
from market.kit.errors import BadInput, MethodNotAllowed, Overloaded, Problem, Unavailable
from market.kit.http import edge
from market.kit.http.admission import Admission
from market.kit.http.edge import Endpoint
from market.kit.http.requests import (
    parse_pairs,
    parse_quality,
    read_body,
    read_header,
    reject_unsupported_preconditions,
)
from market.kit.http.responses import json_response, problem_response
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer

PATH = "/graphql"
# Some clients and ingresses append a slash.
_PATHS = (PATH, f"{PATH}/")
TIMEOUT_SECONDS = 10.0
PREFERRED = "application/graphql-response+json"
LEGACY = "application/json"
_CONTENT_TYPES = {t: f"{t}; charset=utf-8".encode() for t in (PREFERRED, LEGACY)}
_MAX_CACHED_ACCEPT = 256
# A response is sent in pieces of this size: as much as the server buffers before it waits for the client.
_PIECE_BYTES = 65_536
# A text weighs at least one object per this many bytes. A line of an order has 60 to 120 bytes.
_BYTES_PER_OBJECT = 128
_HEADERS = {"cache-control": "no-store", "vary": "accept"}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


class GraphQLRequest(Struct, frozen=True):
    """A GraphQL-over-HTTP request. The specification reserves all other names; they are ignored."""

    query: str | None = None
    operationName: str | None = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None
    # Of any type, because it is ignored if there is a query.
    documentId: Any = None

    def document_id(self) -> str | None:
        """Return the id of the document that takes the place of the query; None if there is a query.

        Raises BadInput if there is neither.
        """
        if self.query is not None:
            return None
        persisted = (self.extensions or {}).get("persistedQuery")
        for value in (self.documentId, persisted.get("sha256Hash") if isinstance(persisted, dict) else None):
            if isinstance(value, str) and value:
                return value
        raise BadInput("query", "is missing")


class NotAcceptable(BadInput):
    """The Accept header allows neither media type."""

    status = 406


class MutationByGet(MethodNotAllowed):
    """A mutation that was sent by GET."""


_request_decoder = msgspec.json.Decoder(GraphQLRequest)
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)


def application(
    executor: Executor,
    budget: MemoryBudget,
    admission: Admission,
    files: StaticFiles,
    config: Http,
    tracer: Tracer,
    health: Health,
    authentication: Authenticator | None = None,
) -> Any:
    """Return the ASGI application."""

    async def post(request: Request) -> Response:
        media_type = _media_type(request.scope)
        reject_unsupported_preconditions(request)
        memory = budget.request()
        try:
            counted = Request(request.scope, _counted(request.receive, memory))
            body = await counted.body()
            # The pieces have been joined into one.
            memory.release(len(body))
            async with admission(counted, weigh(body)) as admitted:
                await memory.take(json_cost(body))
                # JSON only: another site's page can make a browser send a form or plain text.
                call = await read_body(counted, _request_decoder)
                prepared = await executor.prepare(
                    call.query, call.operationName or None, memory, document_id=call.document_id()
                )
                result = await executor.execute(prepared, call.variables or {}, memory, admit=admitted.increase_weight)
                return _CountedResponse(result, media_type, memory)
        except BaseException:
            memory.close()
            raise

    async def get(request: Request) -> Response:
        if b"text/html" in (read_header(request, b"accept") or b""):
            query_string = request.scope["query_string"].decode("latin-1")
            if not query_string or is_authorization_response(query_string):
                # Behind an ingress, `/` is the storefront, so GraphiQL is here, too.
                return await files.get_page(request)
        media_type = _media_type(request.scope)
        reject_unsupported_preconditions(request)
        memory = budget.request()
        try:
            query_string = request.scope["query_string"]
            async with admission(request, weigh(query_string)) as admitted:
                await memory.take(json_cost(query_string) + 250 * query_string.count(b"%"))
                call = parse_get_request(query_string)
                prepared = await executor.prepare(
                    call.query, call.operationName or None, memory, document_id=call.document_id()
                )
                if prepared.is_mutation:
                    memory.close()
                    # Returned, not raised: for a raised one, the edge would list all methods of the path in Allow.
                    return render_problem(request.scope, MutationByGet("mutations must be sent by POST"))
                result = await executor.execute(prepared, call.variables or {}, memory, admit=admitted.increase_weight)
                return _CountedResponse(result, media_type, memory)
        except BaseException:
            memory.close()
            raise

    routes: dict[str, Endpoint] = dict.fromkeys(files.routes, files.get)
    for path in _PATHS:
        routes |= {f"POST {path}": post, f"GET {path}": get}
    timeouts = dict.fromkeys(routes, TIMEOUT_SECONDS)
    return edge.application(
        routes,
        config,
        tracer=tracer,
        health=health,
        timeouts=timeouts,
        render_problem=render_problem,
        reserve=_reserve,
        authenticator=authentication,
        # Everybody may send a document: products and orders authorize its fields, by the caller's token.
        access=GRAPHQL_ROUTES,
    )


def weigh(text: bytes) -> int:
    """Return the weight of a request before it is parsed: its number of objects, or its size in lines of an order."""
    return max(1, text.count(b"{"), len(text) // _BYTES_PER_OBJECT)


def _reserve(response: Response, size: int) -> bool:
    return not isinstance(response, _CountedResponse) or response.reserve(size)


def render_problem(scope: Any, problem: Problem) -> Response:
    """Return a GraphQL response with a 4xx or 5xx status for a request that could not be executed."""
    if scope["path"] not in _PATHS:
        return problem_response(problem)
    headers = dict(_HEADERS)
    if isinstance(problem, MutationByGet):
        headers["allow"] = "POST"
    if isinstance(problem, Unavailable):
        headers["retry-after"] = str(problem.retry_after)
    # The specification uses 400, not 422.
    status = 400 if problem.status == 422 else problem.status
    content_type = _CONTENT_TYPES[negotiate(_accept(scope)) or LEGACY]
    return json_response(rejected(problem).body, status, headers, content_type=content_type)


def is_authorization_response(query_string: str) -> bool:
    """Return whether the query string is an authorization response of the issuer (RFC 6749, section 4.1.2)."""
    names = {name for name, _ in parse_qsl(query_string, keep_blank_values=True)}
    return "state" in names and bool(names & {"code", "error"}) and not names & {"query", "documentId", "extensions"}


def parse_get_request(query_string: bytes) -> GraphQLRequest:
    """Return the request in a query string. Raises BadInput."""
    pairs = parse_pairs(query_string, 20)
    parameters = dict(pairs)
    for name in ("query", "operationName", "variables", "extensions", "documentId"):
        if sum(name == n for n, _ in pairs) > 1:
            raise BadInput(name, "must not be repeated")
    objects: dict[str, dict[str, Any] | None] = {}
    for name in ("variables", "extensions"):
        if parameters.get(name):
            try:
                objects[name] = _object_decoder.decode(parameters[name])
            except (msgspec.DecodeError, RecursionError):
                raise BadInput(name, "must be a JSON object") from None
    return GraphQLRequest(
        parameters.get("query") or None,
        parameters.get("operationName") or None,
        documentId=parameters.get("documentId"),
        **objects,
    )


def negotiate(accept: str) -> str | None:
    """Return the media type that an Accept header prefers, or None if it allows neither.

    A wildcard, or no header, selects LEGACY: the specification's audit requires it, because a client that knows the
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
        rank = (parse_quality(parameters), -i)
        if media_type in (PREFERRED, LEGACY):
            ranks[media_type] = max(rank, ranks.get(media_type, rank))
        elif media_type in ("*/*", "application/*") and wildcard_quality is None:
            wildcard_quality = rank[0]
    if wildcard_quality is not None:
        # At equal quality, a type that is named takes precedence over a wildcard.
        ranks.setdefault(LEGACY, (wildcard_quality, -accept.count(",") - 1))
    best = max(ranks, key=lambda media_type: ranks[media_type], default=None)
    return best if best is not None and ranks[best][0] > 0 else None


_negotiate_cached = lru_cache(maxsize=256)(_negotiate)


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


def _counted(receive: Any, memory: RequestMemory) -> Any:
    """Return an ASGI `receive` that counts the bytes of the body twice, for the pieces and for the joined body."""

    async def counted() -> Any:
        message = await receive()
        # It is in memory already. Waiting could deadlock: large bodies would wait for memory that they hold themselves.
        if (body := message.get("body")) and not memory.try_take(2 * len(body)):
            raise Overloaded("too many large requests in flight")
        return message

    return counted


class _CountedResponse(Response):
    """A response that holds its bytes in the request's memory until they are sent, and releases all others at once."""

    def __init__(self, result: Result, media_type: str, memory: RequestMemory) -> None:
        # With the legacy media type, clients only trust the body of a 200.
        self.status_code = 200 if result.executed or media_type == LEGACY else 400
        self.body = result.body
        self.background = None
        self.raw_headers = [
            (b"content-type", _CONTENT_TYPES[media_type]),
            (b"content-length", b"%d" % len(result.body)),
            *_RAW_HEADERS,
        ]
        self._memory = memory
        memory.release(memory.held - len(result.body))

    def reserve(self, size: int) -> bool:
        """Count memory for the compression of the body, if it is free now."""
        return self._memory.take_if_free(size)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        self._memory.release(self._memory.held - len(self.body))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # In pieces, because `send` waits for the client to read only before it writes, not after.
            for start in range(0, len(self.body), _PIECE_BYTES):
                more = start + _PIECE_BYTES < len(self.body)
                piece = self.body[start : start + _PIECE_BYTES] if more or start else self.body
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        finally:
            self._memory.close()
