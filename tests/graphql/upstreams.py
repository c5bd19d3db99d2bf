"""Products and orders in memory, as upstreams of the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from market.kit.http.client import HttpResponse, ResponseTooLarge
from tests.graphql.graphql_gateway import product

MIB = 1024 * 1024


class Upstream:
    """An HttpClient whose responses are in memory."""

    def __init__(self, respond: Callable[[str], bytes]) -> None:
        self._respond = respond
        self.calls = 0

    async def request(self, method: str, path: str, *, accept_size: Callable[[int], bool], **_: Any) -> HttpResponse:
        await asyncio.sleep(0)
        self.calls += 1
        body = self._respond(path)
        if not accept_size(len(body)):
            raise ResponseTooLarge(len(body))
        return HttpResponse(200, body, {"content-type": "application/json"})


NOTHING: Any = Upstream(lambda _: b'{"items":[],"total":0,"limit":0,"offset":0}')


def page(items: list[dict[str, Any]]) -> bytes:
    return json.dumps(
        {"items": items, "total": len(items), "limit": 1000, "offset": 0}, ensure_ascii=False, separators=(",", ":")
    ).encode()


TINY = {"name": "x", "description": "", "price": "1.00", "image_url": None, "available": None}
WIDE = {"name": "🜁" + "n" * 199, "description": "🜁" + "d" * 9_999}
PRODUCTS = {
    "short": page([product(n, **TINY) for n in range(100)]),
    "long": page([product(n, **WIDE) for n in range(100)]),
}
