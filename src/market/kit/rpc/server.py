"""gRPC servers: methods from plain handlers, with errors as statuses; health and reflection."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter, Histogram

from market.kit import context
from market.kit.errors import Problem
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer
from market.kit.rpc.client import MAX_MESSAGE
from market.kit.rpc.health import HealthService

log = logs.get_logger("rpc")

HANDLED = Counter("market_grpc_handled_total", "Calls answered.", ["method", "code"])
SECONDS = Histogram(
    "market_grpc_seconds",
    "Time to the answer.",
    ["method"],
    buckets=[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
)

_CODES = {code.value[0]: code for code in grpc.StatusCode}

SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 15_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
]

Handler = Callable[[Any], Awaitable[Any]]


def endpoint(name: str, handler: Handler, tracer: Tracer | None = None) -> Callable[[Any, Any], Awaitable[Any]]:
    """A servicer method from `handler(request)`: deadline, request id, figures, errors as statuses."""
    spans = tracer or Tracer()
    seconds = SECONDS.labels(name)
    handled: dict[str, Any] = {}

    async def serve(request: Any, rpc_context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        left = rpc_context.time_remaining()
        context.deadline.set(None if left is None else time.monotonic() + left)
        context.request_id.set("")
        context.traceparent.set("")
        for key, value in rpc_context.invocation_metadata() or ():
            if key == context.REQUEST_ID_HEADER and context.valid_request_id(str(value)):
                context.request_id.set(str(value))
            elif key == context.TRACE_HEADER and context.valid_traceparent(str(value)):
                context.traceparent.set(str(value))
        status, detail = grpc.StatusCode.OK, ""
        try:
            with spans.span(name):
                return await handler(request)
        except Problem as e:
            status, detail = _CODES[e.grpc_status], str(e)
        except Exception:
            log.exception("call failed", method=name)
            status, detail = grpc.StatusCode.INTERNAL, "this is a defect of ours; the log has it"
        finally:
            seconds.observe(time.perf_counter() - started)
            if status.name not in handled:
                handled[status.name] = HANDLED.labels(name, status.name)
            handled[status.name].inc()
            log.debug("answered", method=name, code=status.name)
        return await rpc_context.abort(status, detail)

    return serve


class GrpcServer:
    """Owns the listening server: the given services, the standard health service, and reflection."""

    def __init__(
        self,
        host: str,
        port: int,
        health: Health,
        services: Mapping[str, grpc.GenericRpcHandler],
        *,
        max_in_flight: int | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._health = HealthService(health, services)
        self._server = grpc.aio.server(
            options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=max_in_flight
        )
        self._server.add_generic_rpc_handlers(tuple(services.values()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Start serving. Raises OSError if the address cannot be bound."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError:
            raise OSError(0, f"cannot listen on {host}:{self._port}") from None
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Report NOT_SERVING, so that callers go elsewhere; then finish the calls in flight, for at most `grace` seconds."""
        self._health.stopping.set()
        await self._server.stop(grace)
