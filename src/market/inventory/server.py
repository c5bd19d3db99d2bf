"""Inventory's gRPC server: the service, the standard health service, reflection."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from market.inventory.api import NAME
from market.inventory.config import Grpc
from market.kit.process.health import Health
from market.kit.rpc.client import SERVER_OPTIONS

_Context = grpc.aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Says what `/readyz` says: SERVING only while the process is ready."""

    def __init__(self, health: Health, *, every: float = 1.0) -> None:
        self._health = health
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
        if service not in ("", NAME):
            return _Response.SERVICE_UNKNOWN
        if self.stopping.is_set() or await self._health.unready():
            return _Response.NOT_SERVING
        return _Response.SERVING


class GrpcServer:
    """Owns the listening server; `shared`: its port, with other processes of ours. Raises OSError where it cannot listen."""

    def __init__(self, config: Grpc, health: Health, service: grpc.GenericRpcHandler, *, shared: bool = False) -> None:
        self._config = config
        self._health = HealthService(health)
        self._server = grpc.aio.server(
            options=[*SERVER_OPTIONS, ("grpc.so_reuseport", int(shared))], maximum_concurrent_rpcs=config.max_in_flight
        )
        self._server.add_generic_rpc_handlers((service,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        try:
            self._server.add_insecure_port(f"{host}:{self._config.port}")
        except RuntimeError:
            raise OSError(0, f"cannot listen on {host}:{self._config.port}") from None
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Not serving first, so that who asks goes elsewhere; then what is in flight is finished."""
        self._health.stopping.set()
        await self._server.stop(grace)
