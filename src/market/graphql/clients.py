"""Calls to products and orders by REST. Each answers the body of the good answer, or raises Refused or Unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec

from market.graphql.problems import Refused, refused
from market.kit import context
from market.kit.errors import Unavailable
from market.kit.http.client import HttpClient, HttpResponse
from market.kit.ids import new_id
from market.kit.resilience import RetryBudget

# What a 503 asks to be sent again after; longer than this the caller is told instead.
_LONGEST_PAUSE = 2.0


class Rest:
    """One neighbour's resource, `/api/product` or `/api/order`."""

    def __init__(self, http: HttpClient, neighbour: str, path: str) -> None:
        self._http = http
        self._neighbour = neighbour
        self._path = path
        self._budget = RetryBudget(f"{neighbour}.create")

    async def get(self, id: UUID, query: str = "") -> bytes:
        """The thing's JSON."""
        return self._good(await self._http.request("GET", f"{self._path}/{id}{query}"))

    async def list(self, query: Mapping[str, Any]) -> bytes:
        """The page's JSON; a value that is None is not sent."""
        # The comma stands between ids; in a query it need not be quoted, and quoting a hundred ids is work.
        given = urlencode({k: v for k, v in query.items() if v is not None}, safe=",")
        return self._good(await self._http.request("GET", f"{self._path}?{given}" if given else self._path))

    async def create(self, body: dict[str, Any], key: str | None, *, seconds: float) -> bytes:
        """The new thing's JSON. With a key (one is minted where none is given) the call is sent again while the
        neighbour cannot decide; what the caller gets then carries the key, to go on with it."""
        sent_key = str(new_id()) if key is None else key
        data = _encode(body)
        with context.deadline_in(seconds):
            try:
                return self._good(await self._until_decided(data, sent_key, seconds), "input")
            except (Unavailable, Refused) as e:
                unknown = e if isinstance(e, Refused) else Refused(str(e), e.code(), {"retryAfter": e.retry_after})
                if unknown.extensions["code"] == "UNAVAILABLE":
                    unknown.extensions["idempotencyKey"] = sent_key
                raise unknown from None

    async def _until_decided(self, data: bytes, key: str, seconds: float) -> HttpResponse:
        self._budget.record_call()
        headers = {"idempotency-key": _ascii(key)}
        for attempt in (1, 2, 3):
            answer = await self._http.request(
                "POST", self._path, body=data, headers=headers, seconds=seconds, idempotent=True
            )
            after = answer.headers.get("retry-after", "1")
            pause = float(after) if after.isdigit() else 1.0
            if (
                answer.status != 503
                or attempt == 3
                or pause > _LONGEST_PAUSE
                or context.remaining(60) <= pause
                or not self._budget.take_retry()
            ):
                break
            await asyncio.sleep(pause)
        return answer

    async def update(self, body: dict[str, Any], *, idempotent: bool) -> bytes:
        """The thing's JSON after the change."""
        return self._good(
            await self._http.request("PUT", self._path, body=_encode(body), idempotent=idempotent), "input"
        )

    async def delete(self, id: UUID, *, idempotent: bool) -> None:
        self._good(await self._http.request("DELETE", f"{self._path}/{id}", idempotent=idempotent))

    def _good(self, answer: HttpResponse, prefix: str = "") -> bytes:
        if answer.status < 300:
            return answer.body
        raise refused(answer, self._neighbour, prefix)


def _encode(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def _ascii(key: str) -> str:
    # A header cannot carry the rest; the neighbour's rule is the same.
    if not (1 <= len(key) <= 255 and all("!" <= c <= "~" for c in key)):
        reason = "must have 1 to 255 visible ASCII characters"
        field = "idempotencyKey"
        raise Refused(
            f"{field}: {reason}", "BAD_INPUT", {"field": field, "errors": [{"field": field, "reason": reason}]}
        )
    return key
