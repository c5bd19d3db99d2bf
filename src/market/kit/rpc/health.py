"""The standard gRPC health service (grpc.health.v1), driven by the process's readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from market.kit.process.health import Health

_Context = grpc.aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Says what `/readyz` says: SERVING only while the process is ready."""

    def __init__(self, health: Health, service_names: Collection[str], *, every: float = 1.0) -> None:
        self._health = health
        self._names = frozenset(("", *service_names))
        self._every = every
        self.stopping = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Response:
        status = await self._status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Response(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Each change, within `every` seconds; ends when the server stops."""
        said = None
        while True:
            status = await self._status(request.service)
            if status != said:
                await context.write(_Response(status=status))
                said = status
            if self.stopping.is_set():
                return
            try:
                async with asyncio.timeout(self._every):
                    await self.stopping.wait()
            except TimeoutError:
                continue

    async def _status(self, service: str) -> int:
        if service not in self._names:
            return _Response.SERVICE_UNKNOWN
        if self.stopping.is_set() or await self._health.not_ready():
            return _Response.NOT_SERVING
        return _Response.SERVING
