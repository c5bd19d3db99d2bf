"""The HTTP server of a process: uvicorn with our signals and our socket."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import nullcontext, suppress
from typing import Any

import uvicorn


class HttpServer:
    """Uvicorn with our signals and our socket."""

    def __init__(
        self, app: Any, host: str = "", port: int = 0, *, shared: bool = False, sock: socket.socket | None = None
    ) -> None:
        self._socket = sock or listen(host, port, shared=shared)
        settings = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            backlog=2048,
        )
        self._server = _Uvicorn(settings)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait({self._task, up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            self._task.result()

    def drain(self) -> None:
        """From now on each answer closes its connection: callers that keep theirs go elsewhere before we stop listening."""
        closing = [*self._server.config.encoded_headers, (b"connection", b"close")]
        self._server.config.encoded_headers = closing
        # Uvicorn puts the two together once a second.
        self._server.server_state.default_headers = [
            *self._server.server_state.default_headers,
            (b"connection", b"close"),
        ]

    async def stop(self, grace: float) -> None:
        self._server.config.timeout_graceful_shutdown = max(1, int(grace))
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.up.set()

    def capture_signals(self) -> Any:
        return nullcontext()


def listen_unix(path: str) -> socket.socket:
    """A listening unix socket, in place of one that a dead process left."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.setblocking(False)
    return sock


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket; `shared`: with other processes of ours (SO_REUSEPORT). Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((host, port))
    except OSError as e:
        sock.close()
        raise OSError(e.errno, f"cannot listen on {host}:{port}: {e.strerror}") from None
    sock.setblocking(False)
    return sock
