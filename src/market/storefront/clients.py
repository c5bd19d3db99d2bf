"""Clients of the shop's public GraphQL API and of the REST APIs made for the desk.

Each call carries the token of the person whose request caused it.
"""

from __future__ import annotations

from types import NoneType
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from market.kit.errors import TYPE_PREFIX, Forbidden, NotFound, Overloaded, Unauthenticated, Unavailable
from market.kit.http.client import HttpClient, HttpResponse
from market.storefront.domain import DeadLetterPage, DeadLetterResult, RequestRefused, ShortagePage, UnfinishedPage

T = TypeVar("T")

_PATH = "/graphql"
_HEADERS = {"accept": "application/graphql-response+json"}
# Larger responses are not read. A page of orders with the longest lines is far smaller.
_MAX_BYTES = 8 * 1024 * 1024


class GraphQLError(Struct, frozen=True):
    """An error of a GraphQL response."""

    message: str
    path: tuple[str | int, ...] | None = None
    extensions: dict[str, Any] = {}

    @property
    def code(self) -> str:
        """`extensions.code`; "" if it is absent."""
        return str(self.extensions.get("code", ""))


class _Response(Struct, frozen=True):
    data: dict[str, msgspec.Raw] | None = None
    errors: tuple[GraphQLError, ...] = ()


class FieldRefused(RequestRefused):
    """A RequestRefused with the extensions of the GraphQL error."""

    def __init__(self, error: GraphQLError) -> None:
        errors = error.extensions.get("errors") or ()
        fields = tuple((str(e.get("field", "")), str(e.get("reason", ""))) for e in errors if isinstance(e, dict))
        super().__init__(error.message, error.code, fields)
        self.extensions = error.extensions


_decode = msgspec.json.Decoder(_Response).decode
_NULL = b"null"


class GatewayClient:
    """The gateway. Each document has one root field, whose value is returned."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def execute(
        self,
        document: str,
        variables: dict[str, Any],
        result_type: type[T],
        *,
        idempotent: bool = True,
        timeout_seconds: float | None = None,
    ) -> T:
        """Return the value of the document's root field. Variables that are None are left out.

        Raises NotFound, Unauthenticated, Forbidden, FieldRefused and Unavailable, by the error's code. An error below
        the root field is ignored; the field that failed is null.
        """
        response, result = await self._send(document, variables, idempotent, timeout_seconds)
        for raw in (result.data or {}).values():
            if bytes(raw) != _NULL:
                return _value(raw, result_type, response)
        raise _first_error(result, response)

    async def execute_all(self, document: str, variables: dict[str, Any], result_type: type[T]) -> dict[str, T]:
        """Return the values of all root fields of a query, by alias. Raises as `execute` if one has an error."""
        response, result = await self._send(document, variables, True, None)
        raws = result.data or {}
        if not raws or any(bytes(raw) == _NULL for raw in raws.values()):
            raise _first_error(result, response)
        return {name: _value(raw, result_type, response) for name, raw in raws.items()}

    async def _send(
        self, document: str, variables: dict[str, Any], idempotent: bool, timeout_seconds: float | None
    ) -> tuple[HttpResponse, _Response]:
        present = {name: value for name, value in variables.items() if value is not None}
        body = msgspec.json.encode({"query": document, "variables": present})
        response = await self._http.request(
            "POST",
            _PATH,
            body=body,
            headers=_HEADERS,
            idempotent=idempotent,
            timeout_seconds=timeout_seconds,
            accept_size=lambda size: size <= _MAX_BYTES,
        )
        try:
            return response, _decode(response.body)
        except msgspec.DecodeError:
            raise _unreadable(response) from None

    async def get_picture(self, path: str) -> tuple[bytes, str] | None:
        """Return a picture that the gateway serves, with its media type; None if there is none."""
        response = await self._http.request("GET", path, accept_size=lambda size: size <= _MAX_BYTES)
        if response.status != 200:
            return None
        return response.body, response.headers.get("content-type", "application/octet-stream")


class _Problem(Struct, frozen=True):
    type: str = ""
    detail: str = ""


class RestClient:
    """A REST API that only the desk uses."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def get(self, path: str, parameters: dict[str, Any], result_type: type[T]) -> T:
        """Return the resource. Parameters that are None are left out. Raises the same errors as `post`."""
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        return await self._send("GET", f"{path}?{query}" if query else path, result_type)

    async def post(self, path: str, result_type: type[T], *, timeout_seconds: float | None = None) -> T:
        """Send a request without a body. Return the body of the response, which is decoded as null if it is empty.

        Raises NotFound, Unauthenticated, Forbidden, Overloaded, Unavailable, and RequestRefused for all other errors.
        """
        return await self._send("POST", path, result_type, timeout_seconds)

    async def _send(self, method: str, path: str, result_type: type[T], timeout_seconds: float | None = None) -> T:
        response = await self._http.request(
            method, path, timeout_seconds=timeout_seconds, accept_size=lambda size: size <= _MAX_BYTES
        )
        try:
            if response.status < 300:
                return msgspec.json.decode(response.body or b"null", type=result_type)
            problem = msgspec.json.decode(response.body, type=_Problem)
        except msgspec.DecodeError:
            raise Unavailable(
                f"unreadable response with the status {response.status}",
                retry_after=_seconds(response.headers.get("retry-after")),
            ) from None
        raise _refusal(problem, response)


class NotificationsClient:
    """The dead letters of notifications: events that could not be mailed."""

    def __init__(self, rest: RestClient) -> None:
        self._rest = rest

    async def list_dead_letters(self, *, limit: int, after: str | None = None) -> DeadLetterPage:
        """Return a page of the open dead letters, the newest first. `after`: the `next` of the previous page."""
        parameters = {"status": "open", "limit": limit, "after": after}
        return await self._rest.get("/api/dead-letters", parameters, DeadLetterPage)

    async def resolve(self, letter_id: str, action: str, *, timeout_seconds: float) -> DeadLetterResult:
        """Replay or drop a dead letter. Raises NotFound, RequestRefused and Unavailable.

        action: `replay` or `drop`. It is refused while another request replays or drops the same dead letter.
        """
        path = f"/api/dead-letters/{quote(letter_id, safe='')}/{action}"
        return await self._rest.post(path, DeadLetterResult, timeout_seconds=timeout_seconds)


class OrdersClient:
    """The interfaces of orders for the desk."""

    def __init__(self, rest: RestClient) -> None:
        self._rest = rest

    async def list_shortages(self, *, first: str, last: str, limit: int, after: str | None = None) -> ShortagePage:
        """Return a page of what could not be sold, by day and product.

        first, last: the days in ISO 8601, both included. after: the `next` of the previous page
        """
        parameters = {"from": first, "to": last, "limit": limit, "after": after}
        return await self._rest.get("/api/shortages", parameters, ShortagePage)

    async def list_unfinished(self, *, kind: str | None, limit: int, after: str | None = None) -> UnfinishedPage:
        """Return a page of the unfinished orders, and how many there are of each kind.

        kind: None for all kinds. after: the `next` of the previous page
        """
        parameters = {"kind": kind, "limit": limit, "after": after}
        return await self._rest.get("/api/unfinished-orders", parameters, UnfinishedPage)

    async def retry(self, order_id: str) -> None:
        """Have orders do the unfinished work of an order at once. Raises NotFound and Unavailable."""
        await self._rest.post(f"/api/unfinished-orders/{quote(order_id, safe='')}/retry", NoneType)


def _refusal(problem: _Problem, response: HttpResponse) -> Exception:
    status, refusal = response.status, problem.type.removeprefix(TYPE_PREFIX)
    if status == 401:
        return Unauthenticated()
    if status == 403:
        return Forbidden(problem.detail)
    if status == 404:
        return NotFound("such page")
    if status == 429 or refusal == Overloaded.type:
        return Overloaded(problem.detail, retry_after=_seconds(response.headers.get("retry-after")))
    if status >= 500:
        return Unavailable(problem.detail, retry_after=_seconds(response.headers.get("retry-after")))
    return RequestRefused(problem.detail, refusal)


def _value(raw: msgspec.Raw, result_type: type[T], response: HttpResponse) -> T:
    try:
        return msgspec.json.decode(raw, type=result_type)
    except msgspec.DecodeError:
        raise _unreadable(response) from None


def _unreadable(response: HttpResponse) -> Unavailable:
    return Unavailable(f"the gateway returned an unreadable response with the status {response.status}")


def _first_error(result: _Response, response: HttpResponse) -> Exception:
    error = result.errors[0] if result.errors else GraphQLError("the gateway returned no value")
    return _error(error, response.status, _retry_after(error, response))


def _retry_after(error: GraphQLError, response: HttpResponse) -> int:
    """Return the seconds after which the gateway, or the service behind it, wants to be called again."""
    return _seconds(error.extensions.get("retryAfter", response.headers.get("retry-after")))


def _seconds(value: object) -> int:
    """Return a number of seconds that a service has sent; 1 if it has sent none, or more than 999."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 1


def _error(error: GraphQLError, status: int, retry_after: int) -> Exception:
    code = error.code
    if code == "NOT_FOUND":
        return NotFound("such page")
    if code == "UNAUTHENTICATED" or status == 401:
        return Unauthenticated()
    if code == "FORBIDDEN":
        return Forbidden(error.message)
    if code in ("TOO_MANY_REQUESTS", "OVERLOADED"):
        return Overloaded(error.message, retry_after=retry_after)
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNREADABLE_ORDER", "INTERNAL", "") or status >= 500:
        return Unavailable(error.message, retry_after=retry_after)
    return FieldRefused(error)
