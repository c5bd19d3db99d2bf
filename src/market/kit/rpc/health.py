"""The standard gRPC health service (grpc.health.v1), driven by the readiness of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2

from market.kit.process.health import Health
from market.kit.process.tasks import supervise

_Context = grpc.aio.ServicerContext[Any, Any]
_Request = health_pb2.HealthCheckRequest
_Response = health_pb2.HealthCheckResponse
# The type stubs do not have the method List yet.
_pb2: Any = health_pb2


class HealthService(health.aio.HealthServicer):
    """Reports SERVING while the process is ready, for each service name and for "", which means the whole server.

    `Check` and `List` report the current readiness. `Watch` reports a change within `poll_seconds`.
    """

    def __init__(self, readiness: Health, service_names: Iterable[str], *, poll_seconds: float = 1.0) -> None:
        super().__init__()
        self._readiness = readiness
        self._statuses: dict[str, int] = dict.fromkeys(("", *service_names), int(_Response.UNKNOWN))
        self._poll_seconds = poll_seconds
        self._polling: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Start reporting the readiness."""
        await self._refresh()
        self._polling = asyncio.create_task(supervise("grpc-health", self._poll))

    async def stop(self) -> None:
        """Report NOT_SERVING from now on, also to the clients that watch, and end their streams."""
        if self._polling is not None:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling
        await self.enter_graceful_shutdown()
        self._statuses = dict.fromkeys(self._statuses, int(_Response.NOT_SERVING))
        self._stopping.set()

    async def Check(self, request: _Request, context: _Context) -> _Response:
        """Return the status of one service. Aborts with NOT_FOUND if the name is unknown."""
        await self._refresh()
        response: _Response = await super().Check(request, context)
        return response

    async def List(self, _: Any, __: _Context) -> Any:
        """Return the status of every service."""
        await self._refresh()
        return _pb2.HealthListResponse(
            statuses={name: _pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        )

    async def Watch(self, request: _Request, context: _Context) -> None:
        """Stream the status of one service, now and after each change, until the server stops."""
        watching = asyncio.create_task(super().Watch(request, context))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                # Give the stream time to send NOT_SERVING.
                await asyncio.wait((watching,), timeout=0.1)
        finally:
            stopping.cancel()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        status = _Response.NOT_SERVING if self._readiness.unready_reasons() else _Response.SERVING
        if self._stopping.is_set():
            return
        for name, old in self._statuses.items():
            if status != old:
                self._statuses[name] = status
                await self.set(name, status)
