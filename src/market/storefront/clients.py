"""Calls to the shop's public GraphQL API, with the token of the person whose request caused them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from market.kit.errors import Forbidden, NotFound, Overloaded, Unauthenticated, Unavailable
from market.kit.http.client import HttpClient
from market.storefront.domain import RequestRefused

T = TypeVar("T")

_PATH = "/graphql"
_HEADERS = {"accept": "application/graphql-response+json"}
# Larger responses are not read. A page of orders with the longest lines is far below it.
_MAX_BYTES = 8 * 1024 * 1024


class GraphQLError(Struct, frozen=True):
    """An error of a GraphQL response."""

    message: str
    path: tuple[str | int, ...] | None = None
    extensions: dict[str, Any] = {}

    @property
    def code(self) -> str:
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
        the root field is ignored: what it concerns is null.
        """
        given = {name: value for name, value in variables.items() if value is not None}
        body = msgspec.json.encode({"query": document, "variables": given})
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
            result = _decode(response.body)
            for raw in (result.data or {}).values():
                if bytes(raw) != _NULL:
                    return msgspec.json.decode(raw, type=result_type)
        except msgspec.DecodeError:
            raise Unavailable(
                f"the gateway returned an unreadable response with the status {response.status}"
            ) from None
        raise _error(
            result.errors[0] if result.errors else GraphQLError("the gateway returned no value"), response.status
        )

    async def get_picture(self, path: str) -> tuple[bytes, str] | None:
        """Return a picture that the gateway serves, with its media type; None if there is none."""
        response = await self._http.request("GET", path, accept_size=lambda size: size <= _MAX_BYTES)
        if response.status != 200:
            return None
        return response.body, response.headers.get("content-type", "application/octet-stream")


def _error(error: GraphQLError, status: int) -> Exception:
    code = error.code
    if code == "NOT_FOUND":
        return NotFound("such page")
    if code == "UNAUTHENTICATED" or status == 401:
        return Unauthenticated()
    if code == "FORBIDDEN":
        return Forbidden(error.message)
    if code in ("TOO_MANY_REQUESTS", "OVERLOADED"):
        return Overloaded(error.message)
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNREADABLE_ORDER", "INTERNAL", "") or status >= 500:
        return Unavailable(error.message)
    return FieldRefused(error)
