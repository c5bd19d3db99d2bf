"""`python -m benchmarks.two_copies.shared_port orders`: a copy of a service that shares its port with other copies.

The kernel gives each new connection to one of the copies, as a Service of Kubernetes does. Configured like
`python -m market.orders`.
"""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from market.kit.http.server import HttpServer, bind
from market.kit.process.lifecycle import Build, Process, run


def sharing_port(build: Build[Any]) -> Build[Any]:
    """Return `build` with a server whose socket allows others on its port."""

    @asynccontextmanager
    async def build_shared(config: Any, process: Process) -> AsyncIterator[HttpServer]:
        # Any free port, on which the server never listens.
        unused = replace(config, http=replace(config.http, port=0))
        async with build(unused, process) as server:
            assert isinstance(server, HttpServer)
            server._socket.close()
            server._socket = bind(config.http.host, config.http.port, new_socket=_new_socket)
            yield server

    return build_shared


def _new_socket(*args: Any) -> socket.socket:
    new = socket.socket(*args)
    new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return new


if __name__ == "__main__":
    service = sys.argv[1]
    run(
        service,
        importlib.import_module(f"market.{service}.config").Config,
        sharing_port(importlib.import_module(f"market.{service}.app").build),
        argv=[],
    )
