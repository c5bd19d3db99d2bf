"""An HTTP edge with few endpoints, served on a real port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.edge import Endpoint
from market.kit.http.server import HttpServer
from tests.support.ports import free_port


@asynccontextmanager
async def serving(routes: Mapping[str, Endpoint], **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the routes with these settings of `http`, and yield a client without a default Accept-Encoding."""
    config = Http(port=free_port(), **settings)
    server = HttpServer(edge.application(routes, config), config.host, config.port, limits=config)
    await server.start()
    url = f"http://{config.host}:{config.port}"
    try:
        async with httpx.AsyncClient(base_url=url, headers={"accept-encoding": ""}, timeout=60) as client:
            yield client
    finally:
        await server.stop(1)
