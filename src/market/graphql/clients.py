"""Calls to products and orders by REST, with the caller's own token: each of them decides what the caller may do.

Methods return the JSON of a successful response as bytes, not decoded. They raise FieldError for any other response,
with the code and extension members of its problem document (RFC 9457), and Unavailable if there was no response.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec

from market.graphql.domain import FieldError, camel_case, camel_case_keys
from market.graphql.memory import budget
from market.kit import context
from market.kit.auth.identity import identity
from market.kit.errors import TYPE_PREFIX, BadInput, Overloaded, Problem, Unavailable
from market.kit.http.client import HttpClient, HttpResponse, ResponseTooLarge
from market.kit.ids import new_id
from market.kit.process import logs
from market.kit.resilience import RetryBudget

log = logs.get_logger("graphql")

# A create is retried after a 503 whose Retry-After is at most this; a longer one is passed to the caller.
_MAX_PAUSE_SECONDS = 2.0
_CREATE_ATTEMPTS = 3
# Of a problem document, with room for what it quotes.
_PROBLEM_BYTES = 4096

# The codes of responses without a problem document, such as those of a proxy in front of the upstream.
_PLAIN_CODES = {401: "UNAUTHENTICATED", 403: "FORBIDDEN"}
# Members of every problem document; all others are extension members.
_STANDARD_MEMBERS = {"type", "title", "status", "detail", "instance", "errors"}
# The response to a change then has the resource as it is afterwards (RFC 7240).
_PREFER_REPRESENTATION = {"prefer": "return=representation"}
_QUOTED = re.compile(r"`[^`]*`")


class _RestClient:
    """One REST resource of an upstream service."""

    def __init__(self, http: HttpClient, upstream: str, path: str, *, create_timeout: float) -> None:
        self._http = http
        self._upstream = upstream
        self._path = path
        self._create_timeout = create_timeout
        self._create_budget = RetryBudget(f"{upstream}.create")

    async def list(self, query: Mapping[str, Any]) -> bytes:
        """Return the JSON of a page. Query parameters that are None are left out."""
        # The comma between ids need not be quoted in a query, and quoting a hundred ids costs time.
        parameters = urlencode({k: v for k, v in query.items() if v is not None}, safe=",")
        return self._body(await self._request("GET", f"{self._path}?{parameters}" if parameters else self._path))

    async def create(self, body: dict[str, Any], idempotency_key: str | None = None) -> bytes:
        """Create a resource and return its JSON.

        A 503 is retried with the same idempotency key, which is generated if there is none. If the outcome is still
        unknown, the FieldError has the code UNAVAILABLE and the key, so that the client can retry with it.
        """
        key = str(new_id()) if idempotency_key is None else _header_value(idempotency_key)
        data = msgspec.json.encode(body)
        with context.deadline_in(self._create_timeout):
            try:
                return self._body(await self._create(data, key), "input")
            except (Unavailable, FieldError) as e:
                error = e if isinstance(e, FieldError) else FieldError(str(e), e.code(), {"retryAfter": e.retry_after})
                if error.extensions["code"] == "UNAVAILABLE":
                    error.extensions["idempotencyKey"] = key
                raise error from None
            except BadInput as e:
                # Its response does not fit into the request's memory, but what it describes exists.
                raise FieldError(str(e), e.code(), {"field": e.field, "idempotencyKey": key}) from None

    async def _create(self, data: bytes, key: str) -> HttpResponse:
        self._create_budget.record_call()
        headers = {"idempotency-key": key}
        for attempt in range(1, _CREATE_ATTEMPTS + 1):
            response = await self._request(
                "POST", self._path, body=data, headers=headers, timeout_seconds=self._create_timeout, idempotent=True
            )
            retry_after = response.headers.get("retry-after", "1")
            pause = float(retry_after) if retry_after.isdigit() else 1.0
            if (
                response.status != 503
                or attempt == _CREATE_ATTEMPTS
                or pause > _MAX_PAUSE_SECONDS
                or context.remaining(60) <= pause
                or not self._create_budget.take_retry()
            ):
                break
            await asyncio.sleep(pause)
        return response

    async def _get(self, resource_id: UUID, query: str = "") -> bytes:
        return self._body(await self._request("GET", f"{self._path}/{resource_id}{query}"))

    async def _request(self, method: str, path: str, **options: Any) -> HttpResponse:
        """Call the upstream, and charge the response to the request's memory before it is read.

        A call whose response has to wait for memory is repeated; it must be idempotent, or have an idempotency key.
        """
        charge = budget.charge.get()
        if charge is None:
            return await self._http.request(method, path, **options)
        admission = budget.ResponseAdmission(charge)
        try:
            return await self._http.request(method, path, accept_size=admission, **options)
        except ResponseTooLarge as e:
            await admission.prepay(e.size)
        try:
            return await self._http.request(method, path, accept_size=admission, **options)
        except ResponseTooLarge:
            raise Overloaded("too many large requests in flight") from None

    @staticmethod
    async def _prepay(size: int) -> None:
        if (charge := budget.charge.get()) is not None:
            await budget.ResponseAdmission(charge).prepay(size)

    def _body(self, response: HttpResponse, argument: str = "") -> bytes:
        if response.status < 300:
            return response.body
        error = field_error(response, self._upstream, argument)
        if response.status == 401 and identity.get().signed_in:
            # The gateway has verified this very token. Unless it has just expired, the configurations differ.
            log.warning("upstream rejected a verified token", upstream=self._upstream, reason=str(error))
        raise error


class ProductsClient(_RestClient):
    """The products service."""

    def __init__(self, http: HttpClient) -> None:
        super().__init__(http, "products", "/api/product", create_timeout=3.0)

    async def get(self, product_id: UUID, *, availability: bool = True, stock: bool = False) -> bytes:
        """Return the product's JSON, with `stock` if requested. Without `availability`, products does not look it
        up."""
        query = urlencode(({} if availability else {"availability": "false"}) | ({"stock": "true"} if stock else {}))
        return await self._get(product_id, f"?{query}" if query else "")

    async def get_version(self, product_id: UUID) -> tuple[bytes, str]:
        """Return the product's JSON and its entity tag, which `update` takes."""
        response = await self._request("GET", f"{self._path}/{product_id}?availability=false")
        return self._body(response), response.headers.get("etag", "")

    async def update(self, body: dict[str, Any], *, idempotent: bool, etag: str | None = None) -> bytes:
        """Replace the product and return its new JSON. Only an idempotent update is retried.

        With an entity tag it is replaced only in that version; in another one the FieldError has the code
        PRECONDITION_FAILED.
        """
        headers = _if_match(etag)
        data = msgspec.json.encode(body)
        # The response has what was sent, times and a currency; charged before, because it cannot be requested again.
        await self._prepay(len(data) + _PROBLEM_BYTES)
        response = await self._http.request("PUT", self._path, body=data, headers=headers, idempotent=idempotent)
        return self._body(response, "input")

    async def delete(self, product_id: UUID, *, etag: str | None = None) -> None:
        """Delete the product; with an entity tag, only in that version, as `update` does."""
        # Its response is empty or a short problem document.
        await self._prepay(_PROBLEM_BYTES)
        path = f"{self._path}/{product_id}"
        # Not retried: the second attempt would return 404 for what the first one deleted.
        self._body(await self._http.request("DELETE", path, headers=_if_match(etag), idempotent=False))


class OrdersClient(_RestClient):
    """The orders service."""

    def __init__(self, http: HttpClient) -> None:
        super().__init__(http, "orders", "/api/order", create_timeout=10.0)

    async def get(self, order_id: UUID) -> bytes:
        """Return the order's JSON."""
        return await self._get(order_id)

    async def cancel(self, order_id: UUID) -> bytes:
        """Cancel the order and return its JSON; cancelling it again changes nothing."""
        path = f"{self._path}/{order_id}"
        cancelled = self._body(await self._request("DELETE", path, headers=_PREFER_REPRESENTATION, idempotent=True))
        # There is none if the stock is not released yet, or if orders is of an earlier version.
        return cancelled or await self.get(order_id)


def _if_match(etag: str | None) -> dict[str, str] | None:
    return {"if-match": etag} if etag else None


def _header_value(key: str) -> str:
    # A header cannot carry other characters; the upstream's rule is the same.
    if not (1 <= len(key) <= 255 and all("!" <= c <= "~" for c in key)):
        field, reason = "idempotencyKey", "must have 1 to 255 visible ASCII characters"
        extensions = {"field": field, "errors": [{"field": field, "reason": reason}]}
        raise FieldError(f"{field}: {reason}", "BAD_INPUT", extensions)
    return key


def _codes(problem: type[Problem] = Problem) -> Iterator[tuple[str, str]]:
    yield problem.type, problem.code()
    for narrower in problem.__subclasses__():
        yield from _codes(narrower)


def field_error(response: HttpResponse, upstream: str, argument: str = "") -> FieldError:
    """Return an upstream's problem response as the error of a field.

    Its fields are named as GraphQL names them, below `argument`, the argument that they came in. A response without a
    problem document has the code UNAUTHENTICATED if its status is 401, FORBIDDEN if it is 403, UNAVAILABLE if it is 502
    or above, and INTERNAL otherwise.
    """
    summary = f"{upstream} returned HTTP status {response.status}"
    if response.headers.get("content-type", "").partition(";")[0].strip() != "application/problem+json":
        return FieldError(
            summary, "UNAVAILABLE" if response.status >= 502 else _PLAIN_CODES.get(response.status, "INTERNAL")
        )
    try:
        document = msgspec.json.decode(response.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return FieldError(summary, "INTERNAL")
    problem_type = str(document.get("type", "")).removeprefix(TYPE_PREFIX)
    code = dict(_codes()).get(problem_type) or problem_type.upper().replace("-", "_") or "INTERNAL"
    extensions = {camel_case(k): camel_case_keys(v) for k, v in document.items() if k not in _STANDARD_MEMBERS}
    if (retry_after := response.headers.get("retry-after", "")).isdigit():
        extensions["retryAfter"] = int(retry_after)
    message = str(document.get("detail") or document.get("title") or summary)
    errors = document.get("errors")
    if code == "BAD_INPUT" and isinstance(errors, list) and errors:
        named = [
            {"field": _field_path(str(e.get("field", "")), argument), "reason": _reason(str(e.get("reason", "")))}
            for e in errors
        ]
        extensions = {"field": named[0]["field"], "errors": named, **extensions}
        message = "; ".join(f"{e['field']}: {e['reason']}" if e["field"] else e["reason"] for e in named)
    return FieldError(message, code, extensions)


def _field_path(field: str, argument: str) -> str:
    if field == "Idempotency-Key":
        return "idempotencyKey"
    if field in ("", "body", "query"):
        return argument or field
    return f"{argument}.{camel_case(field)}" if argument else camel_case(field)


def _reason(reason: str) -> str:
    return _QUOTED.sub(lambda m: camel_case(m[0]), reason)
