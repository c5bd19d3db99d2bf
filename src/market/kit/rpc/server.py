"""gRPC servers: servicer methods from plain handlers, statuses from errors, the health service and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import Counter, Histogram

from market.kit import context
from market.kit.auth import metrics
from market.kit.auth.bearer import bearer_token
from market.kit.auth.identity import ANONYMOUS, UNRESTRICTED, identity
from market.kit.auth.permissions import Access, check_table
from market.kit.config import MutualTls
from market.kit.errors import INTERNAL_ERROR, Forbidden, Problem, Unauthenticated, Unavailable
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer
from market.kit.rpc import reflection
from market.kit.rpc.client import MAX_MESSAGE_BYTES
from market.kit.rpc.health import HealthService
from market.kit.rpc.tls import server_credentials

if TYPE_CHECKING:
    from market.kit.auth.authenticator import Authenticator

log = logs.get_logger("grpc")

REQUESTS = Counter("market_grpc_requests_total", "gRPC calls handled.", ["method", "code"])
DURATION = Histogram(
    "market_grpc_request_duration_seconds",
    "Time from the call to its response.",
    ["method"],
    buckets=[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
)

_ERROR_DOMAIN = "market"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 15_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The default is 8 KiB, but tracestate and baggage alone may have 8.7 kB.
    ("grpc.max_metadata_size", 16_384),
    ("grpc.absolute_max_metadata_size", 32_768),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

# Draining ends early after this number of consecutive failed checks of the stores.
_FAILED_CHECKS = 3

# Takes the request message, and returns the response message or raises a Problem.
Handler = Callable[[Any], Awaitable[Any]]


def endpoint(
    name: str,
    handler: Handler,
    tracer: Tracer | None = None,
    *,
    authenticator: Authenticator | None = None,
    access: Mapping[str, Access] | None = None,
) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return a unary servicer method that runs `handler(request)` in the context of the call, with metrics and a span.

    If the handler raises a Problem, the call gets the Problem's status. Any other exception is logged, and the status
    is INTERNAL.

    name: the method in metrics, logs and spans.
    authenticator: verifies the callers' tokens in the metadata `authorization`. Without it, everybody may call the
        method.
    access: who may call each method, by its name.

    Raises ValueError if there is an authenticator, but no `access` for the method.
    """
    if authenticator is not None:
        check_table(access or {}, (name,))
    spans = tracer or Tracer()
    duration = DURATION.labels(name)
    counters: dict[str, Any] = {}

    async def serve(request: Any, rpc_context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        seconds = rpc_context.time_remaining()
        context.deadline.set(None if seconds is None else time.monotonic() + seconds)
        context.request_id.set("")
        trace: dict[str, str] = {}
        tokens: list[str] = []
        for key, value in rpc_context.invocation_metadata() or ():
            if key == context.REQUEST_ID_HEADER and context.valid_request_id(str(value)):
                context.request_id.set(str(value))
            elif key in context.TRACE_HEADERS:
                trace[key] = str(value)
            elif key == "authorization":
                tokens.append(str(value))
        context.set_trace(*(trace.get(header, "") for header in context.TRACE_HEADERS))
        status, detail = grpc.StatusCode.OK, ""
        trailing: tuple[tuple[str, bytes], ...] = ()
        identity.set(UNRESTRICTED if authenticator is None else ANONYMOUS)
        try:
            if authenticator is not None and access is not None:
                await _authorize(authenticator, access[name], tokens)
            with spans.span(name):
                return await handler(request)
        except Problem as e:
            status, detail, trailing = _CODES[e.grpc_status], str(e), error_details(e)
        except Exception:
            log.exception("call failed", method=name)
            status, detail = grpc.StatusCode.INTERNAL, INTERNAL_ERROR
        except asyncio.CancelledError:
            # The client has cancelled the call, or its deadline has passed.
            status = grpc.StatusCode.CANCELLED
            raise
        finally:
            duration.observe(time.perf_counter() - started)
            if status.name not in counters:
                counters[status.name] = REQUESTS.labels(name, status.name)
            counters[status.name].inc()
            log.debug("call handled", method=name, code=status.name)
        return await rpc_context.abort(status, detail, trailing)

    return serve


async def _authorize(authenticator: Authenticator, access: Access, tokens: list[str]) -> None:
    """Set the identity of the caller. Raises Unauthenticated, or Forbidden if it may not call the method."""
    try:
        if len(tokens) > 1:
            raise Unauthenticated("must be sent once")
        caller = await authenticator.authenticate(bearer_token(tokens[0])) if tokens else ANONYMOUS
        access.require(caller)
    except Forbidden:
        metrics.REFUSED.labels("role").inc()
        raise
    except Unauthenticated:
        metrics.REFUSED.labels("token" if tokens else "no_token").inc()
        raise
    identity.set(caller)


def error_details(problem: Problem) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata: a google.rpc.Status with an ErrorInfo, and a BadRequest or RetryInfo if it applies.

    Source: https://google.aip.dev/193 and the richer error model in the gRPC documentation.
    """
    status = status_pb2.Status(code=problem.grpc_status, message=str(problem))
    info = error_details_pb2.ErrorInfo(reason=problem.code(), domain=_ERROR_DOMAIN)
    status.details.add().Pack(info)
    if errors := problem.extension_members().get("errors"):
        violations = [{"field": e["field"], "description": e["reason"]} for e in errors]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(problem, Unavailable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(problem.retry_after)
        status.details.add().Pack(retry)
    return (("grpc-status-details-bin", status.SerializeToString()),)


class GrpcServer:
    """A gRPC server with the given services, the health service and reflection.

    services: handlers by fully qualified service name.
    max_in_flight: the maximum number of concurrent calls. Further calls fail immediately with RESOURCE_EXHAUSTED.
        None: no limit.
    tls: with mutual TLS, clients must present a certificate. None: calls are not encrypted.
    check_seconds: the pause between two checks of the stores while the server drains.
    """

    def __init__(
        self,
        host: str,
        port: int,
        health: Health,
        services: Mapping[str, grpc.GenericRpcHandler],
        *,
        max_in_flight: int | None = None,
        tls: MutualTls | None = None,
        check_seconds: float = 1.0,
    ) -> None:
        self._host = host
        self._tls = tls
        self._port = port
        self._readiness = health
        self._check_seconds = check_seconds
        self._health = HealthService(health, services)
        self._server = grpc.aio.server(
            options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=max_in_flight
        )
        self._server.add_generic_rpc_handlers(tuple(services.values()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable(self._server, (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name))

    async def start(self) -> None:
        """Start serving. Raises OSError if it cannot listen on the address, or cannot use the files of `tls`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        credentials = None if self._tls is None else server_credentials(self._tls)
        try:
            if credentials is None:
                self._server.add_insecure_port(f"{host}:{self._port}")
            else:
                self._server.add_secure_port(f"{host}:{self._port}", credentials)
        except RuntimeError:
            raise OSError(0, f"cannot listen on {host}:{self._port}") from None
        await self._health.start()
        await self._server.start()

    async def drain(self, seconds: float) -> None:
        """Serve for `seconds` more, because clients may not know the new servers yet.

        Returns earlier if a store stays unavailable, for example because its password has changed. The clients would
        keep their connections to this server, and their calls would fail, until it stops.
        """
        failed = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while failed < _FAILED_CHECKS:
                    await asyncio.sleep(self._check_seconds)
                    failed = failed + 1 if await self._readiness.unavailable_dependencies() else 0
                log.warning("draining ended early, a store is unavailable")

    async def stop(self, grace_seconds: float) -> None:
        """Report NOT_SERVING, so that clients use other servers. Finish the calls in flight within `grace_seconds`."""
        await self._health.stop()
        await self._server.stop(grace_seconds)
