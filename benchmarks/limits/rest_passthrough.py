"""The limit of the gateway: a bare ASGI app that makes the same REST calls and returns their bytes without parsing
them.

PRODUCTS=... ORDERS=... IDS=a,b,c uvicorn benchmarks.limits.rest_passthrough:app
"""

import os

from market.kit.config import HttpUpstream
from market.kit.http.client import HttpClient

clients: list[HttpClient] = []


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    if not clients:
        clients.extend([HttpClient(n, HttpUpstream(url=os.environ[n.upper()])) for n in ("products", "orders")])
        for client in clients:
            await client.__aenter__()
    products, orders = clients
    request = await receive()
    if b"orders(" in request["body"]:
        page = await orders.request("GET", "/api/order?user=ann&limit=20")
        body = page.body + (await products.request("GET", f"/api/product?ids={os.environ['IDS']}")).body
    else:
        body = (await products.request("GET", "/api/product?limit=20")).body
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
