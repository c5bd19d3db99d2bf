"""The HTTP server of a process: uvicorn, with our own socket and without its signal handlers."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import uvicorn

from market.kit.config import HttpLimits
from market.kit.http.connections import Connections
from market.kit.http.protocol import HttpProtocol


class HttpServer:
    """Serves an ASGI app on an address, or on a socket that is already bound.

    limits: the timeouts and size limits for clients. None: the defaults of HttpLimits.

    Raises OSError if the address cannot be bound.
    """

    def __init__(
        self,
        app: Any,
        host: str = "",
        port: int = 0,
        *,
        sock: socket.socket | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        connections = Connections(limits or HttpLimits())
        # uvicorn expects a class, but only calls it, so a function that returns the protocol is enough.
        protocol: Any = partial(HttpProtocol, connections)
        self._socket = sock or bind(host, port)
        settings = uvicorn.Config(
            app,
            loop="none",
            http=protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
        )
        self._server = _Uvicorn(settings, connections)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start serving, and return once requests are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        started = asyncio.create_task(self._server.has_started.wait())
        await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._task.done():
            self._task.result()

    async def drain(self, seconds: float) -> None:
        """Serve for `seconds` more, because the ingress takes a while to notice that the process is not ready."""
        await asyncio.sleep(seconds)

    async def stop(self, grace_seconds: float) -> None:
        """Stop listening, and finish the requests in flight within `grace_seconds`."""
        self._server.config.timeout_graceful_shutdown = max(1, int(grace_seconds))
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.has_started.set()

    async def on_tick(self, counter: int) -> bool:
        # Every tenth of a second.
        self._connections.sweep()
        return await super().on_tick(counter)

    def capture_signals(self) -> Any:
        # The process handles signals itself.
        return nullcontext()


def bind(host: str, port: int, *, new_socket: Callable[..., socket.socket] = socket.socket) -> socket.socket:
    """Return a TCP socket that is bound to the address, but does not listen yet. Port 0 means any free port.

    The host `::` means every IPv6 and IPv4 address of this machine, or every IPv4 address if it has no IPv6.
    Raises OSError, with the address in its message.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = new_socket(family, socket.SOCK_STREAM)
    except OSError as e:
        if host != "::" or e.errno != errno.EAFNOSUPPORT:
            raise OSError(e.errno, f"cannot listen on {host}:{port}: {e.strerror}") from None
        return bind("0.0.0.0", port)  # noqa: S104  # The operator has configured "::".
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        sock.bind((host, port))
    except OSError as e:
        sock.close()
        raise OSError(e.errno, f"cannot listen on {host}:{port}: {e.strerror}") from None
    sock.setblocking(False)
    return sock
