"""A server of its own process, with the defaults, on the port given, and with its memory limited as in Kubernetes."""

from __future__ import annotations

import asyncio
import resource
import sys

import uvloop
from starlette.requests import Request
from starlette.responses import Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer

MEMORY_LIMIT_BYTES = 384 << 20


async def page(_: Request) -> Response:
    return json_response(b"p" * (8 << 20))


async def echo(request: Request) -> Response:
    return json_response({"length": len(await request.body())})


async def serve(port: int) -> None:
    config = Http(port=port)
    app = edge.application({"GET /page": page, "GET /": echo, "POST /": echo}, config)
    await HttpServer(app, config.host, config.port, limits=config).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    # Data, not address space: what is mapped and not used does not count in Kubernetes.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
